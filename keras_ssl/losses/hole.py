"""Reconstruction loss of context encoders (inpainting)."""

import keras
import tensorflow as tf

from keras_ssl.ops import masks


@keras.saving.register_keras_serializable(package="keras_ssl")
class Hole(keras.losses.Loss):
    """Computes the squared error in the hole and, with a larger weight, in a band of pixels around it.

    The band makes the prediction continuous with the surroundings. The loss of an image is the mean of the
    weighted squares over the pixels of hole and band, and over the channels.

    Args:
        overlap: int, width of the band in pixels, or None for all visible pixels.
        weight: float, of the band; 10 in the paper.
        **kwargs: passed to keras.losses.Loss.

    Shapes:
        y_true: (B, H, W, C + 1), the image and, as the last channel, the mask: 1 in the hole, else 0.
        y_pred: (B, H, W, C). The loss: (B,).

    Reference: Pathak et al., "Context Encoders", CVPR 2016, sections 3.2 and 5.1.

    Example:
        >>> import numpy as np
        >>> y_true = np.zeros((1, 4, 4, 2), np.float32)
        >>> y_true[0, 1, 1, 1] = 1                                                # one pixel is hidden
        >>> float(Hole(overlap=1)(y_true, np.ones((1, 4, 4, 1), np.float32)))     # (1 + 8 * 10) / 9
        9.0
    """

    def __init__(self, overlap=1, weight=10.0, **kwargs):
        super().__init__(**kwargs)
        self.overlap, self.weight = overlap, weight

    def call(self, y_true, y_pred):
        y_true, y_pred = tf.cast(y_true, tf.float32), tf.cast(y_pred, tf.float32)
        hidden = y_true[..., -1:]
        band = masks.band(hidden, self.overlap)
        square = tf.reduce_mean((y_true[..., :-1] - y_pred) ** 2, axis=-1, keepdims=True)
        total = tf.reduce_sum((hidden + self.weight * band) * square, axis=[1, 2, 3])
        return total / tf.maximum(tf.reduce_sum(hidden + band, axis=[1, 2, 3]), 1.0)

    def get_config(self):
        return {**super().get_config(), "overlap": self.overlap, "weight": self.weight}
