"""Patch operations: cut patches and tiles, and remove low-level cues that would be shortcuts."""

import math

import tensorflow as tf

from keras_ssl.ops.images import luminance
from keras_ssl.ops.random import normal, uniform

# The green-magenta axis, along which chromatic aberration is visible: lenses focus green differently.
GREEN_MAGENTA = (-1.0, 2.0, -1.0)


def cut(image, corners, size):
    """Crops square patches from each image, without interpolation.

    Args:
        image: (B, H, W, C) tensor.
        corners: (B, V, 2) int32 tensor, row and column of each patch's upper left pixel; or
            (B, V, C, 2), one corner for each channel. The patches must lie inside the image.
        size: int, pixels, height and width of a patch.

    Returns:
        (B, V, size, size, C) tensor of the image's dtype.

    Example:
        >>> x = tf.reshape(tf.range(16), (1, 4, 4, 1))
        >>> cut(x, tf.constant([[[1, 2]]]), 2)[0, 0, ..., 0].numpy().tolist()
        [[6, 7], [10, 11]]
    """
    height, width, channels = image.shape[1:]
    if corners.shape.rank == 3:
        corners = corners[:, :, None]
    rows, columns = (corners[:, :, None, None, :, axis] for axis in (0, 1))
    steps = tf.range(size)
    index = (rows + steps[:, None, None]) * width + columns + steps[:, None]
    index = index * channels + tf.range(channels)
    pixels = tf.reshape(image, [-1, height * width * channels])
    return tf.gather(pixels, index, axis=1, batch_dims=1)


def normalize(patches):
    """Normalizes each channel of each patch to the same mean and standard deviation.

    Adjacent patches have similar brightness and contrast, a shortcut for finding which patches belong
    together (Noroozi & Favaro, ECCV 2016, section 4.2; the code of Doersch et al., ICCV 2015). The mean and
    the standard deviation are those of an average photograph, so that the encoder later sees whole images in
    the same range.

    Args:
        patches: (..., H, W, C) tensor in 0..255.

    Returns:
        (..., H, W, C) float32 tensor with mean 127.5 and standard deviation 64. The standard deviation
        of nearly constant patches stays smaller, down to 0, so that noise is not amplified.

    Example:
        >>> float(tf.math.reduce_std(normalize(tf.constant([[[[0.0], [200.0]]]]))))
        64.0
    """
    patches = tf.cast(patches, tf.float32)
    mean, variance = tf.nn.moments(patches, [-3, -2], keepdims=True)
    return 127.5 + 64 * (patches - mean) / tf.sqrt(tf.maximum(variance, 1.0))


def gray(patches, chosen):
    """Converts all patches of the chosen images to grayscale.

    Args:
        patches: (B, V, H, W, 3) tensor in 0..255.
        chosen: (B,) bool tensor, the images to convert.

    Returns:
        (B, V, H, W, 3) float32 tensor; gray patches have three equal channels, their luma.

    Example:
        >>> gray(tf.constant([[[[[255.0, 0.0, 0.0]]]]]), tf.constant([True])).numpy().round().tolist()
        [[[[[76.0, 76.0, 76.0]]]]]
    """
    patches = tf.cast(patches, tf.float32)
    return tf.where(chosen[:, None, None, None, None], luminance(patches), patches)


def project_colors(x):
    """Removes the green-magenta component of colors, and with it chromatic aberration.

    A lens focuses green differently from red and blue, and the color fringes reveal where in the image a
    patch was. Every pixel is multiplied by B = I - a'a / (aa') with a = (-1, 2, -1).

    Args:
        x: (..., 3) tensor in 0..255.

    Returns:
        (..., 3) float32 tensor; grays are unchanged.

    Reference: Doersch, Gupta & Efros, "Unsupervised Visual Representation Learning by Context
    Prediction", ICCV 2015, section 3.1 ("projection").

    Example:
        >>> project_colors(tf.constant([0.0, 240.0, 0.0])).numpy().round().tolist()
        [80.0, 80.0, 80.0]
    """
    x = tf.cast(x, tf.float32)
    axis = tf.constant(GREEN_MAGENTA)
    return x - tf.reduce_sum(x * axis, axis=-1, keepdims=True) * axis / tf.reduce_sum(axis**2)


def drop_colors(patches, seed):
    """Keeps one random channel of each patch and replaces the other two by weak noise.

    A single channel has no color fringes, so chromatic aberration is removed completely. The noise is
    Gaussian around mid-gray, with a hundredth of the standard deviation of the channel that is kept.

    Args:
        patches: (B, V, H, W, 3) tensor in 0..255.
        seed: (B, 2) int64 tensor, one seed per image.

    Returns:
        (B, V, H, W, 3) float32 tensor.

    Reference: Doersch, Gupta & Efros, ICCV 2015, section 3.1 ("color dropping").

    Example:
        >>> drop_colors(tf.zeros((2, 9, 8, 8, 3)), tf.zeros((2, 2), tf.int64)).shape
        TensorShape([2, 9, 8, 8, 3])
    """
    patches = tf.cast(patches, tf.float32)
    shape = patches.shape[1:]
    noise = tf.reshape(normal(seed, math.prod(shape)), [-1, *shape])
    kept = tf.one_hot(tf.cast(3 * uniform(seed, shape[0]), tf.int32), 3)[:, :, None, None]
    _, variance = tf.nn.moments(tf.reduce_sum(kept * patches, axis=-1), [2, 3])
    return kept * patches + (1 - kept) * (
        127.5 + noise * tf.sqrt(variance)[:, :, None, None, None] / 100
    )


def tiles(image, seed, grid, size, jitter):
    """Divides each image into a grid of cells and crops one tile at a random position of each cell.

    Args:
        image: (B, H, W, C) tensor; the cells have a side of min(H, W) // grid pixels, and the position
            of the grid in the image is random.
        seed: (B, 2) int64 tensor, one seed per image.
        grid: int, cells per row and per column.
        size: int, side of a tile in pixels.
        jitter: int, the largest shift of each channel of a tile in pixels. Tiles stay
            inside their cell: size + 2 * jitter must not exceed the side of a cell.

    Returns:
        (B, grid * grid, size, size, C) tensor of the image's dtype, in row-major order.

    Reference: Noroozi & Favaro, ECCV 2016, section 4.2.

    Example:
        >>> tiles(tf.zeros((2, 32, 32, 3)), tf.zeros((2, 2), tf.int64), 3, 8, 1).shape
        TensorShape([2, 9, 8, 8, 3])
    """
    height, width, channels = image.shape[1:]
    cell, number = min(height, width) // grid, grid * grid
    random = uniform(seed, 2 + number * 2 * (1 + channels))
    free = tf.constant([height, width], tf.float32) - cell * grid + 1
    corner = tf.cast(random[:, None, :2] * free, tf.int32)
    steps = tf.range(grid) * cell
    cells = tf.reshape(tf.stack(tf.meshgrid(steps, steps, indexing="ij"), -1), [number, 2])
    offsets, shifts = random[:, 2 : 2 + number * 2], random[:, 2 + number * 2 :]
    offsets = tf.reshape(offsets, [-1, number, 2]) * (cell - size - 2 * jitter + 1)
    corners = corner + cells + jitter + tf.cast(offsets, tf.int32)
    if jitter:
        shifts = tf.reshape(shifts, [-1, number, channels, 2]) * (2 * jitter + 1)
        corners = corners[:, :, None] + tf.cast(shifts, tf.int32) - jitter
    return cut(image, corners, size)
