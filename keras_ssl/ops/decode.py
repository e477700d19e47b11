"""Decoding of image files, whose declared size is checked before any pixel is decoded."""

import tensorflow as tf

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
MAX_PIXELS = 2**26  # 8192 x 8192
GIF_BLOCKS = 4096  # of up to 255 bytes, before the first frame


def decode(encoded):
    """Decodes a JPEG, PNG, BMP or GIF file (its first frame) to RGB.

    Grayscale becomes three equal channels, CMYK is converted, the alpha channel is dropped, and 16 bits
    are reduced to 8.

    Args:
        encoded: () string tensor, the bytes of the file.

    Returns:
        (H, W, 3) uint8 tensor.

    Raises:
        tf.errors.InvalidArgumentError: the bytes are not such an image, are truncated, or declare more
            than `MAX_PIXELS` pixels (checked before decoding: a file of 5 kB can declare gigabytes).

    Example:
        >>> decode(tf.io.encode_png(tf.zeros((2, 3, 1), tf.uint8))).shape
        TensorShape([2, 3, 3])
    """
    pixels = _declared_pixels(encoded)
    checks = [
        tf.debugging.assert_non_negative(pixels, "Unknown image file format (JPEG, PNG, GIF, BMP)"),
        tf.debugging.assert_less_equal(
            pixels, tf.constant(MAX_PIXELS, tf.int64), "the image declares too many pixels"
        ),
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):
        encoded = tf.identity(encoded)
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, (None, None, 3))


def _declared_pixels(encoded):
    """Reads height * width from the header, as int64; -1 if the format is unknown."""

    def integer(start, size, big_endian):
        raw = tf.io.decode_raw(tf.strings.substr(encoded, start, size), tf.uint8)
        powers = 256 ** tf.range(size, dtype=tf.int64)
        return tf.reduce_sum(tf.cast(raw, tf.int64) * (powers[::-1] if big_endian else powers))

    def pixels(first, second, size, big_endian=False):
        return integer(first, size, big_endian) * integer(second, size, big_endian)

    def bmp_pixels():
        rows = integer(22, 4, False)  # negative, in two's complement, if stored from top to bottom
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
    """Counts the pixels of a GIF's first frame, as int64: its size may differ from the header's."""
    data = tf.cast(tf.io.decode_raw(encoded, tf.uint8), tf.int64)

    def byte(offset):
        return data[tf.minimum(tf.cast(offset, tf.int64), tf.size(data, tf.int64) - 1)]

    def skip(offset, inside):  # one block of an extension, or the two bytes that start an extension
        step = tf.where(inside, 1 + byte(offset), 2)
        return offset + step, tf.logical_not(inside) | (step > 1)

    def more(offset, inside):
        return (offset < tf.size(data, tf.int64)) & (inside | (byte(offset) == 0x21))

    colors = tf.where(byte(10) > 127, 3 * 2 ** (1 + byte(10) % 8), 0)
    offset, inside = tf.while_loop(more, skip, (13 + colors, False), maximum_iterations=GIF_BLOCKS)
    width, height = (byte(offset + i) + 256 * byte(offset + i + 1) for i in (5, 7))
    return tf.where(more(offset, inside), 2**62, width * height)
