"""Triplet loss over all negatives of the batch."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="keras_ssl")
class Triplet(keras.losses.Loss):
    """Computes the triplet loss of each anchor, as the mean over the negatives that violate the margin.

    A negative n costs max(0, margin + s(a, n) - s(a, p)), for the anchor a and its positive p. Negatives
    that satisfy the margin have no gradient and are left out of the mean, so that the loss does not
    vanish when they are the majority.

    Args:
        margin: float, by how much the positive must be more similar to the anchor than a negative.
        **kwargs: passed to keras.losses.Loss.

    Shapes:
        y_true: (B,) integers, the column of the positive. y_pred: (B, N) similarities, larger for more
        similar pairs; all other columns are negatives. The loss: (B,).

    Reference: Schroff, Kalenichenko & Philbin, "FaceNet", CVPR 2015, section 3.1; Hermans, Beyer & Leibe,
    "In Defense of the Triplet Loss", 2017, section 3.2 (the mean over nonzero terms).

    Example:
        >>> round(float(Triplet(margin=0.5)([0], [[0.9, 0.6, 0.1]])), 3)         # 0.5 + 0.6 - 0.9
        0.2
    """

    def __init__(self, margin=0.5, **kwargs):
        super().__init__(**kwargs)
        self.margin = margin

    def call(self, y_true, y_pred):
        y_pred = tf.cast(y_pred, tf.float32)
        columns = tf.cast(y_true, tf.int32)
        positive = tf.gather(y_pred, columns, axis=1, batch_dims=1)[:, None]
        is_negative = 1 - tf.one_hot(columns, tf.shape(y_pred)[1])
        violation = is_negative * tf.nn.relu(self.margin + y_pred - positive)
        number = tf.math.count_nonzero(violation, axis=1, dtype=tf.float32)
        return tf.reduce_sum(violation, axis=1) / tf.maximum(number, 1.0)

    def get_config(self):
        return {**super().get_config(), "margin": self.margin}
