"""Which part of a picture to hide: pure functions, 1 where hidden, from one seed per image."""

import tensorflow as tf

from keras_ssl.ops.random import uniform

HIDDEN = 0.25  # the share of the picture that is hidden, as in Pathak et al.


def centre(seed, height, width):
    """Hides the square in the middle, half as high and as wide as the picture.

    Args:
        seed: (B, 2) int64 tensor; only its length counts.
        height, width: int, pixels.

    Returns:
        (B, height, width, 1) float32 tensor of ones (hidden) and zeros.

    Example:
        >>> centre(tf.zeros((1, 2), tf.int64), 4, 4)[0, ..., 0].numpy().sum()
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
    """Hides four rectangles at random places, which may overlap: up to a quarter of the picture.

    With a hole that always lies in the middle the network learns features of its border only
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
    # All of one area, of different shapes.
    side, stretch = (HIDDEN / number) ** 0.5, 2.0 ** (2 * random[..., 0] - 1)
    high, wide = side * tf.sqrt(stretch), side / tf.sqrt(stretch)

    def within(length, size, place):
        size = tf.maximum(tf.floor(size * length), 1)
        start = tf.floor(place * (length - size + 1))
        index = tf.range(length, dtype=tf.float32)
        return (index >= start[..., None]) & (index < (start + size)[..., None])

    rows, columns = within(height, high, random[..., 1]), within(width, wide, random[..., 2])
    inside = tf.reduce_any(rows[..., :, None] & columns[..., None, :], axis=1)
    return tf.cast(inside, tf.float32)[..., None]


def irregular(seed, height, width):
    """Hides a quarter of the picture, in patches of no particular shape.

    Straight edges are low-level features that the network would latch on to; the paper takes the
    outlines of segmented objects, here they are those of smooth noise above its own upper quartile.

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
    """The border around what is hidden: the visible pixels no farther away than so many.

    Args:
        mask: (B, H, W, 1) float tensor of ones (hidden) and zeros.
        pixels: int, in both directions.

    Returns:
        (B, H, W, 1) float32 tensor, 1 in the border.

    Example:
        >>> band(centre(tf.zeros((1, 2), tf.int64), 4, 4), 1).numpy().sum()
        np.float32(12.0)
    """
    grown = tf.nn.max_pool2d(mask, 2 * pixels + 1, 1, "SAME") if pixels else mask
    return grown - mask
