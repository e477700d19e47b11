"""Exemplar-CNN: samples seed patches where gradients are strong, and transforms them randomly.

Reference: Dosovitskiy, Fischer, Springenberg, Riedmiller & Brox, "Discriminative Unsupervised Feature
Learning with Exemplar Convolutional Neural Networks", PAMI 2016, section 3.1 (with the ranges below).
"""

import math

import tensorflow as tf

from keras_ssl import encoders
from keras_ssl.ops.random import normal, uniform

TRANSLATION = 0.2  # of the side of the patch
SCALE = (0.7, 1.4)  # of the patch
ROTATION = 20  # degrees, in either direction
CONTRAST = (0.5, 2.0)  # of each principal component of the colors
POWER, FACTOR, SUMMAND = (0.25, 4.0), (0.7, 1.4), 0.1  # of saturation and value, 0..1
HUE = 0.1  # of the color circle, in either direction
NUMBERS = 4 + 3 + 6 + 1  # random numbers per transformation

# The principal components of the colors of natural images: luminance, red-blue, green-magenta (Ohta, Kanade
# & Sakai, "Color Information for Region Segmentation", Computer Graphics and Image Processing 1980).
COMPONENTS = (
    (3**-0.5, 3**-0.5, 3**-0.5),
    (2**-0.5, 0.0, -(2**-0.5)),
    (6**-0.5, -2 * 6**-0.5, 6**-0.5),
)


def strong_corners(image, seed, size):
    """Samples a patch of each image, with probability proportional to its squared gradients.

    Args:
        image: (B, H, W, C) tensor in 0..255.
        seed: (B, 2) int64 tensor, one seed per image.
        size: int, side of the patch in pixels.

    Returns:
        (B, 2) int32 tensor, row and column of the upper left pixel. In a flat image all patches are
        equally likely.

    Example:
        >>> strong_corners(tf.zeros((2, 32, 32, 3)), tf.zeros((2, 2), tf.int64), 24).shape
        TensorShape([2, 2])
    """
    gray = tf.reduce_mean(tf.cast(image, tf.float32), axis=-1, keepdims=True)
    vertical, horizontal = tf.image.image_gradients(gray)
    energy = vertical**2 + horizontal**2
    for axis in (1, 2):  # sums over windows, as differences of cumulative sums
        sums = tf.cumsum(energy, axis=axis)
        before = tf.pad(sums, [[0, 0], *([1, 0] if a == axis else [0, 0] for a in (1, 2)), [0, 0]])
        windows = sums.shape[axis] - size + 1
        last = tf.gather(sums, tf.range(size - 1, size - 1 + windows), axis=axis)
        energy = last - tf.gather(before, tf.range(windows), axis=axis)
    energy = tf.maximum(energy[..., 0], 0.0) + 1e-3  # uniform in a flat image
    rows, columns = energy.shape[1:]
    cumulative = tf.cumsum(tf.reshape(energy, [-1, rows * columns]), axis=1)
    drawn = uniform(seed, 1) * cumulative[:, -1:]
    index = tf.searchsorted(cumulative, drawn, side="right")[:, 0]
    index = tf.minimum(index, rows * columns - 1)
    return tf.stack([index // columns, index % columns], axis=1)


def transform(image, corners, seed, size, noise=0.0):
    """Translates, scales, rotates and recolors a patch of each image, in the ranges of the paper.

    - translation by up to 0.2 of the patch, vertically and horizontally;
    - scale of the patch times 0.7 to 1.4; rotation by up to 20 degrees;
    - contrast: each principal component of the colors times 0.5 to 2;
    - saturation and value to the power of 0.25 to 4, times 0.7 to 1.4, plus -0.1 to 0.1;
    - hue plus -0.1 to 0.1 of the color circle;
    - Gaussian noise, which the paper does not have, on every channel of every pixel.

    Factors and powers are log-uniform. The image is mirrored at its border.

    Args:
        image: (B, H, W, 3) tensor in 0..255.
        corners: (B, 2) int32 tensor, as from `strong_corners`.
        seed: (B, 2) int64 tensor, one seed per image.
        size: int, side of the patch in pixels.
        noise: float, standard deviation of the noise, in the units of the pixels.

    Returns:
        (B, size, size, 3) float32 tensor in 0..255.

    Example:
        >>> x, seed = tf.zeros((2, 32, 32, 3)), tf.zeros((2, 2), tf.int64)
        >>> transform(x, strong_corners(x, seed, 24), seed, 24).shape
        TensorShape([2, 24, 24, 3])
    """
    random = uniform(seed, NUMBERS)
    patch = recolor(warp(image, corners, random[:, :4], size), random[:, 4:])
    if not noise:
        return patch
    # `normal` and `uniform` are independent for the same seed.
    drawn = tf.reshape(normal(seed, size * size * 3), [-1, size, size, 3])
    return tf.clip_by_value(patch + noise * drawn, 0, 255)


def warp(image, corners, random, size):
    """Applies the geometric part of `transform`: translation, scale and rotation, in one resampling.

    Args:
        image: (B, H, W, C) tensor.
        corners: (B, 2) int32 tensor.
        random: (B, 4) float tensor in 0..1, for row, column, scale and angle.
        size: int, side of the patch in pixels.

    Returns:
        (B, size, size, C) float32 tensor.
    """
    move = TRANSLATION * size * (2 * random[:, :2] - 1)
    scale = _between(random[:, 2], SCALE)
    angle = math.radians(ROTATION) * (2 * random[:, 3] - 1)
    row, column = tf.unstack(tf.cast(corners, tf.float32) + move, axis=1)
    center = (size - 1) / 2
    cosine, sine = scale * tf.cos(angle), scale * tf.sin(angle)
    zero = tf.zeros_like(angle)
    # From output (x, y) to input (x, y); the center of the patch is fixed.
    matrix = tf.stack(
        [
            cosine, -sine, column + center - center * (cosine - sine),
            sine, cosine, row + center - center * (cosine + sine), zero, zero,
        ],
        axis=1,
    )  # fmt: skip
    patch = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(image, tf.float32), transforms=matrix, output_shape=[size, size],
        fill_value=0.0, interpolation="BILINEAR", fill_mode="REFLECT",
    )  # fmt: skip
    return tf.ensure_shape(patch, [None, size, size, image.shape[-1]])


def recolor(patch, random):
    """Applies the color part of `transform`: contrast, saturation, value and hue.

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
    # The power has no finite gradient at 0, but pretext needs no gradients.
    vivid = tf.clip_by_value(hsv[..., 1:] ** power * factor + summand, 0, 1)
    hue = tf.math.floormod(hsv[..., :1] + HUE * (2 * random[..., 9:] - 1), 1.0)
    return 255 * tf.image.hsv_to_rgb(tf.concat([hue, vivid], axis=-1))


def _between(random, bounds):
    low, high = bounds
    return low * (high / low) ** random


def check_noise(noise):
    """Validates `noise`, a standard deviation in the units of the pixels.

    Args:
        noise: float.

    Raises:
        ValueError: `noise` is not in 0..255.
    """
    if not 0 <= noise <= 255:
        raise ValueError(
            f"noise must be in 0..255, a standard deviation for pixels in 0..255, got {noise!r}"
        )


def check_patch(encoder, patch=None):
    """Checks the size of the seed patches, and fills in its default.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D).
        patch: int, side in pixels, or None for a third of the image as in the paper (32 of 96), but at
            least 24, or the whole image if that is smaller.

    Returns:
        int, pixels.

    Raises:
        ValueError: the patch is larger than the image, or too small for the encoder; the encoder does not
            take images of fixed size with 3 channels.
    """
    height, width, channels = encoder.input_shape[1:]
    if height is None or width is None or channels != 3:
        raise ValueError(
            f"encoder must take images of fixed size with 3 channels, got {encoder.input_shape}"
        )
    side = min(height, width)
    if patch is None:
        patch = min(side, max(24, side // 3))
    if not 1 <= patch <= side:
        raise ValueError(f"patch must be in 1..{side}, the side of the images, got {patch!r}")
    encoders.check_patches(encoder, patch, patch)
    return patch
