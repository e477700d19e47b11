"""Decoding matches Pillow, and damaged files and excessive declared sizes are refused."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_ssl.ops import decode

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)


def encode(image, kind, **arguments):
    file = io.BytesIO()
    image.save(file, kind, **arguments)
    return file.getvalue()


RGB = Image.fromarray(PIXELS)


CASES = {
    "png": (encode(RGB, "PNG"), RGB),
    "bmp": (encode(RGB, "BMP"), RGB),
    "gray png": (encode(RGB.convert("L"), "PNG"), RGB.convert("L")),
    "gray bmp": (encode(RGB.convert("L"), "BMP"), RGB.convert("L")),
    "palette png": (encode(RGB.convert("P"), "PNG"), RGB.convert("P")),
    "rgba png": (encode(RGB.convert("RGBA"), "PNG"), RGB),
    "rgba bmp": (encode(RGB.convert("RGBA"), "BMP"), RGB),
    "gif": (encode(RGB.convert("P"), "GIF"), RGB.convert("P")),
    "animated gif": (
        encode(RGB.convert("P"), "GIF", save_all=True, append_images=[RGB.convert("L")]),
        RGB.convert("P"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_decode_matches_pillow(case):
    encoded, image = CASES[case]
    np.testing.assert_array_equal(decode.decode(encoded), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_decode_jpeg_is_close_to_pillow(mode):
    smooth = Image.fromarray(np.linspace(0, 255, 64 * 48 * 3).reshape(64, 48, 3).astype(np.uint8))
    encoded = encode(smooth.convert(mode), "JPEG", quality=95)
    difference = np.abs(decode.decode(encoded).numpy() - np.asarray(smooth.convert("RGB"), int))
    assert difference.mean() < 3


def test_16_bit_png_becomes_8_bit():
    values = np.arange(30, dtype=np.uint16).reshape(5, 6) * 2000
    image = decode.decode(encode(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(image, np.repeat((values >> 8)[..., None], 3, -1))


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"hello",
        b"\xff\xd8\xff" + b"0" * 60,
        encode(RGB, "PNG")[:-20],
        encode(RGB, "JPEG")[:-80],
    ],
)
def test_decode_refuses_invalid_images(encoded):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode.decode(encoded)


def patched(encoded, offset, data):
    return encoded[:offset] + data + encoded[offset + len(data) :]


JPEG = encode(Image.new("RGB", (64, 64)), "JPEG")


BOMBS = {
    "png": patched(encode(RGB, "PNG"), 16, struct.pack(">II", 12000, 12000)),
    "gif": patched(encode(RGB.convert("P"), "GIF"), 6, struct.pack("<HH", 12000, 12000)),
    "bmp": patched(encode(RGB, "BMP"), 18, struct.pack("<ii", 12000, -12000)),
    "jpeg": patched(JPEG, JPEG.index(b"\xff\xc0") + 5, struct.pack(">HH", 12000, 12000)),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_decode_refuses_huge_declared_sizes(kind):
    with pytest.raises(tf.errors.InvalidArgumentError, match="too many pixels"):
        decode.decode(BOMBS[kind])


def test_top_down_bmp_is_not_refused():
    rows = np.pad(PIXELS[..., ::-1].reshape(6, 15), ((0, 0), (0, 1)))
    encoded = patched(encode(RGB, "BMP")[:54], 22, struct.pack("<i", -6)) + rows.tobytes()
    np.testing.assert_array_equal(decode.decode(encoded), PIXELS)
