"""Ranking loss of depth: which of two pixels is farther."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="keras_ssl")
class DepthRanking(keras.losses.Loss):
    """Computes the ranking loss of pairs of pixels: the farther one must have the larger value.

    With r = 1 if pixel A is farther than pixel B, -1 if it is nearer and 0 if both are equally far, and the
    predictions z, a pair costs log(1 + exp(-r (z_A - z_B))), and (z_A - z_B)^2 if r = 0. The loss of an image
    is the mean over the pairs whose order is known, or 0 if there are none. Copies of the authors' code use
    the opposite sign of r.

    Shapes:
        y_true: (B, P, 3) float, per pair the indices of pixels A and B, row by row from the top left, and r,
        NaN where it is unknown. y_pred: (B, H, W, 1), larger for farther pixels. The loss: (B,).

    Reference: Chen, Fu, Yang & Deng, "Single-Image Depth Perception in the Wild", NIPS 2016, section 4.

    Example:
        >>> values = tf.constant([[[[5.0], [1.0]]]])                        # the first pixel is farther, by 4
        >>> [round(float(DepthRanking()([[[0.0, 1.0, r]]], values)), 3) for r in (1.0, -1.0, 0.0)]
        [0.018, 4.018, 16.0]
    """

    def call(self, y_true, y_pred):
        order, difference = ordered_differences(y_true, y_pred)
        known = tf.math.is_finite(order)
        r = tf.where(known, order, tf.zeros_like(order))
        cost = tf.where(r == 0, difference**2, tf.nn.softplus(-r * difference))
        cost = tf.where(known, cost, tf.zeros_like(cost))
        number = tf.reduce_sum(tf.cast(known, tf.float32), axis=1)
        return tf.math.divide_no_nan(tf.reduce_sum(cost, axis=1), number)


def ordered_differences(y_true, y_pred):
    """Returns the order (B, P) of pairs and the differences (B, P) of their predictions, z_A - z_B.

    Args:
        y_true, y_pred: as for `DepthRanking`.

    Example:
        >>> order, difference = ordered_differences([[[2.0, 0.0, 1.0]]], [[[[3.0], [4.0], [8.0]]]])
        >>> order.numpy().tolist(), difference.numpy().tolist()
        ([[1.0]], [[5.0]])
    """
    y_true, y_pred = tf.cast(y_true, tf.float32), tf.cast(y_pred, tf.float32)
    pixels, order = tf.cast(y_true[..., :2], tf.int32), y_true[..., 2]
    values = tf.reshape(y_pred, [tf.shape(y_pred)[0], -1])
    values = tf.gather(values, pixels, batch_dims=1)
    return order, values[..., 0] - values[..., 1]
