"""Depth from PNG files of 16 bits and from PFM files."""

import struct

import numpy as np
import pytest
import tensorflow as tf
from image_files import RGB, encode
from PIL import Image

from keras_ssl.ops import decode

DEPTH = np.array([[0, 1, 300], [5000, 40000, 65535]], np.uint16)


def test_depth_of_16_bits_is_exact():
    found = decode.decode_16_bits(encode(Image.fromarray(DEPTH), "PNG"))
    assert found.dtype == tf.uint16
    np.testing.assert_array_equal(found[..., 0], DEPTH)


@pytest.mark.parametrize(
    "image",
    [Image.fromarray((DEPTH // 256).astype(np.uint8)), RGB, RGB.convert("LA")],
    ids=["8 bits", "RGB", "gray and alpha"],
)
def test_other_png_files_are_no_depth(image):
    with pytest.raises(tf.errors.InvalidArgumentError, match="depth must be a grayscale PNG of 16"):
        decode.decode_16_bits(encode(image, "PNG"))


def test_damaged_depth_is_refused():
    file = encode(Image.fromarray(DEPTH), "PNG")
    for damaged in (b"", file[:20], file[:-20], b"hello" * 10):
        with pytest.raises(tf.errors.InvalidArgumentError):
            decode.decode_16_bits(damaged)
    with pytest.raises(tf.errors.InvalidArgumentError, match="depth must be"):
        decode.decode_16_bits(encode(RGB, "JPEG"))
    header = file[:16] + struct.pack(">II", 50_000, 50_000) + file[24:]  # declares 5 GB
    with pytest.raises(tf.errors.InvalidArgumentError, match="too many pixels"):
        decode.decode_16_bits(header)


FLOATS = np.float32([[1.5, -2, np.inf], [np.nan, 0, 1e30]])


@pytest.mark.parametrize(("kind", "scale"), [("<f4", b"-0.003922"), (">f4", b"1")])
def test_pfm(kind, scale):
    encoded = b"Pf\n3 2\n" + scale + b"\n" + FLOATS[::-1].astype(kind).tobytes()
    np.testing.assert_array_equal(decode.decode_pfm(encoded)[..., 0], FLOATS)
    # Line feeds among the values, and more than the first 100 bytes.
    long = np.frombuffer(b"\n" * 400, "<f4").reshape(4, 25)
    encoded = b"Pf\n25 4\n-1\n" + long.tobytes()
    np.testing.assert_array_equal(decode.decode_pfm(encoded)[..., 0], long)


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"Pf",
        b"Pf\n3 2\n-1\n",
        b"Pf\n3 2\n-1\n" + bytes(23),
        b"Pf\n3 2\n-1\n" + bytes(25),
        b"PF\n3 2\n-1\n" + bytes(72),
        b"Pf\n6\n-1\n" + bytes(24),
        b"Pf\n-3 -2\n-1\n" + bytes(24),
        b"Pf\na b\n-1\n" + bytes(24),
        b"Pf\n3 2\nlittle\n" + bytes(24),
        b"Pf\n4611686018427387904 4\n-1\n",  # whose product overflows to 0
    ],
)
def test_pfm_is_refused(encoded):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode.decode_pfm(encoded)
