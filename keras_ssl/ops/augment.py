"""Random changes of images, one seed per image."""

import tensorflow as tf

from keras_ssl.ops.images import luminance
from keras_ssl.ops.random import uniform


def random_shift(image, seed, share, flip):
    """Moves each picture by a random number of whole pixels, mirrored at the border.

    Args:
        image: (B, H, W, C) tensor.
        seed: (B, 2) int64 tensor, one seed per image.
        share: float, the largest shift as a share of height and width, in 0..1.
        flip: bool, mirror every second picture, left to right.

    Returns:
        (B, H, W, C) tensor of the same dtype.

    Example:
        >>> x = tf.zeros((2, 8, 8, 3), tf.uint8)
        >>> random_shift(x, tf.zeros((2, 2), tf.int64), share=0.25, flip=True).shape
        TensorShape([2, 8, 8, 3])
    """
    random = uniform(seed, 3)
    for axis, mirror in ((1, False), (2, flip)):
        size = image.shape[axis]
        largest = round(share * size)
        shift = tf.cast(tf.floor(random[:, axis - 1] * (2 * largest + 1)), tf.int32) - largest
        index = tf.range(size)[None] + shift[:, None]
        index = size - 1 - tf.abs(size - 1 - tf.abs(index))
        if mirror:
            index = tf.where(random[:, 2:] < 0.5, index[:, ::-1], index)
        image = tf.gather(image, index, axis=axis, batch_dims=1)
    return image


def random_crop(image, seed, smallest, flip=True):
    """Cuts a random part out of each picture and enlarges it to the size of the whole (bilinear).

    Args:
        image: (B, H, W, C) tensor.
        seed: (B, 2) int64 tensor, one seed per image.
        smallest: float in 0..1, the smallest share of the area; the aspect ratio changes by up to 4:3.
        flip: bool, mirror every second picture, left to right.

    Returns:
        (B, H, W, C) float32 tensor.

    Reference: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6.

    Example:
        >>> random_crop(tf.zeros((2, 8, 8, 3)), tf.zeros((2, 2), tf.int64), smallest=0.3).shape
        TensorShape([2, 8, 8, 3])
    """
    area, aspect, top, left, mirror = tf.unstack(uniform(seed, 5), axis=1)
    side = tf.sqrt(smallest + (1 - smallest) * area)
    stretch = tf.exp((2 * aspect - 1) * tf.math.log(4 / 3) / 2)
    height, width = tf.minimum(side * stretch, 1.0), tf.minimum(side / stretch, 1.0)
    top, left = top * (1 - height), left * (1 - width)
    right = left + width
    if flip:
        left, right = tf.where(mirror < 0.5, right, left), tf.where(mirror < 0.5, left, right)
    boxes = tf.stack([top, left, top + height, right], axis=1)
    size = tf.shape(image)[1:3]
    image = tf.cast(image, tf.float32)
    crops = tf.image.crop_and_resize(image, boxes, tf.range(tf.shape(image)[0]), size)
    return tf.ensure_shape(crops, [None, *image.shape[1:]])


def check_crop(crop):
    """Refuses shares of the area that cannot be.

    Args:
        crop: float.

    Raises:
        ValueError: `crop` is not in 0..1, or 0.
    """
    if not 0 < crop <= 1:
        raise ValueError(f"crop must be in 0..1 and not 0, got {crop!r}")


def random_colors(image, seed, strength=0.4, gray=0.2):
    """Changes brightness, contrast and saturation of each picture at random; some become gray.

    Args:
        image: (B, H, W, 3) tensor in 0..255.
        seed: (B, 2) int64 tensor, one seed per image.
        strength: float in 0..1, each factor is drawn from 1 - strength to 1 + strength.
        gray: float in 0..1, the share of the pictures that become gray.

    Returns:
        (B, H, W, 3) float32 tensor in 0..255.

    Reference: Chen et al., "A Simple Framework for Contrastive Learning", ICML 2020, appendix A.

    Example:
        >>> random_colors(tf.ones((2, 8, 8, 3)), tf.zeros((2, 2), tf.int64)).shape
        TensorShape([2, 8, 8, 3])
    """
    image = tf.cast(image, tf.float32)
    random = uniform(seed, 4)
    factors = 1 + strength * (2 * random[:, :3] - 1)
    brightness, contrast, saturation = tf.unstack(factors[..., None, None, None], axis=1)
    saturation = tf.where(random[:, 3, None, None, None] < gray, 0.0, saturation)
    image *= brightness
    mean = tf.reduce_mean(image, axis=[1, 2, 3], keepdims=True)
    image = mean + contrast * (image - mean)
    without = luminance(image)
    return tf.clip_by_value(without + saturation * (image - without), 0, 255)
