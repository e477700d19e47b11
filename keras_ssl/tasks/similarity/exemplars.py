"""Seed patches where something is to be seen, and random transformations of them (Exemplar-CNN).

Reference: Dosovitskiy, Fischer, Springenberg, Riedmiller & Brox, "Discriminative Unsupervised Feature
Learning with Exemplar Convolutional Neural Networks", PAMI 2016, section 3.1, which the ranges are from.
"""

import math

import tensorflow as tf

from keras_ssl import encoders
from keras_ssl.ops.random import uniform

TRANSLATION = 0.2  # of the patch
SCALE = (0.7, 1.4)  # of the patch
ROTATION = 20  # degrees, to either side
CONTRAST = (0.5, 2.0)  # of each principal component of the colours
POWER, FACTOR, SUMMAND = (0.25, 4.0), (0.7, 1.4), 0.1  # of saturation and value, 0..1
HUE = 0.1  # of the circle, to either side
NUMBERS = 4 + 3 + 6 + 1  # random numbers of one transformation

# The principal components of natural pictures' colours: luminance, blue-yellow, red-green (Ruderman,
# Cronin & Chiao, "Statistics of Cone Responses to Natural Images", JOSA A 1998).
COMPONENTS = (
    (3**-0.5, 3**-0.5, 3**-0.5),
    (2**-0.5, 0.0, -(2**-0.5)),
    (6**-0.5, -2 * 6**-0.5, 6**-0.5),
)


def strong_corners(image, seed, size):
    """A random patch of each picture, the likelier the stronger the gradients in it.

    Args:
        image: (B, H, W, C) tensor in 0..255.
        seed: (B, 2) int64 tensor, one seed per image.
        size: int, pixels, height and width of the patch.

    Returns:
        (B, 2) int32 tensor, row and column of the upper left pixel. In a flat picture all patches are
        alike likely.

    Example:
        >>> strong_corners(tf.zeros((2, 32, 32, 3)), tf.zeros((2, 2), tf.int64), 24).shape
        TensorShape([2, 2])
    """
    gray = tf.reduce_mean(tf.cast(image, tf.float32), axis=-1, keepdims=True)
    vertical, horizontal = tf.image.image_gradients(gray)
    energy = vertical**2 + horizontal**2
    for axis in (1, 2):  # sums over windows: differences of cumulated sums
        sums = tf.cumsum(energy, axis=axis)
        before = tf.pad(sums, [[0, 0], *([1, 0] if a == axis else [0, 0] for a in (1, 2)), [0, 0]])
        windows = sums.shape[axis] - size + 1
        last = tf.gather(sums, tf.range(size - 1, size - 1 + windows), axis=axis)
        energy = last - tf.gather(before, tf.range(windows), axis=axis)
    energy = tf.maximum(energy[..., 0], 0.0) + 1e-3  # the same chance for all in a flat picture
    rows, columns = energy.shape[1:]
    shares = tf.cumsum(tf.reshape(energy, [-1, rows * columns]), axis=1)
    drawn = uniform(seed, 1) * shares[:, -1:]
    index = tf.searchsorted(shares, drawn, side="right")[:, 0]
    index = tf.minimum(index, rows * columns - 1)
    return tf.stack([index // columns, index % columns], axis=1)


def transform(image, corners, seed, size):
    """Moves, scales, turns and recolours a patch of each picture, by the paper's ranges.

    - translation by up to 0.2 of the patch, vertically and horizontally;
    - scale of the patch times 0.7 to 1.4; rotation by up to 20 degrees;
    - contrast: each principal component of the colours times 0.5 to 2;
    - saturation and value to the power of 0.25 to 4, times 0.7 to 1.4, plus -0.1 to 0.1;
    - hue plus -0.1 to 0.1 of the circle.

    Factors and powers are drawn evenly on a logarithmic scale. What lies beyond the picture is
    mirrored at its border.

    Args:
        image: (B, H, W, 3) tensor in 0..255.
        corners: (B, 2) int32 tensor, as from `strong_corners`.
        seed: (B, 2) int64 tensor, one seed per image.
        size: int, pixels, height and width of the patch.

    Returns:
        (B, size, size, 3) float32 tensor in 0..255.

    Example:
        >>> x, seed = tf.zeros((2, 32, 32, 3)), tf.zeros((2, 2), tf.int64)
        >>> transform(x, strong_corners(x, seed, 24), seed, 24).shape
        TensorShape([2, 24, 24, 3])
    """
    random = uniform(seed, NUMBERS)
    return recolor(warp(image, corners, random[:, :4], size), random[:, 4:])


def warp(image, corners, random, size):
    """The geometric half of `transform`: translation, scale and rotation in one bilinear resampling.

    Args:
        image: (B, H, W, C) tensor.
        corners: (B, 2) int32 tensor.
        random: (B, 4) float tensor in 0..1, for row, column, scale and angle.
        size: int, pixels.

    Returns:
        (B, size, size, C) float32 tensor.
    """
    move = TRANSLATION * size * (2 * random[:, :2] - 1)
    scale = _between(random[:, 2], SCALE)
    angle = math.radians(ROTATION) * (2 * random[:, 3] - 1)
    row, column = tf.unstack(tf.cast(corners, tf.float32) + move, axis=1)
    middle = (size - 1) / 2
    cosine, sine = scale * tf.cos(angle), scale * tf.sin(angle)
    zero = tf.zeros_like(angle)
    # Output (x, y) to input (x, y); the middle of the patch goes to the middle.
    matrix = tf.stack(
        [
            cosine, -sine, column + middle - middle * (cosine - sine),
            sine, cosine, row + middle - middle * (cosine + sine), zero, zero,
        ],
        axis=1,
    )  # fmt: skip
    patch = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(image, tf.float32), transforms=matrix, output_shape=[size, size],
        fill_value=0.0, interpolation="BILINEAR", fill_mode="REFLECT",
    )  # fmt: skip
    return tf.ensure_shape(patch, [None, size, size, image.shape[-1]])


def recolor(patch, random):
    """The other half of `transform`: contrast, saturation, value and hue.

    Args:
        patch: (B, H, W, 3) tensor in 0..255.
        random: (B, 10) float tensor in 0..1.

    Returns:
        (B, H, W, 3) float32 tensor in 0..255.
    """
    random = random[:, None, None]
    components = tf.constant(COMPONENTS)
    # Not `tf.matmul`: with tensors of 4 and 2 axes it can corrupt the heap (tensorflow#117700).
    projected = tf.tensordot((patch - 127.5) / 255, tf.transpose(components), 1)
    contrast = tf.tensordot(projected * _between(random[..., :3], CONTRAST), components, 1)
    hsv = tf.image.rgb_to_hsv(tf.clip_by_value(contrast + 0.5, 0, 1))
    power, factor = _between(random[..., 3:5], POWER), _between(random[..., 5:7], FACTOR)
    summand = SUMMAND * (2 * random[..., 7:9] - 1)
    # A power has no gradient at 0, but none is needed here.
    vivid = tf.clip_by_value(hsv[..., 1:] ** power * factor + summand, 0, 1)
    hue = tf.math.floormod(hsv[..., :1] + HUE * (2 * random[..., 9:] - 1), 1.0)
    return 255 * tf.image.hsv_to_rgb(tf.concat([hue, vivid], axis=-1))


def _between(random, bounds):
    low, high = bounds
    return low * (high / low) ** random


def check_patch(encoder, patch=None):
    """The size of the seed patches, and a refusal of what cannot be cut or encoded.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D).
        patch: int, pixels, or None for a third of the picture as in the paper (32 of 96), but at least
            24 or the whole picture where that is smaller.

    Returns:
        int, pixels.

    Raises:
        ValueError: a patch larger than the picture, or one that cannot go through the encoder; a
            picture without fixed size or with other than 3 channels.
    """
    height, width, channels = encoder.input_shape[1:]
    if height is None or width is None or channels != 3:
        raise ValueError(
            f"encoder must take pictures of fixed size with 3 channels, got {encoder.input_shape}"
        )
    side = min(height, width)
    if patch is None:
        patch = min(side, max(24, side // 3))
    if not 1 <= patch <= side:
        raise ValueError(f"patch must be in 1..{side}, the side of the pictures, got {patch!r}")
    encoders.check_patches(encoder, patch, patch)
    return patch
