"""Encoders that see an image as a grid of patches."""

import keras
import numpy as np
from keras import ops

from keras_ssl.arguments import check_integers, is_integer
from keras_ssl.encoders.residual import STAGE, resnet
from keras_ssl.layers.patch_grid import PatchGrid


def patch_grid(
    input_shape, width=64, blocks=(2, 2, 2, 2), stem="small", synchronized=False, preprocessing=None,
    patch=None, stride=None,
):  # fmt: skip
    """Builds a residual network with layer normalization that computes the mean features of patches.

    A network that was trained on patches has never seen a whole image, which has another mean and variance
    and more distant edges. Here the network sees each patch separately. The default 49 patches have three
    times as many pixels as the image, and take about three times as long.

    Args:
        input_shape: (H, W, C) of the images.
        width, blocks, stem, preprocessing: as in `resnet`.
        synchronized: without effect, since there is no batch normalization.
        patch: int, side of a patch in pixels, or None for a quarter of the image's shorter side, rounded to
            an even number: 8 of 32, as usual for CIFAR, and 64 of 256, as in the first version of CPC.
        stride: int, pixels from patch to patch, or None for half a patch, which gives a grid of 7x7 patches.

    Returns:
        keras.Model from (B, H, W, C) pixels in 0..255 to (B, D) features as from `resnet`: the means of the
        features of the patches. The maps of its stages are the maps of the patches side by side.

    Raises:
        ValueError: `input_shape` is not (H, W, C) of fixed size, `patch` or `stride` is out of range, or for
            the same reasons as in `resnet`.

    Reference: Hénaff et al., "Data-Efficient Image Recognition with Contrastive Predictive Coding", ICML
    2020, section 3.

    Example:
        >>> patch_grid((32, 32, 3), width=16).output_shape
        (None, 128)
    """
    if np.shape(input_shape) != (3,) or None in input_shape:
        raise ValueError(
            f"input_shape must be (height, width, channels) of fixed size, got {input_shape!r}"
        )
    patch, stride = choose_grid(min(input_shape[:2]), patch, stride)
    network = resnet(
        (None, None, input_shape[2]), width, blocks, stem, False, preprocessing, "layer"
    )
    inputs = keras.Input(input_shape, name="images")
    cut = PatchGrid(patch, stride, name="grid")
    rows, columns = cut.grid(inputs.shape)
    x, start = cut(inputs), network.input
    for stage in range(1, len(blocks) + 1):
        end = network.get_layer(f"{STAGE}{stage}").output
        height, width, channels = x.shape[1] // rows, x.shape[2] // columns, x.shape[3]
        x = ops.reshape(x, (-1, rows, height, columns, width, channels))
        x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, height, width, channels))
        x = keras.Model(start, end, name=f"patches{stage}")(x)
        _, height, width, channels = x.shape
        x = ops.reshape(x, (-1, rows, columns, height, width, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        x = ops.reshape(x, (-1, rows * height, columns * width, channels))
        # Side by side again, so that the stage is on the way to the features.
        x, start = keras.layers.Identity(name=f"{STAGE}{stage}")(x), end
    features = keras.layers.GlobalAveragePooling2D(name="features", dtype="float32")(x)
    return keras.Model(inputs, features, name="patch_grid")


def choose_grid(side, patch=None, stride=None):
    """Chooses the size of patches and the stride if they are None, and checks them.

    Args:
        side: int, pixels of the shorter side of the image.
        patch, stride: as in `patch_grid`.

    Returns:
        (patch, stride): int.

    Raises:
        ValueError: `patch` is not in 1..side, or `stride` is less than 1.

    Example:
        >>> choose_grid(256)
        (64, 32)
    """
    patch = max(2, side // 8 * 2) if patch is None else patch
    if not is_integer(patch, 1) or patch > side:
        raise ValueError(f"patch must be an integer in 1..{side}, got {patch!r}")
    stride = max(1, patch // 2) if stride is None else stride
    check_integers(1, stride=stride)
    return patch, stride


def grid_of(encoder):
    """Returns the `layers.PatchGrid` of an encoder that was built by `patch_grid`, or else None."""
    return next((layer for layer in encoder.layers if isinstance(layer, PatchGrid)), None)


def patch_part(encoder):
    """Returns the network of single patches.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D).

    Returns:
        keras.Model from (B, h, w, C) to (B, D), which shares the weights of `encoder`; `encoder` itself if it
        was not built by `patch_grid`.

    Example:
        >>> patch_part(patch_grid((32, 32, 3), width=4)).input_shape
        (None, None, None, 3)
    """
    if grid_of(encoder) is None:
        return encoder
    inputs = x = keras.Input((None, None, encoder.input_shape[-1]))
    for part in encoder.layers:
        if isinstance(part, keras.Model):
            x = part(x)
    features = keras.layers.GlobalAveragePooling2D(dtype="float32")(x)
    return keras.Model(inputs, features, name="patch_encoder")
