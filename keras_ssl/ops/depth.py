"""Depth maps: depth from disparity, known pixels, and depth as the input of an encoder."""

import math

import tensorflow as tf

from keras_ssl.arguments import check_positive

MIN_DEPTH = 1e-6  # meters; TensorFlow may round smaller numbers to 0, whose logarithm is infinite


def known(depth):
    """Returns where depth is known: a positive, finite number.

    Args:
        depth: float tensor, meters; NaN, 0, negative or infinite where unknown.

    Returns:
        bool tensor of the same shape.

    Example:
        >>> known(tf.constant([2.0, 0.0, -1.0, math.nan, math.inf])).numpy().tolist()
        [True, False, False, False, False]
    """
    return (depth >= MIN_DEPTH) & (depth < math.inf)


def log(depth):
    """Computes the logarithm of depth, 0 where it is unknown.

    Args:
        depth: float tensor, meters.

    Returns:
        float tensor of the same shape; its gradient is finite, too.

    Example:
        >>> log(tf.constant([math.e, math.nan])).numpy().round(3).tolist()
        [1.0, 0.0]
    """
    return tf.math.log(tf.where(known(depth), depth, tf.ones_like(depth)))


def from_disparity(disparity, focal, baseline, offset=0.0):
    """Computes depth from the disparity of a rectified stereo pair.

    Depth is focal * baseline / (disparity + offset). A disparity that is 0, negative or not finite marks a
    pixel without a match.

    Args:
        disparity: float tensor, pixels: column in the left image minus column in the right one.
        focal: focal length in pixels.
        baseline: distance of the cameras in meters.
        offset: column of the right camera's principal point minus the column of the left camera's, in pixels;
            Middlebury calls it doffs.

    Returns:
        float32 tensor of the same shape: meters, NaN where unknown.

    Example:
        >>> from_disparity(tf.constant([50.0, 0.0]), focal=1000.0, baseline=0.2).numpy().tolist()
        [4.0, nan]
    """
    disparity = tf.cast(disparity, tf.float32)
    shifted = disparity + offset
    matched = known(disparity) & known(shifted)
    depth = focal * baseline / tf.where(matched, shifted, tf.ones_like(shifted))
    return tf.where(matched, depth, tf.fill(tf.shape(depth), math.nan))


def to_image(depth, near, far):
    """Converts depth maps to pixels, the input of an encoder for depth.

    The three channels are the logarithm of depth (0 at `near`, 255 at `far`), the inverse of depth (255 at
    `near`, 0 at infinity), and whether depth is known (255 or 0). Unknown pixels are 0 in all channels. Depth
    outside of `near` and `far` is clipped. Pixels are whole numbers, so that an export, which takes uint8,
    sees the same values as training.

    Args:
        depth: (..., 1) float tensor, meters; NaN, 0 or infinite where unknown.
        near, far: meters, 0 < near < far.

    Returns:
        (..., 3) float32 tensor in 0..255.

    Raises:
        ValueError: `near` and `far` are not 0 < near < far.

    Example:
        >>> to_image(tf.constant([[1.0], [4.0], [16.0], [math.nan]]), 1.0, 16.0).numpy().tolist()
        [[0.0, 255.0, 255.0], [128.0, 64.0, 255.0], [255.0, 16.0, 255.0], [0.0, 0.0, 0.0]]
    """
    check_range(near, far)
    depth = tf.cast(depth, tf.float32)
    valid = known(depth)
    depth = tf.clip_by_value(tf.where(valid, depth, tf.ones_like(depth)), near, far)
    channels = [
        tf.math.log(depth / near) / math.log(far / near),
        near / depth,
        tf.ones_like(depth),
    ]
    pixels = tf.round(255 * tf.concat(channels, axis=-1))
    return tf.where(valid, pixels, tf.zeros_like(pixels))


def check_range(near, far):
    """Raises ValueError unless 0 < near < far, both finite."""
    if not check_positive("near", near) < check_positive("far", far):
        raise ValueError(f"near must be less than far, got {near!r} and {far!r}")
