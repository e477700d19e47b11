"""Losses of normals and contours, predicted for each pixel."""

import keras
import tensorflow as tf

SHORTEST = 0.05  # length of a vector below which its cosine becomes smaller


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
        # Near 0 the smallest step changes the direction, so the gradient would overflow in 16 bits.
        unit = tf.math.l2_normalize(y_pred, axis=-1, epsilon=SHORTEST**2)
        cosine = tf.where(known, y_true, 0.0) * unit
        distance = tf.where(known, 1 - tf.reduce_sum(cosine, axis=-1, keepdims=True), 0.0)
        return tf.reduce_sum(distance, axis=[1, 2, 3]) / _number(known)


@keras.saving.register_keras_serializable(package="keras_ssl")
class BalancedCrossEntropy(keras.losses.Loss):
    """Computes the cross-entropy of contours; contour pixels and others have the same weight in an image.

    It is the average of the mean over the contour pixels and the mean over the other pixels. Without this
    balance, predicting no contour at all would have a low loss, since few pixels are on a contour.

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
