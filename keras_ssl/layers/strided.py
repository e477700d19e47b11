"""1x1 convolutions with strides, whose gradients oneDNN miscomputes on CPUs where channels are few.

For such a layer oneDNN copies the pixels that are used into memory for all its input channels, but
addresses that as if there were a whole vector of them: 8 with AVX2, 16 with AVX-512. With fewer it reads
and writes elsewhere: wrong gradients of the kernel, or a damaged heap and a process that dies later
(https://github.com/uxlfoundation/oneDNN/issues/6035, here with TensorFlow 2.21). To subsample first and
then convolve without strides is the same function and takes another way.
"""

import warnings

from keras import layers

CHANNELS = 16  # of one vector of float32, the widest there is


def is_miscomputed(layer):
    """Whether a built layer is such a convolution.

    Args:
        layer: keras.layers.Layer.

    Returns:
        bool.
    """
    return (
        isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D))
        and tuple(layer.kernel_size) == (1, 1)
        and max(layer.strides) > 1
        and layer.kernel.shape[2] < CHANNELS
    )


def subsampling(layer, name):
    """The layer to put before a 1x1 convolution that is to do without its strides.

    Args:
        layer: keras.layers.Conv2D or DepthwiseConv2D.
        name: str, of the convolution.

    Returns:
        keras.layers.MaxPooling2D over single pixels: every stride-th, from the first, as the convolution
        takes them with either padding.
    """
    return layers.MaxPooling2D(
        1, layer.strides, data_format=layer.data_format, dtype=layer.dtype_policy,
        name=f"{name}_subsampling",
    )  # fmt: skip


def warn_of_inner_layers(layer):
    """Warns of such convolutions inside of a model's layers, where `from_keras` leaves them as they are.

    Args:
        layer: keras.Model, or a layer inside of one.
    """
    for outer in getattr(layer, "layers", []):
        for inner in getattr(outer, "layers", [getattr(outer, "layer", None)]):
            if is_miscomputed(inner):
                warnings.warn(
                    f"{inner.name!r} in {outer.name!r} is a 1x1 convolution with strides and fewer than "
                    f"{CHANNELS} input channels: on CPUs TensorFlow may compute wrong gradients of it, or "
                    "die. Put a MaxPooling2D(1, strides) before it and take strides of 1",
                    stacklevel=3,
                )
        warn_of_inner_layers(outer)
