"""Workaround for strided 1x1 convolutions, whose gradients oneDNN miscomputes if there are few channels.

For such a layer oneDNN copies the pixels that are used into a buffer for all its input channels, but
addresses the buffer as if it held a whole vector of channels: 8 with AVX2, 16 with AVX-512. With fewer
channels it reads and writes out of bounds. The gradients of the kernel are wrong, or the heap is corrupted
and the process crashes later (https://github.com/uxlfoundation/oneDNN/issues/6035, here with TensorFlow
2.21). Subsampling followed by a convolution without strides computes the same function by other code.
"""

import warnings

from keras import layers

CHANNELS = 16  # float32 numbers in the widest vector, that of AVX-512


def is_miscomputed(layer):
    """Returns whether a layer is a strided 1x1 convolution that oneDNN miscomputes.

    Args:
        layer: keras.layers.Layer, built.

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
    """Returns the subsampling layer that replaces the strides of a 1x1 convolution.

    Args:
        layer: keras.layers.Conv2D or DepthwiseConv2D.
        name: str, of the convolution.

    Returns:
        keras.layers.MaxPooling2D over single pixels. It takes every stride-th pixel, starting with the
        first, as the convolution does with either padding.
    """
    return layers.MaxPooling2D(
        1, layer.strides, data_format=layer.data_format, dtype=layer.dtype_policy,
        name=f"{name}_subsampling",
    )  # fmt: skip


def warn_of_inner_layers(layer):
    """Warns of miscomputed convolutions in nested layers, which `from_keras` does not replace.

    Args:
        layer: keras.Model, or a layer inside of a model.
    """
    for outer in getattr(layer, "layers", []):
        for inner in getattr(outer, "layers", [getattr(outer, "layer", None)]):
            if is_miscomputed(inner):
                warnings.warn(
                    f"{inner.name!r} in {outer.name!r} is a 1x1 convolution with strides and fewer than "
                    f"{CHANNELS} input channels: on CPUs TensorFlow may compute wrong gradients of it, or "
                    "crash; put a MaxPooling2D(1, strides) before it and set its strides to 1",
                    stacklevel=3,
                )
        warn_of_inner_layers(outer)
