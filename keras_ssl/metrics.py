"""Metrics for `compile`: peak signal-to-noise ratio."""

import keras
import tensorflow as tf


def psnr(y_true, y_pred):
    """Computes the peak signal-to-noise ratio of each image, in decibels.

    It is 10 log10 of the squared range divided by the mean squared error: 6 dB more means half the root
    mean square error. A perfect reconstruction gets 100 dB.

    Args:
        y_true: (B, H, W, C) tensor in -1..1, or (B, H, W, C + 1) with a mask as the last channel: only
            pixels where it is 1 count.
        y_pred: (B, H, W, C) tensor, clipped to -1..1.

    Returns:
        (B,) float32 tensor.

    Example:
        >>> psnr(tf.zeros((1, 4, 4, 3)), tf.fill((1, 4, 4, 3), 0.2)).numpy().round(3).tolist()
        [20.0]
    """
    y_true, y_pred = tf.cast(y_true, tf.float32), tf.cast(y_pred, tf.float32)
    channels = y_pred.shape[-1]
    square = (y_true[..., :channels] - tf.clip_by_value(y_pred, -1, 1)) ** 2
    counts = y_true[..., channels:] if y_true.shape[-1] > channels else tf.ones_like(square)
    counts = tf.broadcast_to(counts, tf.shape(square))
    number = tf.maximum(tf.reduce_sum(counts, axis=[1, 2, 3]), 1.0)
    error = tf.reduce_sum(counts * square, axis=[1, 2, 3]) / number
    return 10 * tf.math.log(4 / tf.maximum(error, 4e-10)) / tf.math.log(10.0)


@keras.saving.register_keras_serializable(package="keras_ssl")
class PSNR(keras.metrics.MeanMetricWrapper):
    """Computes the mean peak signal-to-noise ratio of images, see `psnr`.

    Args:
        name: str.
        **kwargs: passed to keras.metrics.Metric.

    Example:
        >>> metric = PSNR()
        >>> metric.update_state(tf.zeros((1, 4, 4, 3)), tf.fill((1, 4, 4, 3), 0.2))
        >>> round(float(metric.result()), 3)
        20.0
    """

    def __init__(self, name="psnr", **kwargs):
        super().__init__(psnr, name=name, **kwargs)

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype}
