"""Pure functions on pixels, in TensorFlow only: they run eagerly, in tf.data and in a SavedModel."""

import tensorflow as tf

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
MAX_PIXELS = 2**26  # 8192 x 8192
GIF_BLOCKS = 4096  # of up to 255 bytes, before the first frame


def fold(x):
    """Moves axis 1 (rotations, tiles, views) into the batch.

    Args:
        x: (B, V, ...) tensor.

    Returns:
        (B * V, ...) tensor with the V entries of an image next to one another.

    Example:
        >>> fold(tf.zeros((2, 4, 8, 8, 3))).shape
        TensorShape([8, 8, 8, 3])
    """
    folded = tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], 0))
    return tf.ensure_shape(folded, [None, *x.shape[2:]])


def unfold(x, number):
    """Moves axis 1 back out of the batch: the inverse of `fold`.

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
    """Rotates pictures counter-clockwise by a multiple of 90 degrees, without interpolation.

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


def uniform(seed, number):
    """Random numbers that depend on each image's own seed, whatever batch it is in.

    Args:
        seed: (B, 2) int64 tensor, one seed per image.
        number: int, numbers per image.

    Returns:
        (B, number) float32 tensor in [0, 1).

    Example:
        >>> uniform(tf.constant([[0, 1], [0, 2]], tf.int64), 3).shape
        TensorShape([2, 3])
    """
    return tf.map_fn(
        lambda one: tf.random.stateless_uniform((number,), one),
        seed,
        fn_output_signature=tf.TensorSpec((number,), tf.float32),
    )


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


def luminance(image):
    """The brightness of each pixel as the eye weighs the colours (ITU-R BT.601).

    Args:
        image: (..., 3) float tensor.

    Returns:
        (..., 1) float tensor.

    Example:
        >>> luminance(tf.constant([255.0, 0.0, 0.0])).numpy().round().tolist()
        [76.0]
    """
    return tf.reduce_sum(image * [0.299, 0.587, 0.114], axis=-1, keepdims=True)


def random_colors(image, seed, strength=0.4, gray=0.2):
    """Changes brightness, contrast and saturation of each picture at random; some become gray.

    Args:
        image: (B, H, W, 3) tensor in 0..255.
        seed: (B, 2) int64 tensor, one seed per image; the numbers are others than `random_crop`'s.
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
    random = uniform(seed + tf.constant([0, 2**40], tf.int64), 4)
    factors = 1 + strength * (2 * random[:, :3] - 1)
    brightness, contrast, saturation = tf.unstack(factors[..., None, None, None], axis=1)
    saturation = tf.where(random[:, 3, None, None, None] < gray, 0.0, saturation)
    image *= brightness
    mean = tf.reduce_mean(image, axis=[1, 2, 3], keepdims=True)
    image = mean + contrast * (image - mean)
    without = luminance(image)
    return tf.clip_by_value(without + saturation * (image - without), 0, 255)


def decode(encoded):
    """Decodes one JPEG, PNG, BMP or GIF (its first frame) to RGB.

    Gray becomes three equal channels, CMYK is converted, transparency is dropped, 16 bits become 8.

    Args:
        encoded: () string tensor, the bytes of the file.

    Returns:
        (H, W, 3) uint8 tensor.

    Raises:
        tf.errors.InvalidArgumentError: the bytes are no such picture, are cut off, or declare more
            than `MAX_PIXELS` pixels (checked before decoding: a file of 5 kB can declare gigabytes).

    Example:
        >>> decode(tf.io.encode_png(tf.zeros((2, 3, 1), tf.uint8))).shape
        TensorShape([2, 3, 3])
    """
    pixels = _declared_pixels(encoded)
    checks = [
        tf.debugging.assert_non_negative(pixels, "Unknown image file format (JPEG, PNG, GIF, BMP)"),
        tf.debugging.assert_less_equal(
            pixels, tf.constant(MAX_PIXELS, tf.int64), "the picture declares too many pixels"
        ),
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):
        encoded = tf.identity(encoded)
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, (None, None, 3))


def resize(image, height, width):
    """Resizes a picture so that it just covers the given size, and crops it in the middle.

    Args:
        image: (H, W, C) uint8 tensor.
        height, width: int, pixels.

    Returns:
        (height, width, C) uint8 tensor; bilinear, averaged over the area where it shrinks.

    Example:
        >>> resize(tf.zeros((50, 100, 3), tf.uint8), 32, 32).shape
        TensorShape([32, 32, 3])
    """
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    scale = tf.reduce_max(tf.constant([height, width], tf.float32) / size)
    covering = tf.maximum(tf.cast(tf.round(size * scale), tf.int32), [height, width])
    image = tf.image.resize(image, covering, antialias=True)
    top, left = tf.unstack((covering - [height, width]) // 2)
    image = image[top : top + height, left : left + width]
    image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
    return tf.ensure_shape(image, (height, width, image.shape[-1]))


def _declared_pixels(encoded):
    """Height times width by the header, int64; -1 where the format is unknown."""

    def integer(start, size, big_endian):
        raw = tf.io.decode_raw(tf.strings.substr(encoded, start, size), tf.uint8)
        powers = 256 ** tf.range(size, dtype=tf.int64)
        return tf.reduce_sum(tf.cast(raw, tf.int64) * (powers[::-1] if big_endian else powers))

    def pixels(first, second, size, big_endian=False):
        return integer(first, size, big_endian) * integer(second, size, big_endian)

    def bmp_pixels():
        rows = integer(22, 4, False)  # negative, in two's complement, where stored top down
        return integer(18, 4, False) * tf.minimum(rows, 2**32 - rows)

    def starts(magic):
        return tf.equal(tf.strings.substr(encoded, 0, len(magic)), magic)

    long_enough = tf.strings.length(encoded) >= 26
    jpeg = tf.image.extract_jpeg_shape
    return tf.case(
        [
            (tf.logical_not(long_enough), lambda: tf.constant(0, tf.int64)),
            (starts(b"\xff\xd8\xff"), lambda: tf.reduce_prod(jpeg(encoded, tf.int64)[:2])),
            (starts(b"\x89PNG"), lambda: pixels(16, 20, 4, big_endian=True)),
            (starts(b"GIF8"), lambda: tf.maximum(pixels(6, 8, 2), _gif_frame_pixels(encoded))),
            (starts(b"BM"), bmp_pixels),
        ],
        default=lambda: tf.constant(-1, tf.int64),
    )


def _gif_frame_pixels(encoded):
    """Pixels of a GIF's first frame, int64: it has a size of its own, whatever the header says."""
    data = tf.cast(tf.io.decode_raw(encoded, tf.uint8), tf.int64)

    def byte(place):
        return data[tf.minimum(tf.cast(place, tf.int64), tf.size(data, tf.int64) - 1)]

    def skip(place, inside):  # a block of an extension, or the two bytes that begin one
        step = tf.where(inside, 1 + byte(place), 2)
        return place + step, tf.logical_not(inside) | (step > 1)

    def more(place, inside):
        return (place < tf.size(data, tf.int64)) & (inside | (byte(place) == 0x21))

    colors = tf.where(byte(10) > 127, 3 * 2 ** (1 + byte(10) % 8), 0)
    place, inside = tf.while_loop(more, skip, (13 + colors, False), maximum_iterations=GIF_BLOCKS)
    width, height = (byte(place + i) + 256 * byte(place + i + 1) for i in (5, 7))
    return tf.where(more(place, inside), 2**62, width * height)
