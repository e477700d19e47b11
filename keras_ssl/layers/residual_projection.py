"""Residual projection heads: Deep InfoMax's networks on top of feature maps and codes."""

import keras

from keras_ssl.arguments import check_bool, check_integers
from keras_ssl.layers.batch_normalization import BatchNormalization


@keras.saving.register_keras_serializable(package="keras_ssl")
class NearIdentity(keras.initializers.RandomUniform):
    """Initializes a matrix like the identity: 1 on the diagonal, small random numbers elsewhere.

    Args:
        minval, maxval: float, range of the numbers off the diagonal.
        seed: as in Keras.

    Example:
        >>> float(NearIdentity()((2, 3))[1, 1])
        1.0
    """

    def __init__(self, minval=-0.01, maxval=0.01, seed=None):
        super().__init__(minval, maxval, seed)

    def __call__(self, shape, dtype=None):
        noise = super().__call__(shape, dtype)
        return keras.ops.where(keras.ops.eye(*shape, dtype=noise.dtype) > 0, 1.0, noise)


def residual_projection(channels, units, normalized=True, name="residual_projection"):
    """Builds a float32 perceptron with a shortcut, which is applied to each position of a feature map.

    Two dense layers (1x1 convolutions) with a ReLU between them, plus a linear shortcut that starts as a copy
    of its input. So the embeddings start as the features themselves. A code is a map of one position,
    (B, 1, 1, C).

    Args:
        channels: int, of the feature map.
        units: int, length of the embeddings, and width of the hidden layer.
        normalized: bool, whether to use batch normalization after the hidden layer, synchronized over
            replicas as in `projection`, and layer normalization of the embeddings, which limits their size.
        name: str.

    Returns:
        keras.Model from (B, h, w, channels) to (B, h, w, units).

    Raises:
        ValueError: a number is less than 1, or `normalized` is not a bool.

    Reference: Hjelm et al., "Learning Deep Representations by Mutual Information Estimation and
    Maximization", ICLR 2019, appendix A; `MI1x1ConvNet` in the authors' code.

    Example:
        >>> residual_projection(64, 256).output_shape
        (None, None, None, 256)
    """
    check_integers(1, channels=channels, units=units)
    check_bool("normalized", normalized)
    layers, float32 = keras.layers, {"dtype": "float32"}
    inputs = keras.Input((None, None, channels))
    x = layers.Dense(units, use_bias=not normalized, name="dense1", **float32)(inputs)
    if normalized:
        x = BatchNormalization(
            momentum=0.9, epsilon=1e-5, synchronized=True, name="normalization", **float32
        )(x)
    x = layers.ReLU(name="relu", **float32)(x)
    x = layers.Dense(units, name="dense2", **float32)(x)
    shortcut = layers.Dense(
        units, use_bias=False, kernel_initializer=NearIdentity(), name="shortcut", **float32
    )(inputs)
    x = layers.Add(name="add", **float32)([x, shortcut])
    if normalized:
        x = layers.LayerNormalization(epsilon=1e-5, name="layer_normalization", **float32)(x)
    return keras.Model(inputs, x, name=name)
