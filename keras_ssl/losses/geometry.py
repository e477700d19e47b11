"""Losses of depth, normals and contours, predicted for each pixel."""

import keras
import tensorflow as tf

from keras_ssl.arguments import check_fraction


@keras.saving.register_keras_serializable(package="keras_ssl")
class ScaleInvariant(keras.losses.Loss):
    """Computes half the scale-invariant squared error of logarithms of depths.

    With the differences d of the logarithms it is (mean(d^2) - balance * mean(d)^2) / 2 over the pixels of an
    image whose depth is known. An error of the scale of the whole image counts less than others; with a
    balance of 1 it does not count.

    Args:
        balance: float in 0..1.
        **kwargs: passed to keras.losses.Loss.

    Shapes:
        y_true: (B, H, W, 1), depths in meters; NaN, infinity and 0 where they are unknown. y_pred:
        (B, H, W, 1), logarithms of depths. The loss: (B,), 0 for an image without a known depth.

    Raises:
        ValueError: `balance` is not in 0..1.

    Reference: Eigen, Puhrsch & Fergus, "Depth Map Prediction from a Single Image using a Multi-Scale Deep
    Network", NIPS 2014, equation 4.

    Example:
        >>> depths = tf.constant([1.0, 2.0, 4.0, float("nan")])[None, None, :, None]
        >>> round(float(ScaleInvariant(1.0)(depths, tf.math.log(3 * depths))), 6)      # three times as far
        0.0
    """

    def __init__(self, balance=0.5, **kwargs):
        super().__init__(**kwargs)
        self.balance = check_fraction("balance", balance)

    def call(self, y_true, y_pred):
        y_true, y_pred = tf.cast(y_true, tf.float32), tf.cast(y_pred, tf.float32)
        known = tf.math.is_finite(y_true) & (y_true > 0)
        difference = tf.where(known, y_pred - tf.math.log(tf.where(known, y_true, 1.0)), 0.0)
        number = _number(known)
        square = tf.reduce_sum(difference**2, axis=[1, 2, 3]) / number
        mean = tf.reduce_sum(difference, axis=[1, 2, 3]) / number
        return (square - self.balance * mean**2) / 2

    def get_config(self):
        return {**super().get_config(), "balance": self.balance}


@keras.saving.register_keras_serializable(package="keras_ssl")
class CosineDistance(keras.losses.Loss):
    """Computes 1 - cos of the angle between predicted and true normals, averaged over known pixels.

    Shapes:
        y_true: (B, H, W, 3), vectors of length 1; NaN where they are unknown. y_pred: (B, H, W, 3), of any
        length. The loss: (B,), in 0..2, and 0 for an image without a known normal.

    Example:
        >>> up, right = tf.constant([[[[0.0, -1, 0]]]]), tf.constant([[[[5.0, 0, 0]]]])
        >>> float(CosineDistance()(up, right))
        1.0
    """

    def call(self, y_true, y_pred):
        y_true, y_pred = tf.cast(y_true, tf.float32), tf.cast(y_pred, tf.float32)
        known = tf.reduce_all(tf.math.is_finite(y_true), axis=-1, keepdims=True)
        cosine = tf.where(known, y_true, 0.0) * tf.math.l2_normalize(y_pred, axis=-1)
        distance = tf.where(known, 1 - tf.reduce_sum(cosine, axis=-1, keepdims=True), 0.0)
        return tf.reduce_sum(distance, axis=[1, 2, 3]) / _number(known)


@keras.saving.register_keras_serializable(package="keras_ssl")
class BalancedCrossEntropy(keras.losses.Loss):
    """Computes the cross-entropy of contours; contour pixels and others have the same weight in an image.

    It is the mean of the mean over the contour pixels and the mean over the others. Without weights,
    predicting no contour at all would be a good answer: few pixels are on one.

    Shapes:
        y_true: (B, H, W, 1), 0 or 1. y_pred: (B, H, W, 1) logits. The loss: (B,).

    Reference: Xie & Tu, "Holistically-Nested Edge Detection", ICCV 2015, equation 2.

    Example:
        >>> contours = tf.constant([1.0, 0, 0, 0])[None, None, :, None]
        >>> round(float(BalancedCrossEntropy()(contours, tf.zeros((1, 1, 4, 1)))), 4)        # log 2
        0.6931
    """

    def call(self, y_true, y_pred):
        y_true, y_pred = tf.cast(y_true, tf.float32), tf.cast(y_pred, tf.float32)
        entropy = tf.nn.sigmoid_cross_entropy_with_logits(y_true, y_pred)
        parts = [
            tf.reduce_sum(mask * entropy, axis=[1, 2, 3])
            / tf.maximum(tf.reduce_sum(mask, axis=[1, 2, 3]), 1.0)
            for mask in (y_true, 1 - y_true)
        ]
        return tf.add_n(parts) / 2


def _number(mask):
    """Returns how many pixels (B,) a mask selects, at least 1."""
    return tf.maximum(tf.reduce_sum(tf.cast(mask, tf.float32), axis=[1, 2, 3]), 1.0)
