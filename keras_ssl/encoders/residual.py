"""Residual networks with named stages."""

import keras
import numpy as np
from keras import layers

from keras_ssl.arguments import is_integer
from keras_ssl.layers import BatchNormalization

STAGE = "stage"


def resnet(
    input_shape,
    width=64,
    blocks=(2, 2, 2, 2),
    stem="small",
    synchronized=False,
    preprocessing=None,
    normalization="batch",
):
    """Builds a residual network of basic blocks, by default ResNet-18.

    Args:
        input_shape: (H, W, C) of the images, e.g. (32, 32, 3); H and W may be None.
        width: channels of the first stage; each later stage has twice as many as the previous one.
        blocks: residual blocks per stage; every stage except the first halves the resolution.
        stem: "small" (one 3x3 convolution, for images up to about 96 pixels) or "imagenet"
            (7x7 convolution with stride 2 and a 3x3 max pooling with stride 2).
        synchronized: bool, synchronize batch normalization over all replicas; without effect for "layer".
        preprocessing: keras layer that converts pixels in 0..255 to the input of the first convolution,
            for example `keras_ssl.layers.Sobel()`; by default a rescaling to -1..1.
        normalization: "batch", or "layer" for layer normalization: each feature map is normalized by its own
            mean and variance over all positions and channels, so that the features of an image (or of a patch
            of any size) do not depend on other images of the batch.

    Returns:
        keras.Model from (B, H, W, C) pixels in 0..255, uint8 or float, to (B, D) features with
        D = width * 2 ** (len(blocks) - 1), float32 even in mixed precision. The layers `stage1`,
        `stage2`, ... output the (B, h, w, c) feature maps at the end of each stage.

    Raises:
        ValueError: `input_shape`, `width`, `blocks`, `stem` or `normalization` is not of the form above.

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.1; Ba, Kiros
    & Hinton, "Layer Normalization", 2016.

    Example:
        >>> resnet((32, 32, 3), width=16).output_shape
        (None, 128)
    """
    if np.shape(input_shape) != (3,):
        raise ValueError(f"input_shape must be (height, width, channels), got {input_shape!r}")
    if not is_integer(width, 1):
        raise ValueError(f"width must be a positive integer, got {width!r}")
    if np.ndim(blocks) != 1 or not len(blocks) or not all(is_integer(n, 1) for n in blocks):
        raise ValueError(f"blocks must be positive integers, one per stage, got {blocks!r}")
    if normalization not in ("batch", "layer"):
        raise ValueError(f'normalization must be "batch" or "layer", got {normalization!r}')

    def normalize(x):
        if normalization == "layer":
            # One group is layer normalization. Over single positions, it would leave only the signs of two
            # channels. Keras computes it in float32 even in mixed precision.
            return layers.GroupNormalization(1, epsilon=1e-5)(x)
        return BatchNormalization(momentum=0.9, epsilon=1e-5, synchronized=synchronized)(x)

    def convolution(x, filters, size, strides=1):
        return normalize(
            layers.Conv2D(
                filters, size, strides, "same", use_bias=False, kernel_initializer="he_normal"
            )(x)
        )

    inputs = keras.Input(input_shape, name="images")
    x = (preprocessing or to_unit())(inputs)
    if stem == "small":
        x = layers.ReLU()(convolution(x, width, 3))
    elif stem == "imagenet":
        x = layers.ReLU()(convolution(x, width, 7, strides=2))
        x = layers.MaxPooling2D(3, 2, "same")(x)
    else:
        raise ValueError(f'stem must be "small" or "imagenet", got {stem!r}')

    for stage, number in enumerate(blocks):
        filters = width * 2**stage
        for block in range(number):
            strides = 2 if stage > 0 and block == 0 else 1
            shortcut = x
            if strides > 1:
                # A strided convolution is computed as subsampling and convolution: see `layers/strided.py`.
                shortcut = convolution(layers.MaxPooling2D(1, strides)(x), filters, 1)
            x = layers.ReLU()(convolution(x, filters, 3, strides))
            x = layers.Add()([convolution(x, filters, 3), shortcut])
            x = layers.ReLU(name=f"{STAGE}{stage + 1}" if block == number - 1 else None)(x)

    features = layers.GlobalAveragePooling2D(name="features", dtype="float32")(x)
    return keras.Model(inputs, features, name="resnet")


def to_unit():
    """Rescales pixels to -1..1, in float32 even in mixed precision: bfloat16 has too few bits for it."""
    return layers.Rescaling(1 / 127.5, offset=-1, dtype="float32")
