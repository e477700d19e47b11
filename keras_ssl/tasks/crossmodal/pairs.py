"""Pairs of an image and its depth map."""

import numpy as np
import tensorflow as tf

from keras_ssl.ops import augment


def shifted(batch, seed):
    """Shifts and flips an image and its depth map alike, by whole pixels.

    Nothing is zoomed: an object would appear nearer while its depth stays the same. Depth is not
    interpolated: that would create surfaces between an object and its background.

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


def shades(pixels, like):
    """Draws depth in gray for people: white is near, dark is far, blue is unknown.

    Args:
        pixels: (B, H, W, 3) array or tensor of `ops.depth.to_image`.
        like: an array of the same kind; in each image its nearest pixels are white and its farthest are dark.

    Returns:
        (B, H, W, 3) float32 array in 0..255.

    Example:
        >>> from keras_ssl.ops import depth
        >>> pixels = depth.to_image(tf.constant([1.0, 2.0, 4.0, float("nan")])[None, :, None, None], 1.0, 4.0)
        >>> shades(pixels, pixels)[0, :, 0].tolist()
        [[255.0, 255.0, 255.0], [147.0, 147.0, 147.0], [40.0, 40.0, 40.0], [0.0, 0.0, 120.0]]
    """
    pixels, like = np.asarray(pixels), np.asarray(like)
    level, known = like[..., :1], like[..., 2:] > 0
    near = level.min(axis=(1, 2, 3), where=known, initial=255, keepdims=True)
    far = level.max(axis=(1, 2, 3), where=known, initial=0, keepdims=True)
    gray = 40 + 215 * np.clip((far - pixels[..., :1]) / np.maximum(far - near, 1), 0, 1)
    return np.where(pixels[..., 2:] > 0, np.round(gray), np.float32([0, 0, 120]))
