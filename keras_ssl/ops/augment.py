"""Random augmentation of images, with one seed per image."""

import tensorflow as tf

from keras_ssl.arguments import is_number
from keras_ssl.ops import filters
from keras_ssl.ops.jitter import color_jitter
from keras_ssl.ops.random import uniform

ATTEMPTS = 10  # candidate crops per image; the first one that fits is used
# Random numbers of a view: for the crop, for the colors, and for gray, blur and solarize. Their positions
# are the same in all recipes, so that recipes with different colors give the same crops.
CROP_NUMBERS, COLOR_NUMBERS, OTHER_NUMBERS = 2 * ATTEMPTS + 3, 6, 4


def view(image, seed, recipe):
    """Computes a random view of each image: crop, flip, color jitter, grayscale, blur, solarize.

    Every image gets its own random numbers and its own order of the color operations, independent of
    its batch. Pixels are clipped to 0..255 after each color operation, as in the code of the recipes.

    The crop is the same as in torchvision's `RandomResizedCrop`: the area and the logarithm of the aspect
    ratio are uniform, and the first of ten candidates that fits into the image is used. If none fits, the
    crop is the largest central one with an allowed aspect ratio. Unlike torchvision's, the corners are not
    rounded to whole pixels. An area of (1, 1) means no crop, for any aspect ratio. The output has the size of
    the input, so crops are only enlarged and need no antialiasing.

    Args:
        image: (B, H, W, 3) tensor in 0..255, uint8 or float32.
        seed: (B, 2) int64 tensor, one seed per image.
        recipe: Recipe, as in `keras_ssl.ops.recipes`.

    Returns:
        (B, H, W, 3) float32 tensor in 0..255.

    Raises:
        ValueError: `image` is not (B, H, W, 3), or `seed` not (B, 2).

    Reference: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations",
    ICML 2020, appendix A.

    Example:
        >>> from keras_ssl.ops import random, recipes
        >>> image, seed = tf.zeros((2, 8, 8, 3), tf.uint8), tf.constant([[0, 1], [0, 2]], tf.int64)
        >>> [view(image, s, recipes.SIMCLR_SMALL).shape for s in random.split(seed, 2)]
        [TensorShape([2, 8, 8, 3]), TensorShape([2, 8, 8, 3])]
    """
    image = tf.convert_to_tensor(image)
    if not image.shape.is_compatible_with([None, None, None, 3]):
        raise ValueError(f"image must be (B, H, W, 3), RGB in 0..255, got shape {image.shape}")
    numbers = uniform(seed, CROP_NUMBERS + COLOR_NUMBERS + OTHER_NUMBERS)
    crop, color, other = tf.split(numbers, [CROP_NUMBERS, COLOR_NUMBERS, OTHER_NUMBERS], axis=1)
    size = tf.shape(image)
    if recipe.area == (1.0, 1.0) and not recipe.flip:
        changed = tf.cast(image, tf.float32)
    else:
        boxes = crop_boxes(crop, size[1:3], recipe)
        changed = tf.image.crop_and_resize(image, boxes, tf.range(size[0]), size[1:3])
    changed = color_jitter(changed, color, recipe)
    gray, blurred, width, solarized = tf.unstack(other, axis=1)
    changed = _where(gray < recipe.gray, recipe.gray, changed, filters.to_gray)
    low, high = recipe.sigma
    sigma = low + (high - low) * width
    changed = _where(
        blurred < recipe.blur,
        recipe.blur,
        changed,
        lambda x, s: filters.blur(x, s, recipe.kernel),
        sigma,
    )
    changed = _where(
        solarized < recipe.solarize,
        recipe.solarize,
        changed,
        lambda x: filters.solarize(x, recipe.threshold),
    )
    # Rounding errors of saturation and hue can exceed the range by about 1e-5.
    changed = tf.raw_ops.ClipByValue(t=changed, clip_value_min=0.0, clip_value_max=255.0)
    return tf.ensure_shape(changed, image.shape)


def crop_boxes(random, size, recipe):
    """Draws a crop of each image, as torchvision's `RandomResizedCrop` does.

    Args:
        random: (B, 23) float32 tensor in [0, 1).
        size: (2,) int32 tensor, height and width in pixels.
        recipe: Recipe; its area, aspect and flip are used.

    Returns:
        (B, 4) float32 tensor: top, left, bottom, right, where 0 is the center of the first pixel and 1 the
        center of the last one. Left and right are swapped if the image is mirrored.
    """
    # In float64, since the last digit of an exponential depends on the position in the batch (see
    # random.normal).
    random = tf.cast(random, tf.float64)
    ratio = tf.cast(size[1] / size[0], tf.float64)  # of the image
    (least, most), (narrow, wide) = recipe.area, recipe.aspect
    area = least + (most - least) * random[:, :ATTEMPTS]
    aspect = narrow * (wide / narrow) ** random[:, ATTEMPTS : 2 * ATTEMPTS] / ratio
    sides = tf.sqrt(tf.stack([area / aspect, area * aspect], axis=-1))  # (B, 10, 2) fractions
    if recipe.area == (1.0, 1.0):
        sides = tf.ones_like(sides)
    fits = tf.reduce_all(sides <= 1, axis=-1)
    first = tf.gather(sides, tf.argmax(tf.cast(fits, tf.int32), axis=1), batch_dims=1)
    allowed = tf.clip_by_value(ratio, narrow, wide) / ratio
    largest = tf.minimum(tf.stack([1 / allowed, allowed]), 1)
    sides = tf.where(tf.reduce_any(fits, axis=1)[:, None], first, largest)
    # In the center if no candidate fits.
    place = tf.where(
        tf.reduce_any(fits, axis=1)[:, None], random[:, 2 * ATTEMPTS : 2 * ATTEMPTS + 2], 0.5
    )
    start = place * (1 - sides)
    (top, left), (bottom, right) = tf.unstack(start, axis=1), tf.unstack(start + sides, axis=1)
    mirror = random[:, 2 * ATTEMPTS + 2] < recipe.flip
    left, right = tf.where(mirror, right, left), tf.where(mirror, left, right)
    return tf.cast(tf.stack([top, left, bottom, right], axis=1), tf.float32)


def _where(drawn, probability, image, function, *values):
    """Applies a function to the selected images only, and to their rows of each of the values."""
    if not probability:
        return image
    if probability == 1:
        return function(image, *values)
    rows = tf.where(drawn)
    chosen = [tf.gather(x, rows[:, 0]) for x in (image, *values)]
    return tf.tensor_scatter_nd_update(image, rows, function(*chosen))


def random_shift(image, seed, fraction, flip):
    """Shifts each image by a random number of whole pixels, mirrored at the border.

    Args:
        image: (B, H, W, C) tensor.
        seed: (B, 2) int64 tensor, one seed per image.
        fraction: float in 0..1, the largest shift as a fraction of height and width.
        flip: bool, whether to mirror each image horizontally with probability 0.5.

    Returns:
        (B, H, W, C) tensor of the same dtype.

    Example:
        >>> x = tf.zeros((2, 8, 8, 3), tf.uint8)
        >>> random_shift(x, tf.zeros((2, 2), tf.int64), fraction=0.25, flip=True).shape
        TensorShape([2, 8, 8, 3])
    """
    random = uniform(seed, 3)
    for axis, mirror in ((1, False), (2, flip)):
        size = image.shape[axis]
        largest = round(fraction * size)
        shift = tf.cast(tf.floor(random[:, axis - 1] * (2 * largest + 1)), tf.int32) - largest
        index = tf.range(size)[None] + shift[:, None]
        index = size - 1 - tf.abs(size - 1 - tf.abs(index))
        if mirror:
            index = tf.where(random[:, 2:] < 0.5, index[:, ::-1], index)
        image = tf.gather(image, index, axis=axis, batch_dims=1)
    return image


def random_crop(image, seed, smallest, flip=True):
    """Crops a random region of each image and resizes it bilinearly to the size of the image.

    Args:
        image: (B, H, W, C) tensor.
        seed: (B, 2) int64 tensor, one seed per image.
        smallest: float in 0..1, the smallest fraction of the area. The aspect ratio changes by up to 4:3, but
            no side of the crop gets longer than that of the image.
        flip: bool, whether to mirror each image horizontally with probability 0.5.

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
    # No side is longer than the image, and the area is kept, so a large crop is nearly square.
    stretch = tf.clip_by_value(stretch, side, 1 / side)
    height, width = side * stretch, tf.minimum(side / stretch, 1.0)
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
    """Validates `crop`, the smallest fraction of the area that a random crop keeps.

    Args:
        crop: float.

    Raises:
        ValueError: `crop` is not in (0, 1].
    """
    if not is_number(crop) or not 0 < crop <= 1:
        raise ValueError(f"crop must be in (0, 1], got {crop!r}")
