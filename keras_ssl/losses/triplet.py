"""The triplet loss over all other patches of the batch."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="keras_ssl")
class Triplet(keras.losses.Loss):
    """The mean over all negatives n of max(0, margin + s(a, n) - s(a, p)), one value per anchor a.

    Only negatives that come closer than the margin count: of those that are far enough the gradient is
    zero, and the mean is over those that are not. So the loss keeps its strength when most are far.

    Args:
        margin: float, by how much the positive p must be more similar than a negative.
        **kwargs: of keras.losses.Loss.

    Shapes:
        y_true: (B,) integers, the column of the positive. y_pred: (B, N) similarities, larger means
        more alike; all other columns are negatives. The loss: (B,).

    Reference: Schroff, Kalenichenko & Philbin, "FaceNet", CVPR 2015, section 3.1; Hermans, Beyer & Leibe,
    "In Defense of the Triplet Loss", 2017, section 3.2 (the mean over those that are not zero).

    Example:
        >>> round(float(Triplet(margin=0.5)([0], [[0.9, 0.6, 0.1]])), 3)         # 0.5 + 0.6 - 0.9
        0.2
    """

    def __init__(self, margin=0.5, **kwargs):
        super().__init__(**kwargs)
        self.margin = margin

    def call(self, y_true, y_pred):
        y_pred = tf.cast(y_pred, tf.float32)
        places = tf.cast(y_true, tf.int32)
        positive = tf.gather(y_pred, places, axis=1, batch_dims=1)[:, None]
        is_negative = 1 - tf.one_hot(places, tf.shape(y_pred)[1])
        violation = is_negative * tf.nn.relu(self.margin + y_pred - positive)
        number = tf.math.count_nonzero(violation, axis=1, dtype=tf.float32)
        return tf.reduce_sum(violation, axis=1) / tf.maximum(number, 1.0)

    def get_config(self):
        return {**super().get_config(), "margin": self.margin}
