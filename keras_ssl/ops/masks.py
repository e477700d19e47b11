"""Inpainting masks: which pixels of an image to hide. Pure functions of one seed per image."""

import tensorflow as tf

from keras_ssl.ops.random import uniform

HIDDEN = 0.25  # the fraction of the image that is hidden, as in Pathak et al.


def center(seed, height, width):
    """Creates masks that hide the central rectangle, half the height and half the width of the image.

    Args:
        seed: (B, 2) int64 tensor; only its length is used.
        height, width: int, pixels.

    Returns:
        (B, height, width, 1) float32 tensor of ones (hidden) and zeros.

    Example:
        >>> center(tf.zeros((1, 2), tf.int64), 4, 4)[0, ..., 0].numpy().sum()
        np.float32(4.0)
    """
    rows, columns = tf.range(height), tf.range(width)
    top, left = (height - height // 2) // 2, (width - width // 2) // 2
    inside = ((rows >= top) & (rows < top + height // 2))[:, None] & (
        (columns >= left) & (columns < left + width // 2)
    )
    mask = tf.cast(inside, tf.float32)[None, :, :, None]
    return tf.repeat(mask, tf.shape(seed)[0], axis=0)


def blocks(seed, height, width):
    """Creates masks that hide four random rectangles, which may overlap: up to a quarter of the image.

    If the hole is always in the center, the network learns low-level features of its fixed boundary
    (section 3.3 of the paper).

    Args:
        seed: (B, 2) int64 tensor, one seed per image.
        height, width: int, pixels.

    Returns:
        (B, height, width, 1) float32 tensor of ones (hidden) and zeros.

    Example:
        >>> blocks(tf.zeros((2, 2), tf.int64), 16, 16).shape
        TensorShape([2, 16, 16, 1])
    """
    number = 4
    random = tf.reshape(uniform(seed, 3 * number), [-1, number, 3])
    # All rectangles have the same area, but different aspect ratios.
    side, stretch = (HIDDEN / number) ** 0.5, 2.0 ** (2 * random[..., 0] - 1)
    high, wide = side * tf.sqrt(stretch), side / tf.sqrt(stretch)

    def within(length, size, position):
        size = tf.maximum(tf.floor(size * length), 1)
        start = tf.floor(position * (length - size + 1))
        index = tf.range(length, dtype=tf.float32)
        return (index >= start[..., None]) & (index < (start + size)[..., None])

    rows, columns = within(height, high, random[..., 1]), within(width, wide, random[..., 2])
    inside = tf.reduce_any(rows[..., :, None] & columns[..., None, :], axis=1)
    return tf.cast(inside, tf.float32)[..., None]


def irregular(seed, height, width):
    """Creates masks that hide a quarter of the image, in regions of arbitrary shape.

    The network could learn the straight edges of rectangles as low-level features. The paper uses the
    shapes of segmented objects; here the regions are where smooth noise exceeds its upper quartile.

    Args:
        seed: (B, 2) int64 tensor, one seed per image.
        height, width: int, pixels.

    Returns:
        (B, height, width, 1) float32 tensor of ones (hidden) and zeros.

    Example:
        >>> irregular(tf.zeros((2, 2), tf.int64), 16, 16).numpy().mean()
        np.float32(0.25)
    """
    coarse = 6
    noise = tf.reshape(uniform(seed, coarse * coarse), [-1, coarse, coarse, 1])
    noise = tf.image.resize(noise, (height, width), "bicubic")
    flat = tf.reshape(noise, [-1, height * width])
    number = max(round(HIDDEN * height * width), 1)
    least = tf.math.top_k(flat, number).values[:, -1]
    return tf.cast(noise >= least[:, None, None, None], tf.float32)


def band(mask, pixels):
    """Finds the band of visible pixels around the hidden ones.

    Args:
        mask: (B, H, W, 1) float tensor of ones (hidden) and zeros.
        pixels: int, the width of the band, vertically and horizontally, or None for all visible pixels.

    Returns:
        (B, H, W, 1) float32 tensor, 1 in the band.

    Example:
        >>> band(center(tf.zeros((1, 2), tf.int64), 4, 4), 1).numpy().sum()
        np.float32(12.0)
    """
    if pixels is None:
        return 1 - mask
    grown = tf.nn.max_pool2d(mask, 2 * pixels + 1, 1, "SAME") if pixels else mask
    return grown - mask
