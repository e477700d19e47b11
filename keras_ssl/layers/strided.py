"""Workaround for strided 1x1 convolutions, whose gradients oneDNN miscomputes if there are few channels.

For such a layer oneDNN copies the pixels that are used into a buffer for all its input channels, but
addresses the buffer as if it held a whole vector of channels: 8 with AVX2, 16 with AVX-512. With fewer
channels it reads and writes out of bounds. The gradients of the kernel are wrong, or the heap is corrupted
and the process crashes later (https://github.com/uxlfoundation/oneDNN/issues/6035, seen with TensorFlow
2.21). Subsampling followed by a convolution without strides computes the same function with other code.

The gradient of a transposed convolution is such a convolution, whose input channels are its output channels.
SeparableConv2D is not affected: only its depthwise part has strides.
"""

import warnings
import weakref

from keras import layers

CHANNELS = 16  # float32 numbers in the widest vector (AVX-512)
_warned = weakref.WeakSet()  # layers


def is_miscomputed(layer):
    """Returns whether a layer is a strided 1x1 convolution, possibly transposed, that oneDNN miscomputes.

    Args:
        layer: keras.layers.Layer, built.

    Returns:
        bool.
    """
    return (
        isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D, layers.Conv2DTranspose))
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


def warn_of_miscomputed(model):
    """Warns of miscomputed convolutions in a model and its nested models, once per layer.

    Args:
        model: keras.Model.

    Warns:
        UserWarning: the name of such a layer, and how to change it.
    """
    for outer, layer in _all_layers(model):
        if not is_miscomputed(layer) or layer in _warned:
            continue
        _warned.add(layer)
        if isinstance(layer, layers.Conv2DTranspose):
            change = "give it a kernel as large as its strides"
        else:
            change = (
                "put a MaxPooling2D(1, strides) before it and set its strides to 1, as "
                "keras_ssl.encoders.from_keras does outside of nested models"
            )
        warnings.warn(
            f"{layer.name!r} in {outer.name!r} is a 1x1 convolution with strides and fewer than "
            f"{CHANNELS} channels: on CPUs TensorFlow may compute wrong gradients of it, or crash; {change}",
            stacklevel=3,
        )


def _all_layers(outer):
    """Yields (outer, layer) for each layer inside of a model or of a wrapper such as TimeDistributed."""
    for layer in [*getattr(outer, "layers", []), getattr(outer, "layer", None)]:
        if layer is not None:
            yield outer, layer
            yield from _all_layers(layer)
