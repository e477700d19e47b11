"""Encoders of two halves, each of which sees different channels of the image."""

import keras
import numpy as np
from keras import ops

from keras_ssl.arguments import is_integer
from keras_ssl.encoders.residual import STAGE, resnet
from keras_ssl.layers.lab import Lab


def color_halves(
    input_shape, width=64, blocks=(2, 2, 2, 2), stem="small", synchronized=False, preprocessing=None
):
    """Builds two residual networks of half the width, one on lightness, one on the colors of CIE Lab.

    No weight connects them before the features: first the features of the lightness, then those of the
    colors.

    Args:
        input_shape: (H, W, 3) of the images.
        width: int, channels of the first stage, both halves together: an even number.
        blocks, stem, synchronized: as in `resnet`.
        preprocessing: None; the conversion to Lab is built in.

    Returns:
        keras.Model from (B, H, W, 3) pixels in 0..255 to (B, D) features as from `resnet`, with stages of the
        same names and shapes.

    Raises:
        ValueError: `width` is odd, `preprocessing` is given, the images are not RGB, or for the same reasons
            as in `resnet`.

    Reference: Tian, Krishnan & Isola, "Contrastive Multiview Coding", ECCV 2020, section 4.1.

    Example:
        >>> color_halves((32, 32, 3), width=16).output_shape
        (None, 128)
    """
    if preprocessing is not None:
        raise ValueError(
            f"preprocessing must be None, the halves convert to Lab, got {preprocessing!r}"
        )
    if np.shape(input_shape) != (3,) or input_shape[-1] != 3:
        raise ValueError(f"input_shape must be (height, width, 3), RGB, got {input_shape!r}")
    if not is_integer(width, 2) or width % 2:
        raise ValueError(f"width must be an even integer, half of it for each half, got {width!r}")
    halves = [
        resnet(input_shape, width // 2, blocks, stem, synchronized, Lab(channels))
        for channels in ("L", "ab")
    ]
    inputs = keras.Input(input_shape, name="images")
    start, parts = [half.input for half in halves], [inputs, inputs]
    for stage in range(1, len(blocks) + 1):
        end = [half.get_layer(f"{STAGE}{stage}").output for half in halves]
        parts = [
            keras.Model(first, last, name=f"{name}{stage}")(part)
            for first, last, part, name in zip(
                start, end, parts, ("lightness", "colors"), strict=True
            )
        ]
        joined = keras.layers.Concatenate(name=f"{STAGE}{stage}")(parts)
        # Split again, so that the stage is on the way to the features.
        start, parts = end, ops.split(joined, 2, axis=-1)
    features = keras.layers.GlobalAveragePooling2D(name="features", dtype="float32")(joined)
    return keras.Model(inputs, features, name="color_halves")


def check_halves(encoder):
    """Raises ValueError unless `encoder` has two halves, as built by `color_halves`.

    Example:
        >>> check_halves(color_halves((8, 8, 3), 2, (1,)))
    """
    channels = {layer.channels for layer in encoder._flatten_layers() if isinstance(layer, Lab)}
    if channels != {"L", "ab"} or encoder.output_shape[-1] % 2:
        raise ValueError(
            f"encoder {encoder.name!r} has no two halves, of lightness and of colors: build it with "
            "keras_ssl.encoders.color_halves"
        )
