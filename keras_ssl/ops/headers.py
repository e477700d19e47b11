"""Computes the cost of decoding an image file from its bytes, before any pixel is decoded.

Only TensorFlow operations are used, since the graph of an export runs in TensorFlow Serving, too.
"""

import tensorflow as tf

from keras_ssl.ops import gif

SIGNATURES = (
    b"\xff\xd8",
    b"\x89P",
    b"GI",
    b"BM",
)  # TensorFlow decodes WebP too, but not before 2.20
MIN_LENGTH = 26  # bytes of the smallest GIF; the headers of the other formats are longer
MAX_MEMORY = 216 * 2**20  # bytes for decoding one image, or those decoded at the same time
SCANS_PER_DECODING = 8  # scans of a progressive JPEG that take as long as decoding a baseline one
COMPRESSED_CHUNKS = (b"zTXt", b"iTXt", b"iCCP")  # of a PNG: text and color profiles
CHUNK_BYTES = 8_000_000  # libpng's limit of such a chunk
CHUNK_PIXELS = 2**22  # decoding them takes as long as decompressing that many bytes
ROW_PIXELS = (
    16  # decoding them takes as long as beginning a row of an interlaced PNG or a narrow JPEG
)
PNG_HEADER = b"\0\0\0\rIHDR"
MAX_COUNT = 2**13  # occurrences of a marker that are counted; this many scans are refused


def examine(encoded):
    """Computes the cost of decoding an image file, and cuts a GIF after its first frame.

    Args:
        encoded: () string tensor, the bytes of the file.

    Returns:
        (file, pixels, memory, cost, scans): the bytes to decode, () string; then () int64 tensors: height *
        width, or -1 if the file is not a JPEG, PNG, GIF or BMP; an upper bound of the bytes of memory; the
        number of pixels of a large baseline JPEG that take as long; and an upper bound of the number of
        scans: 0 unless the file is a JPEG, `MAX_COUNT` if its coding is arithmetic.

    Example:
        >>> file = tf.io.encode_png(tf.zeros((2, 3, 1), tf.uint8))
        >>> [int(number) for number in examine(file)[1:]]
        [6, 18, 38, 0]
    """
    matches = tf.equal(tf.strings.substr(encoded, 0, 2), SIGNATURES)
    matches &= tf.strings.length(encoded) >= MIN_LENGTH
    kind = tf.argmax(tf.concat([matches, [True]], 0), output_type=tf.int32)
    readers = (_jpeg, _png, _gif, _bmp, _unknown)
    file, *numbers = tf.switch_case(kind, [lambda r=r: r(encoded) for r in readers])
    return file, *numbers


def _jpeg(encoded):
    height, width, channels = tf.unstack(tf.image.extract_jpeg_shape(encoded, tf.int64))
    pixels = height * width
    # An upper bound, since bytes of the metadata or after the image can look like the start of a scan.
    pieces = _split(encoded, b"\xff\xda")
    scans = tf.size(pieces, tf.int64) - 1
    memory = pixels * (3 + 2 * channels)
    # A frame is declared before its scans, so that most of the file need not be searched.
    before = tf.strings.length(encoded) - tf.strings.length(pieces[-1])
    head = tf.strings.substr(encoded, 0, before)
    # An exact answer takes longer, and is needed only if two such images would not fit into memory.
    exact = (memory > MAX_MEMORY // 2) | (
        _count(head, b"\xff\xc9\0") + _count(head, b"\xff\xca\0") > 0
    )
    keeps, arithmetic = tf.cond(
        exact,
        lambda: _find_markers(encoded, channels),
        lambda: (tf.constant(True), tf.constant(False)),
    )
    once = _cost(height, width)
    cost = once + once * scans // SCANS_PER_DECODING
    scans = tf.where(arithmetic, tf.constant(MAX_COUNT, tf.int64), scans)
    return encoded, pixels, tf.where(keeps, memory, 3 * pixels), cost, scans


def _find_markers(encoded, channels):
    """Finds the two kinds of JPEG that take more memory or time than others.

    Args:
        encoded: () string tensor, the bytes of the file.
        channels: () int64 tensor.

    Returns:
        (keeps, arithmetic): () bool tensors. `keeps`: whether the coefficients of all pixels, 16 bits each,
        are kept until the last scan, since the JPEG is progressive or its scans have one channel each.
        `arithmetic`: whether it is coded arithmetically, which is rare; one bit can then stand for thousands
        of coefficients.
    """
    data = tf.io.decode_raw(encoded, tf.uint8)
    marker, code, high, low, first = (data[i : tf.size(data) - 4 + i] for i in range(5))
    segment = (marker == 0xFF) & (high == 0)  # shorter than 256 bytes
    arithmetic = segment & ((code == 0xC9) | (code == 0xCA)) & (first == 8)  # bits per sample
    progressive = segment & (code == 0xC2) & (first == 8)
    some = (first > 0) & (first < tf.cast(channels, tf.uint8)) & (low == 6 + 2 * first)
    keeps = progressive | arithmetic | (segment & (code == 0xDA) & some)
    return tf.reduce_any(keeps), tf.reduce_any(arithmetic)


def _png(encoded):
    header = _header(encoded)
    width, height = (_integer(header[i : i + 4][::-1]) for i in (16, 20))
    # libpng skips unknown chunks before the header, so the numbers would be read from such a chunk.
    first = tf.equal(tf.strings.substr(encoded, 8, 8), PNG_HEADER)
    pixels = tf.where(first, height * width, -1)
    chunks = tf.add_n([_count(encoded, name) for name in COMPRESSED_CHUNKS])
    cost = _cost(height, width) * tf.where(header[24] > 8, _zero() + 2, 1) + CHUNK_PIXELS * chunks
    return encoded, pixels, 3 * pixels + CHUNK_BYTES * chunks, cost, _zero()


def _gif(encoded):
    header = _header(encoded)
    file, frame = gif.first_frame(encoded)
    screen = _integer(header[6:8]) * _integer(header[8:10])
    pixels = tf.where(frame < 0, frame, tf.maximum(screen, frame))
    return file, pixels, 4 * pixels, pixels, _zero()  # 3 bytes, and the index of the color


def _bmp(encoded):
    header = _header(encoded)
    rows = _integer(header[22:26])  # negative, in two's complement, if stored from top to bottom
    pixels = _integer(header[18:22]) * tf.minimum(rows, 2**32 - rows)
    return encoded, pixels, 3 * pixels, pixels, _zero()


def _unknown(encoded):
    return encoded, _zero() - 1, _zero(), _zero(), _zero()


def _cost(height, width):
    return height * (width + ROW_PIXELS)


def _zero():
    return tf.constant(0, tf.int64)


def _header(encoded):
    return tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, 0, MIN_LENGTH), tf.uint8), tf.int64)


def _integer(digits):
    """Combines bytes, the least significant first; at most four, as int64."""
    return tf.reduce_sum(digits * 256 ** tf.range(tf.size(digits, tf.int64)))


def _count(encoded, marker):
    """Counts the occurrences of a marker in a file, up to `MAX_COUNT`, as int64."""
    return tf.size(_split(encoded, marker), tf.int64) - 1


def _split(encoded, marker):
    return tf.raw_ops.StringSplitV2(input=[encoded], sep=marker, maxsplit=MAX_COUNT).values
