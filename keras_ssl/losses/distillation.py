"""Distance between the feature maps of a student and of a teacher."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="keras_ssl")
class Distillation(keras.losses.Loss):
    """Computes the mean squared difference between the feature maps of a student and of a teacher.

    No gradient flows into the teacher's map.

    Args:
        **kwargs: passed to keras.losses.Loss.

    Shapes:
        y_true: not used. y_pred: (B, 2, h, w, c), the student's map, then the teacher's. The loss: (B,), the
        mean over positions and channels.

    Reference: Gupta, Hoffman & Malik, "Cross Modal Distillation for Supervision Transfer", CVPR 2016,
    equation 1.

    Example:
        >>> float(Distillation()([0], tf.stack([tf.ones((1, 4, 4, 8)), tf.zeros((1, 4, 4, 8))], axis=1)))
        1.0
    """

    def call(self, y_true, y_pred):
        student, teacher = tf.unstack(tf.cast(y_pred, tf.float32), 2, axis=1)
        return tf.reduce_mean((student - tf.stop_gradient(teacher)) ** 2, axis=[1, 2, 3])
