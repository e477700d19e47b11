"""Image operations: fold views into the batch, rotate, resize images and depth, luminance.

Pure TensorFlow functions, which run eagerly, in tf.data and in a SavedModel.
"""

import numpy as np
import tensorflow as tf

LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


def fold(x):
    """Folds axis 1 (rotations, tiles, views) into the batch axis.

    Args:
        x: (B, V, ...) tensor.

    Returns:
        (B * V, ...) tensor, in which the V entries of an image are consecutive.

    Example:
        >>> fold(tf.zeros((2, 4, 8, 8, 3))).shape
        TensorShape([8, 8, 8, 3])
    """
    folded = tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], 0))
    return tf.ensure_shape(folded, [None, *x.shape[2:]])


def unfold(x, number):
    """Splits the batch axis again: the inverse of `fold`.

    Args:
        x: (B * number, ...) tensor.
        number: int, entries per image.

    Returns:
        (B, number, ...) tensor.

    Example:
        >>> unfold(tf.zeros((8, 10)), 4).shape
        TensorShape([2, 4, 10])
    """
    unfolded = tf.reshape(x, tf.concat([[-1, number], tf.shape(x)[1:]], 0))
    return tf.ensure_shape(unfolded, [None, number, *x.shape[1:]])


def rotate(x, degrees):
    """Rotates images counter-clockwise by a multiple of 90 degrees, without interpolation.

    Args:
        x: (..., H, W, C) tensor.
        degrees: int, a multiple of 90.

    Returns:
        (..., H, W, C) tensor of the same dtype; (..., W, H, C) for odd multiples of 90.

    Raises:
        ValueError: `degrees` is not a multiple of 90.

    Example:
        >>> rotate(tf.constant([[1, 2], [3, 4]])[..., None], 90)[..., 0].numpy().tolist()
        [[2, 4], [1, 3]]
    """
    if degrees % 90:
        raise ValueError(f"degrees must be a multiple of 90, got {degrees}")
    turns = degrees // 90 % 4
    if turns % 2:
        rank = len(x.shape)
        x = tf.transpose(x, [*range(rank - 3), rank - 2, rank - 3, rank - 1])
    return tf.reverse(x, {0: [], 1: [-3], 2: [-3, -2], 3: [-2]}[turns])


def luminance(image):
    """Computes the luma of RGB pixels, by the weights of ITU-R BT.601.

    Args:
        image: (..., 3) float tensor.

    Returns:
        (..., 1) float tensor.

    Example:
        >>> luminance(tf.constant([255.0, 0.0, 0.0])).numpy().round().tolist()
        [76.0]
    """
    return tf.reduce_sum(image * LUMA_WEIGHTS, axis=-1, keepdims=True)


def resize(image, height, width):
    """Resizes an image to cover the given size, and crops its center.

    Only the crop is computed, so that memory and time depend on the image and the crop, not on the covering
    image: the covering image of 1 x 200,000 pixels would have 6,400,000 rows.

    Args:
        image: (H, W, C) uint8 tensor.
        height, width: int, pixels.

    Returns:
        (height, width, C) uint8 tensor, resized bilinearly, with antialiasing if it is downsampled.

    Example:
        >>> resize(tf.zeros((50, 100, 3), tf.uint8), 32, 32).shape
        TensorShape([32, 32, 3])
    """
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    target = tf.constant([height, width], tf.float32)
    scale, offset = _covering(size, target)
    start, end = _reached_columns(size, target, scale, offset)
    columns, channels = tf.cast(end - start, tf.int32), image.shape[-1]
    image = tf.slice(
        image, tf.concat([tf.cast(start, tf.int32), [0]], 0), tf.concat([columns, [-1]], 0)
    )
    image = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=[height, width],
        scale=scale,
        translation=start * scale - offset,
        kernel_type="triangle",
        antialias=True,
    )[0]
    # Rounding errors of means of pixels cannot leave 0..255.
    return tf.ensure_shape(tf.cast(tf.round(image), tf.uint8), (height, width, channels))


def resize_nearest(values, height, width):
    """Resizes an image of measurements as `resize` does, but copies the nearest value instead of averaging.

    It is for depth, whose mean over the edge of an object is the depth of neither side.

    Args:
        values: (H, W, C) tensor.
        height, width: int, pixels.

    Returns:
        (height, width, C) tensor of the same dtype.

    Example:
        >>> depth = tf.constant([[1.0, 1.0, 9.0, 9.0], [1.0, 1.0, 9.0, 9.0]])[..., None]
        >>> resize_nearest(depth, 1, 2)[..., 0].numpy().tolist()
        [[1.0, 9.0]]
    """
    size = tf.cast(tf.shape(values)[:2], tf.float32)
    scale, offset = _covering(size, tf.constant([height, width], tf.float32))
    for axis, length in enumerate((height, width)):
        place = tf.floor((tf.range(length, dtype=tf.float32) + 0.5 + offset[axis]) / scale[axis])
        index = tf.cast(tf.minimum(place, size[axis] - 1), tf.int32)  # rounding may exceed it
        values = tf.gather(values, index, axis=axis)
    return tf.ensure_shape(values, (height, width, values.shape[-1]))


def resize_intrinsics(intrinsics, size, height, width):
    """Computes the intrinsics of a camera for the image that `resize` returns.

    Args:
        intrinsics: (4,) float tensor, fx, fy, cx, cy in pixels; the center of the top left pixel is (0, 0).
        size: (2,) integer tensor, height and width of the image before.
        height, width: int, pixels.

    Returns:
        (4,) float32 tensor.

    Example:
        >>> resize_intrinsics([500.0, 500.0, 319.5, 239.5], [480, 640], 48, 48).numpy().tolist()
        [50.0, 50.0, 23.5, 23.5]
    """
    size = tf.cast(size, tf.float32)
    scale, offset = _covering(size, tf.constant([height, width], tf.float32))
    focal, center = tf.split(tf.cast(intrinsics, tf.float32), 2)
    scale, offset = scale[::-1], offset[::-1]  # x, y
    # The corner of the image, from which it is scaled, is half a pixel before the center of the first pixel.
    return tf.concat([focal * scale, (center + 0.5) * scale - 0.5 - offset], axis=0)


def _covering(size, target):
    """Returns the factors by which an image is scaled to cover the target, and the offset of the crop."""
    covering = tf.maximum(tf.round(size * tf.reduce_max(target / size)), target)
    return covering / size, tf.floor((covering - target) / 2)


def _reached_columns(size, target, scale, offset):
    """Returns where the region of an image that the crop is computed from starts and ends: (2,) float32.

    `ScaleAndTranslate` first reduces the number of rows, for all columns and in float32: `height` x W values.
    If the image is wide, it is cheaper to copy the columns first. Otherwise the whole image is returned.
    """
    # The kernel reaches one pixel in each direction, or more if the image is downsampled; a margin is for
    # rounding.
    reach = tf.maximum(1 / scale, 1) + 2
    start = tf.maximum(tf.floor(offset / scale - reach), 0)
    end = tf.minimum(tf.math.ceil((offset + target) / scale + reach), size)
    copied, reduced = size[0] * (end - start)[1], 4 * target[0] * size[1]  # bytes per channel
    cut = tf.stack([False, copied < reduced])
    return tf.where(cut, start, 0), tf.where(cut, end, size)


def enlarge(image, factor):
    """Upsamples images by bicubic interpolation, as two matrix products.

    Gives the result of `tf.image.resize(image, size, "bicubic")` (Keys' kernel, a = -0.5), for which XLA
    has no kernel.

    Args:
        image: (B, H, W, C) tensor of fixed height and width.
        factor: int, at least 1.

    Returns:
        (B, factor * H, factor * W, C) float32 tensor.

    Raises:
        ValueError: `factor` is below 1.

    Reference: Keys, "Cubic Convolution Interpolation for Digital Image Processing", IEEE TASSP 1981.

    Example:
        >>> enlarge(tf.ones((1, 4, 6, 3)), 2).shape
        TensorShape([1, 8, 12, 3])
    """
    if factor < 1:
        raise ValueError(f"factor must be at least 1, got {factor!r}")
    rows, columns = (tf.constant(_bicubic(side, factor)) for side in image.shape[1:3])
    image = tf.tensordot(tf.cast(image, tf.float32), rows, [[1], [1]])  # (B, W, C, new H)
    image = tf.tensordot(image, columns, [[1], [1]])  # (B, C, new H, new W)
    return tf.transpose(image, [0, 2, 3, 1])


def _bicubic(size, factor):
    """Computes the (factor * size, size) float32 weights of the input pixels in each output pixel."""
    centers = (np.arange(factor * size) + 0.5) / factor - 0.5
    # TensorFlow looks the kernel up in a table of 1,024 entries per pixel.
    centers = np.round(1024 * centers) / 1024
    distance = np.abs(centers[:, None] - np.arange(size))
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    # Pixels outside the image have no weight, so the others are renormalized at the border.
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
