"""The channel-wise fully connected layer of context encoders."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="keras_ssl")
class ChannelwiseDense(keras.layers.Layer):
    """Connects every place of a feature map with every other, each channel for itself.

    What lies in one corner thus reaches the hole in another, which convolutions alone would take many
    layers for, at c (h w)^2 weights instead of the (c h w)^2 of a dense layer.

    Args:
        **kwargs: of keras.layers.Layer.

    Call arguments:
        x: (B, h, w, c) tensor.

    Returns:
        A tensor of the same shape.

    Reference: Pathak et al., "Context Encoders", CVPR 2016, section 3.1.

    Example:
        >>> ChannelwiseDense()(tf.zeros((2, 4, 4, 8))).shape
        TensorShape([2, 4, 4, 8])
    """

    def build(self, input_shape):
        _, height, width, channels = input_shape
        places = height * width
        # Each channel is a dense layer of its own: the fan is the number of places.
        limit = (3 / places) ** 0.5
        self.kernel = self.add_weight(
            shape=(channels, places, places),
            initializer=keras.initializers.RandomUniform(-limit, limit),
            name="kernel",
        )
        self.bias = self.add_weight(shape=(channels, places), initializer="zeros", name="bias")

    def call(self, x):
        _, height, width, channels = x.shape
        # As a batched matrix product, one a channel.
        x = tf.reshape(tf.transpose(x, [3, 0, 1, 2]), [channels, -1, height * width])
        x = tf.matmul(x, tf.cast(self.kernel, x.dtype)) + tf.cast(self.bias, x.dtype)[:, None]
        return tf.transpose(tf.reshape(x, [channels, -1, height, width]), [1, 2, 3, 0])
