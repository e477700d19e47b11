"""Decoding of image files, whose cost is checked before any pixel is decoded."""

import tensorflow as tf

from keras_ssl.ops import headers, images

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
MAX_PIXELS = 2**26  # 8192 x 8192
# A progressive JPEG has about ten; random bytes, such as a video after the image, contain one per 64 KiB.
MAX_SCANS, BYTES_PER_SCAN = 100, 2**15
MAX_FILES = 1024  # in a request
MAX_COST = 2**29  # pixels of all files of a request
TOO_LONG = "decoding the files of the request takes too long: send fewer of them, or smaller images"
GRAY_16_BITS = b"\x10\0"  # bits per sample and type of color in the header of a PNG
PARALLEL = 10  # files of a request that are decoded at once, or 2 if these take too much memory


def decode(encoded):
    """Decodes a JPEG, PNG, BMP or GIF file (its first frame) to RGB.

    Grayscale becomes three equal channels, CMYK is converted, the alpha channel is dropped, and 16 bits
    are reduced to 8.

    Args:
        encoded: () string tensor, the bytes of the file.

    Returns:
        (H, W, 3) uint8 tensor.

    Raises:
        tf.errors.InvalidArgumentError: the bytes are not such an image or are truncated; or decoding them
            would take too long or too much memory, which is checked first (a file of 5 kB can declare
            gigabytes): more than `MAX_PIXELS` pixels, more than `headers.MAX_MEMORY` bytes, or more than
            `MAX_SCANS` scans of a progressive JPEG.

    Example:
        >>> decode(tf.io.encode_png(tf.zeros((2, 3, 1), tf.uint8))).shape
        TensorShape([2, 3, 3])
    """
    return _decode(_checked(encoded)[0])


def decode_16_bits(encoded):
    """Decodes a grayscale PNG of 16 bits, the format of depth images.

    Args:
        encoded: () string tensor, the bytes of the file.

    Returns:
        (H, W, 1) uint16 tensor.

    Raises:
        tf.errors.InvalidArgumentError: the file is not such a PNG, or is truncated; or decoding it would take
            too long or too much memory, as in `decode`. An image of 8 bits is refused, since TensorFlow would
            spread its values over 16 bits.

    Example:
        >>> decode_16_bits(tf.io.encode_png(tf.fill((2, 3, 1), tf.constant(5000, tf.uint16)))).shape
        TensorShape([2, 3, 1])
    """
    file = _checked(encoded)[0]  # at least as long as the header
    is_png = tf.strings.substr(file, 0, 2) == b"\x89P"
    is_gray = _assert(
        is_png & (tf.strings.substr(file, 24, 2) == GRAY_16_BITS),
        "depth must be a grayscale PNG of 16 bits: save it as one, not as JPEG or in 8 bits",
    )
    with tf.control_dependencies([is_gray]):
        image = tf.io.decode_png(tf.identity(file), channels=1, dtype=tf.uint16)
    return tf.ensure_shape(image, (None, None, 1))


def decode_batch(files, height, width):
    """Decodes the files of a request, and resizes the images to the same size.

    Only as many images are decoded at the same time as fit into `headers.MAX_MEMORY`. To be called in a
    `tf.function`.

    Args:
        files: (N,) string tensor, the bytes of JPEG, PNG, BMP or GIF files.
        height, width: int, pixels.

    Returns:
        (N, height, width, 3) uint8 tensor.

    Raises:
        tf.errors.InvalidArgumentError: `decode` refuses a file, there are more than `MAX_FILES`, decoding
            all of them takes longer than a baseline JPEG of `MAX_COST` pixels, or two of them take more
            than `headers.MAX_MEMORY` together.

    Example:
        >>> file = tf.io.encode_png(tf.zeros((20, 30, 3), tf.uint8))
        >>> tf.function(decode_batch)(tf.stack([file, file]), 8, 8).shape
        TensorShape([2, 8, 8, 3])
    """
    few = _assert(
        tf.size(files) <= MAX_FILES,
        f"a request has at most {MAX_FILES} files: send the others in further requests",
    )
    with tf.control_dependencies([few]):
        files = tf.identity(files)
    files, memory, cost = tf.map_fn(
        _checked, files, fn_output_signature=(tf.string, tf.int64, tf.int64)
    )

    def largest(number):
        return tf.reduce_sum(tf.math.top_k(memory, tf.minimum(number, tf.size(memory))).values)

    checks = [
        _assert(tf.reduce_sum(cost) <= MAX_COST, TOO_LONG),
        # Not one by one: TensorFlow's memory pool would need the memory of two images nevertheless.
        _assert(
            largest(2) <= headers.MAX_MEMORY,
            "two files of the request take too much memory to decode: send large images one by one",
        ),
    ]
    with tf.control_dependencies(checks):
        files = tf.identity(files)

    def decoded(parallel):
        return tf.map_fn(
            lambda file: images.resize(_decode(file), height, width),
            files,
            parallel_iterations=parallel,
            fn_output_signature=tf.TensorSpec((height, width, 3), tf.uint8),
        )

    return tf.cond(
        largest(PARALLEL) <= headers.MAX_MEMORY, lambda: decoded(PARALLEL), lambda: decoded(2)
    )


def total_cost(files):
    """Computes the cost of decoding image files, for requests whose files are decoded in several parts.

    Args:
        files: (N,) string tensor.

    Returns:
        () int64 tensor, the number of pixels of a large baseline JPEG that take as long; above `MAX_COST` if
        `decode` refuses a file for its size. Files that are not images cost nothing.

    Raises:
        tf.errors.InvalidArgumentError: a JPEG is damaged.

    Example:
        >>> int(total_cost(tf.stack([tf.io.encode_png(tf.zeros((20, 30, 3), tf.uint8)), b"text"])))
        920
    """
    return tf.reduce_sum(tf.map_fn(_cost, files, fn_output_signature=tf.int64))


def decode_pfm(encoded):
    """Decodes a grayscale PFM file (portable float map), such as the disparity maps of Middlebury.

    Args:
        encoded: () string tensor, the bytes of the file: the lines "Pf", "width height" and a number whose
            sign is negative for little-endian, then float32 values, the bottom row first.

    Returns:
        (H, W, 1) float32 tensor, the top row first.

    Raises:
        tf.errors.InvalidArgumentError: the bytes are not such a file, or have another length than it
            declares.

    Example:
        >>> import numpy as np
        >>> values = np.float32([[3.0, 4.0], [1.0, 2.0]])
        >>> decode_pfm(b"Pf\\n2 2\\n-1.0\\n" + values.tobytes())[..., 0].numpy().tolist()
        [[1.0, 2.0], [3.0, 4.0]]
    """
    lines = tf.strings.split(tf.strings.substr(encoded, 0, 100), "\n", maxsplit=3)
    with tf.control_dependencies(
        [_assert((tf.size(lines) == 4) & (lines[0] == b"Pf"), "the file is no grayscale PFM")]
    ):
        start = tf.reduce_sum(tf.strings.length(lines[:3])) + 3
    size = tf.strings.to_number(tf.strings.split(lines[1]), tf.int64)
    little = tf.strings.to_number(lines[2]) < 0
    length = tf.cast(tf.strings.length(encoded) - start, tf.int64)
    fits = (tf.size(size) == 2) & tf.reduce_all(size > 0) & (4 * tf.reduce_prod(size) == length)
    with tf.control_dependencies([_assert(fits, "the PFM has another size than it declares")]):
        values = tf.strings.substr(encoded, start, tf.cast(length, tf.int32))
    values = tf.where(
        little,
        tf.io.decode_raw(values, tf.float32, little_endian=True),
        tf.io.decode_raw(values, tf.float32, little_endian=False),
    )
    return tf.reshape(values, (size[1], size[0], 1))[::-1]


@tf.function(input_signature=[tf.TensorSpec((), tf.string)], autograph=False)
def _cost(file):
    _, pixels, _, cost, _ = headers.examine(file)
    # The product of the sizes that a file declares can overflow an int64.
    too_large = (pixels > MAX_PIXELS) | (cost < 0) | (cost > MAX_COST)
    cost = tf.where(too_large, tf.constant(MAX_COST + 1, tf.int64), cost)
    return tf.where(pixels < 0, tf.zeros_like(cost), cost)


# Traced once, since tracing its operations takes longer than reading an epoch of a small folder.
@tf.function(input_signature=[tf.TensorSpec((), tf.string)], autograph=False)
def _checked(encoded):
    """Returns the bytes to decode, and the memory and the cost of decoding them; or raises."""
    file, pixels, memory, cost, scans = headers.examine(encoded)
    max_scans = MAX_SCANS + tf.strings.length(encoded) // BYTES_PER_SCAN
    max_scans = tf.minimum(max_scans, headers.MAX_COUNT - 1)
    checks = [
        _assert(pixels >= 0, "Unknown image file format (JPEG, PNG, GIF, BMP)"),
        _assert(
            pixels <= MAX_PIXELS,
            f"the image declares too many pixels, more than {MAX_PIXELS}: send a smaller one",
        ),
        _assert(
            scans <= tf.cast(max_scans, tf.int64),
            f"the JPEG has more than {MAX_SCANS} scans or is coded arithmetically: save it as baseline",
        ),
        _assert(
            (pixels > MAX_PIXELS) | ((memory <= headers.MAX_MEMORY) & (cost <= MAX_COST)),
            "the image takes too much memory or time to decode: send a smaller one, a JPEG as baseline, "
            "not progressive, and a PNG without compressed text",
        ),
    ]
    with tf.control_dependencies(checks):
        return tf.identity(file), memory, cost


def _assert(condition, message):
    # Not tf.debugging.Assert, which adds a conditional to the graph and takes ten times as long.
    return tf.raw_ops.Assert(condition=condition, data=[message])


def _decode(file):
    image = tf.io.decode_image(file, channels=3, expand_animations=False)
    return tf.ensure_shape(image, (None, None, 3))
