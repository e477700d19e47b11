"""Sobel filter as the first layer of an encoder."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="keras_ssl")
class Sobel(keras.layers.Layer):
    """Computes the vertical and horizontal Sobel gradients of the grayscale image, mirrored at the border.

    For clustering tasks, which would otherwise cluster images by color alone (Bojanowski & Joulin 2017;
    DeepCluster, section 3.4).

    In mixed precision it computes in float32, since small differences of pixels would be lost in 16 bits,
    and only the gradients are cast.

    Args:
        **kwargs: passed to keras.layers.Layer.

    Call arguments:
        images: (B, H, W, C) tensor of pixels in 0..255.

    Returns:
        (B, H, W, 2) float tensor in -1..1, positive if the image gets brighter downwards and to the right.

    Example:
        >>> ramp = tf.tile(tf.range(4.0)[None, None, :, None], [1, 4, 1, 3])
        >>> (Sobel()(ramp)[0, 1, 1] * 127.5).numpy().tolist()
        [0.0, 1.0]
    """

    def __init__(self, **kwargs):
        super().__init__(**{"autocast": False, **kwargs})

    def call(self, images):
        gray = tf.reduce_mean(tf.cast(images, tf.float32), axis=-1, keepdims=True)
        edges = tf.image.sobel_edges(gray)[:, :, :, 0] / (8 * 127.5)
        return tf.cast(edges, self.compute_dtype)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 2)
