"""Grayscale, Gaussian blur and solarization of images."""

import tensorflow as tf

from keras_ssl.ops import images


def to_gray(image):
    """Replaces each pixel by its luminance, in all three channels.

    Args:
        image: (B, H, W, 3) float32 tensor.

    Returns:
        (B, H, W, 3) float32 tensor.

    Example:
        >>> to_gray(tf.constant([[[[255.0, 0.0, 0.0]]]])).numpy().round().tolist()
        [[[[76.0, 76.0, 76.0]]]]
    """
    return tf.repeat(images.luminance(image), 3, axis=-1)


def blur(image, sigma, kernel):
    """Blurs each image by a Gaussian with its own standard deviation, mirrored at the border.

    Args:
        image: (B, H, W, 3) float32 tensor.
        sigma: (B,) float32 tensor, standard deviations in pixels.
        kernel: float in (0, 1], width of the kernel as a fraction of H; at least 3 pixels.

    Returns:
        (B, H, W, 3) float32 tensor.

    Example:
        >>> blur(tf.ones((1, 8, 8, 3)), tf.ones(1), 0.5).numpy().mean().round(3)
        np.float32(1.0)
    """
    size = tf.shape(image)
    height, width = size[1], size[2]
    radius = tf.maximum(tf.cast(kernel * tf.cast(height, tf.float64) / 2 + 1e-6, tf.int32), 1)
    rows = _blur_matrix(sigma, tf.minimum(radius, height - 1), height)
    columns = _blur_matrix(sigma, tf.minimum(radius, width - 1), width)
    image = tf.matmul(rows, tf.reshape(image, [-1, height, width * 3]))
    image = tf.transpose(tf.reshape(image, [-1, height, width, 3]), [0, 2, 1, 3])
    image = tf.matmul(columns, tf.reshape(image, [-1, width, height * 3]))
    return tf.transpose(tf.reshape(image, [-1, width, height, 3]), [0, 2, 1, 3])


def _blur_matrix(sigma, radius, length):
    """Returns (B, length, length) float32 matrices that blur a column of pixels, mirrored at both ends."""
    steps = tf.range(radius + 1)
    # In float64, as in crop_boxes.
    exponent = (tf.cast(steps, tf.float64) / tf.cast(sigma, tf.float64)[:, None]) ** 2
    weight = tf.exp(-exponent / 2)
    weight /= 2 * tf.reduce_sum(weight, axis=1, keepdims=True) - 1
    weight = tf.pad(tf.cast(weight, tf.float32), [[0, 0], [0, 1]])  # 0 beyond the radius
    index = tf.range(length)
    row, column = index[:, None], index[None]
    last = length - 1
    # A pixel contributes directly, and as its mirror images before the first and after the last pixel; the
    # first and the last pixel themselves are not mirrored.
    before = tf.where(column > 0, row + column, length)
    after = tf.where(column < last, 2 * last - row - column, length)
    distances = [tf.minimum(d, radius + 1) for d in (tf.abs(row - column), before, after)]
    return tf.add_n([tf.gather(weight, distance, axis=1) for distance in distances])


def solarize(image, threshold):
    """Inverts all pixels at or above a threshold.

    Args:
        image: (B, H, W, 3) float32 tensor in 0..255.
        threshold: float in 0..255.

    Returns:
        (B, H, W, 3) float32 tensor in 0..255.

    Example:
        >>> solarize(tf.constant([10.0, 250.0]), 127.5).numpy().tolist()
        [10.0, 5.0]
    """
    return tf.where(image < threshold, image, 255 - image)
