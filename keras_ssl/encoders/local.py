"""Residual networks without padding, whose features each depend only on a small part of the image."""

import keras
import numpy as np
from keras import layers

from keras_ssl.arguments import is_integer
from keras_ssl.encoders.residual import STAGE, to_unit

# The first convolution, per stem: (kernel, stride).
STEMS = {"small": (3, 1), "imagenet": (5, 2)}
LARGEST = 8  # positions per side after the last convolution with a stride
ROOM = 8  # positions per side that the first convolution must leave


def local_resnet(
    input_shape, width=64, blocks=(2, 2), stem="small", synchronized=False, preprocessing=None
):
    """Builds a residual network with local receptive fields, as AMDIM requires.

    No convolution is padded, and most layers are 1x1 convolutions, so that a position of a feature map
    depends on a small square of the image. For 32x32 pixels, this square has 8x8 pixels for the map of 7x7
    positions, and 16x16 for the map of 5x5. With padding and 3x3 convolutions throughout, every position
    would soon see the whole image, and predicting one from another would be trivial.

    The stages depend on the size of the image: convolutions with stride 2, each of them a stage, until a map
    has at most 8 (and at least 4) positions per side; a 3x3 convolution; and 3x3 convolutions to a single
    position. For 32x32 pixels, the maps have 14, 7, 5 and 1 positions per side; for 64 pixels 30, 14, 7, 5
    and 1; for 48 pixels 22, 10, 5, 3 and 1; and for 128 pixels with the stem "imagenet" 30, 14, 7, 5 and 1.

    There is no normalization. Shortcuts are average pooling, with zeros for additional channels, and the last
    convolution of each block starts at zero, so that the untrained network only average-pools the output of
    its stem.

    Args:
        input_shape: (S, S, C) of the images, which are square, e.g. (32, 32, 3).
        width: channels of the first stage; each later stage has twice as many, up to the last of `blocks`.
        blocks: residual blocks per stage: one that reduces the map, then 1x1 convolutions. The last number
            also applies to all further stages, which have no additional channels.
        stem: "small" (3x3 convolution) or "imagenet" (5x5 convolution with stride 2).
        synchronized: without effect, since there is no batch normalization.
        preprocessing: keras layer that converts pixels in 0..255 to the input of the first convolution;
            by default a rescaling to -1..1.

    Returns:
        keras.Model from (B, S, S, C) pixels in 0..255, uint8 or float, to (B, D) features with
        D = width * 2 ** (len(blocks) - 1), float32 even in mixed precision. The layers `stage1`,
        `stage2`, ... output the (B, s, s, c) feature maps at the end of each stage.

    Raises:
        ValueError: `input_shape`, `width`, `blocks` or `stem` is not of the form above, the images have less
            than 10 pixels (19 with the stem "imagenet") per side, or `blocks` has more numbers than there
            are stages.

    Reference: Bachman, Hjelm & Buchwalter, "Learning Representations by Maximizing Mutual Information Across
    Views", NeurIPS 2019; `model.py` in Philip-Bachman/amdim-public.

    Example:
        >>> local_resnet((32, 32, 3), width=16).output_shape
        (None, 32)
    """
    _check(input_shape, width, blocks, stem)
    kernel, stride = STEMS[stem]
    reductions = _reductions((input_shape[0] - kernel) // stride + 1)
    if len(blocks) > len(reductions):
        raise ValueError(
            f"blocks must have at most {len(reductions)} numbers, one per stage for images of "
            f"{input_shape[0]} pixels, got {blocks!r}"
        )
    inputs = keras.Input(input_shape, name="images")
    x = (preprocessing or to_unit())(inputs)
    x = layers.Conv2D(
        width, kernel, stride, activation="relu", kernel_initializer="he_normal", name="stem"
    )(x)
    for stage, steps in enumerate(reductions):
        last = min(stage, len(blocks) - 1)
        for step, (kernel, stride) in enumerate(steps):
            for block in range(blocks[last]):
                ends = step == len(steps) - 1 and block == blocks[last] - 1
                name = f"{STAGE}{stage + 1}" if ends else None
                x = _block(x, width * 2**last, *((1, 1) if block else (kernel, stride)), name)
    features = layers.GlobalAveragePooling2D(name="features", dtype="float32")(x)
    return keras.Model(inputs, features, name="local_resnet")


def _reductions(side):
    """Lists the stages of a network after its stem; a stage is a list of (kernel, stride) of reductions."""
    stages = []
    while side > LARGEST or not stages:
        kernel = 4 if side > 2 * LARGEST else 2
        stages.append([(kernel, 2)])
        side = (side - kernel) // 2 + 1
    stages.append([(3, 1)])
    side -= 2
    last = []
    while side > 1:
        kernel = min(3, side)
        last.append((kernel, 1))
        side -= kernel - 1
    return [*stages, last]


def _block(x, filters, kernel, stride, name):
    """Adds a residual block: a convolution without padding, a ReLU and a 1x1 convolution."""
    y = layers.Conv2D(
        filters, kernel, stride, use_bias=False, activation="relu", kernel_initializer="he_normal"
    )(x)
    y = layers.Conv2D(filters, 1, use_bias=False, kernel_initializer="zeros")(y)
    if kernel > 1:
        x = layers.AveragePooling2D(kernel, stride)(x)
    height, width, channels = x.shape[1:]
    if (
        filters > channels
    ):  # zeros for additional channels, as an axis of an image with a single channel
        x = layers.Reshape((height * width, channels, 1))(x)
        x = layers.ZeroPadding2D(((0, 0), (0, filters - channels)))(x)
        x = layers.Reshape((height, width, filters))(x)
    return layers.Add(name=name)([x, y])


def _check(input_shape, width, blocks, stem):
    """Raises ValueError unless the arguments are valid for `local_resnet`."""
    if stem not in STEMS:
        raise ValueError(f'stem must be "small" or "imagenet", got {stem!r}')
    kernel, stride = STEMS[stem]
    least = (ROOM - 1) * stride + kernel
    square = np.shape(input_shape) == (3,) and input_shape[0] == input_shape[1]
    if not square or not is_integer(input_shape[0], least):
        raise ValueError(
            f"input_shape must be (side, side, channels) with a side of at least {least} pixels for the "
            f"stem {stem!r}, got {input_shape!r}"
        )
    if not is_integer(width, 1):
        raise ValueError(f"width must be a positive integer, got {width!r}")
    if np.ndim(blocks) != 1 or not len(blocks) or not all(is_integer(n, 1) for n in blocks):
        raise ValueError(f"blocks must be positive integers, got {blocks!r}")
