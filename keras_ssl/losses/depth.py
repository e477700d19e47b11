"""Scale-invariant loss for depth."""

import keras
import tensorflow as tf

from keras_ssl.arguments import check_fraction
from keras_ssl.ops import depth


@keras.saving.register_keras_serializable(package="keras_ssl")
class ScaleInvariantDepth(keras.losses.Loss):
    """Computes the squared error of log depth, with part of the scale error removed.

    With d = predicted minus true logarithm, the loss of an image is mean(d^2) - scale_free * mean(d)^2 over
    the pixels whose depth is known. For `scale_free=1` it is the variance of d: a depth map that is twice as
    deep everywhere costs nothing. An image without a known pixel has the loss 0.

    Args:
        scale_free: float in 0..1, lambda of the paper.
        **kwargs: passed to keras.losses.Loss.

    Shapes:
        y_true: (B, H, W, 1), meters; NaN, 0 or infinite where unknown. y_pred: (B, H, W, 1), natural
        logarithm of meters. The loss: (B,).

    Raises:
        ValueError: `scale_free` is not in 0..1.

    Reference: Eigen, Puhrsch & Fergus, "Depth Map Prediction from a Single Image using a Multi-Scale Deep
    Network", NIPS 2014, section 3.2.

    Example:
        >>> twice_as_deep = tf.math.log(tf.fill((1, 4, 4, 1), 6.0))           # d = log 2 everywhere
        >>> round(float(ScaleInvariantDepth()(tf.fill((1, 4, 4, 1), 3.0), twice_as_deep)), 3)
        0.24
    """

    def __init__(self, scale_free=0.5, **kwargs):
        super().__init__(**kwargs)
        self.scale_free = check_fraction("scale_free", scale_free)

    def call(self, y_true, y_pred):
        y_true, y_pred = tf.cast(y_true, tf.float32), tf.cast(y_pred, tf.float32)
        known = depth.known(y_true)
        difference = tf.where(known, y_pred - depth.log(y_true), tf.zeros_like(y_pred))
        number = tf.reduce_sum(tf.cast(known, tf.float32), axis=[1, 2, 3])
        mean, square = (
            tf.math.divide_no_nan(tf.reduce_sum(values, axis=[1, 2, 3]), number)
            for values in (difference, difference**2)
        )
        return square - self.scale_free * mean**2

    def get_config(self):
        return {**super().get_config(), "scale_free": self.scale_free}
