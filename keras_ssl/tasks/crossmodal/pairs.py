"""Pairs of an image and its depth map."""

import tensorflow as tf

from keras_ssl.ops import augment


def shifted(batch, seed):
    """Shifts and flips an image and its depth map alike, by whole pixels.

    Nothing is zoomed: an object would appear nearer while its depth stays the same. Depth is not
    interpolated, which would invent surfaces between an object and its background.

    Args:
        batch: dict of `image` (B, H, W, 3) and `depth` (B, H, W, 1) tensors.
        seed: (B, 2) int64 tensor, one seed per image.

    Returns:
        (image, depth): float32 tensors of the same shapes.

    Example:
        >>> batch = {"image": tf.zeros((2, 8, 8, 3), tf.uint8), "depth": tf.ones((2, 8, 8, 1))}
        >>> [part.shape for part in shifted(batch, tf.zeros((2, 2), tf.int64))]
        [TensorShape([2, 8, 8, 3]), TensorShape([2, 8, 8, 1])]
    """
    both = tf.concat([tf.cast(batch[name], tf.float32) for name in ("image", "depth")], axis=-1)
    both = augment.random_shift(both, seed, fraction=0.125, flip=True)
    return both[..., :3], both[..., 3:]
