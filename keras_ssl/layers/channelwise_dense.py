"""The channel-wise fully connected layer of context encoders."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="keras_ssl")
class ChannelwiseDense(keras.layers.Layer):
    """Applies a fully connected layer to each channel of a feature map separately.

    Information from one corner of the image reaches a hole in another corner, which would take many
    convolutional layers. The layer has c (h w)^2 weights; a dense one would have (c h w)^2.

    Args:
        **kwargs: passed to keras.layers.Layer.

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
        positions = height * width
        # Each channel is a separate dense layer, whose fan is the number of positions.
        limit = (3 / positions) ** 0.5
        self.kernel = self.add_weight(
            shape=(channels, positions, positions),
            initializer=keras.initializers.RandomUniform(-limit, limit),
            name="kernel",
        )
        self.bias = self.add_weight(shape=(channels, positions), initializer="zeros", name="bias")

    def call(self, x):
        _, height, width, channels = x.shape
        # A batched matrix product, with one matrix per channel.
        x = tf.reshape(tf.transpose(x, [3, 0, 1, 2]), [channels, -1, height * width])
        x = tf.matmul(x, tf.cast(self.kernel, x.dtype)) + tf.cast(self.bias, x.dtype)[:, None]
        return tf.transpose(tf.reshape(x, [channels, -1, height, width]), [1, 2, 3, 0])
