"""Decoding matches Pillow, and damaged files and those that cost too much are refused."""

import struct

import numpy as np
import pytest
import tensorflow as tf
from image_files import PIXELS, RGB, chunk, encode, patched, png, progressive
from PIL import Image

from keras_ssl.ops import decode, headers

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


COSTLY = {
    "2000 scans": (progressive(64, 64, 2000), "the JPEG has more than 100 scans"),
    "arithmetic": (progressive(64, 64, 2, 0xCA), "is coded arithmetically"),
    "sequential arithmetic": (progressive(64, 64, 1, 0xC9), "is coded arithmetically"),
    "progressive": (progressive(7000, 7000, 10), "too much memory or time"),
    "scans of many pixels": (
        progressive(6000, 6000, 200) + bytes(2**22),
        "too much memory or time",
    ),
    "text": (png(8, 8, text_chunks=30), "too much memory or time"),
    "short gif": (b"GIF89a\1\0\1\0\0\0\0\x2c\0\0\0\0\xff\xff\xff\xff\0\2\1", "Unknown image file"),
}


@pytest.mark.parametrize("kind", COSTLY)
def test_files_that_cost_too_much_are_refused_before_decoding(kind, peak_bytes):
    encoded, words = COSTLY[kind]

    def refused():
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            decode.decode(encoded)

    assert peak_bytes(refused) < 2**26


def test_a_chunk_before_the_header_of_a_png_hides_its_size():
    """libpng skips a chunk that it does not know, and reads the header after it."""
    encoded = png(9, 7)
    hidden = encoded[:8] + chunk(b"teSt", bytes(13)) + encoded[8:]
    assert decode.decode(encoded).shape == (7, 9, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Unknown image file format"):
        decode.decode(hidden)


def test_rows_cost_time_beside_pixels():
    wide, tall = (int(headers.examine(png(*size))[3]) for size in ((4096, 1), (1, 4096)))
    assert tall == 17 * 4096
    assert wide == 4096 + 16


def test_files_below_the_bounds_are_decoded():
    for encoded, shape in (
        (progressive(640, 480, 100), (480, 640, 3)),
        (png(8, 8, text_chunks=1), (8, 8, 3)),
        (JPEG + b"\xff\xda" * 100 + bytes(2**20), (64, 64, 3)),  # a video after the image
        (encode(Image.new("RGB", (5000, 4900)), "JPEG", progressive=True), (4900, 5000, 3)),
        (encode(Image.new("L", (8192, 8191)), "JPEG"), (8191, 8192, 3)),
    ):
        assert decode.decode(encoded).shape == shape


def test_only_jpegs_that_keep_all_coefficients_are_charged_for_them():
    large = Image.new("RGB", (6000, 5000))
    baseline, kept = (encode(large, "JPEG", progressive=p) for p in (False, True))
    assert int(headers.examine(baseline)[2]) == 3 * 3 * 10**7
    assert int(headers.examine(kept)[2]) == 9 * 3 * 10**7


class TestBatch:
    """Tests of `decode_batch`, as it is called in an exported graph."""

    batch = staticmethod(
        tf.function(
            lambda files: decode.decode_batch(files, 8, 8),
            input_signature=[tf.TensorSpec((None,), tf.string)],
            autograph=False,
        )
    )

    def test_equals_one_image_after_the_other(self):
        files = [encoded for encoded, _ in CASES.values()] + [JPEG]
        expected = [decode.images.resize(decode.decode(file), 8, 8) for file in files]
        np.testing.assert_array_equal(self.batch(files), expected)

    def test_memory_does_not_add_up(self, peak_bytes):
        large = png(5000, 5000)
        assert peak_bytes(lambda: self.batch([large])) < 2**28
        assert peak_bytes(lambda: self.batch([large] * 9)) < 2**28  # two at a time
        assert peak_bytes(lambda: self.batch([png(1, 200_000)] * 50)) < 2**26

    def test_two_files_that_do_not_fit_together_are_refused(self):
        large = png(8192, 8192, depth=1)
        photo = encode(Image.new("RGB", (6000, 4000)), "JPEG")
        assert self.batch([large, JPEG]).shape == self.batch([photo, photo]).shape == (2, 8, 8, 3)
        with pytest.raises(tf.errors.InvalidArgumentError, match="send large images one by one"):
            self.batch([JPEG, large, large])

    def test_the_cost_of_all_files_is_bounded(self, peak_bytes):
        files = [png(6000, 6000, depth=1)] * 15

        def refused():
            with pytest.raises(
                tf.errors.InvalidArgumentError, match="of the request takes too long"
            ):
                self.batch(files)

        assert peak_bytes(refused) < 2**26

    def test_many_tall_images_of_a_pixel_in_width_are_refused(self):
        with pytest.raises(tf.errors.InvalidArgumentError, match="of the request takes too long"):
            self.batch([png(1, 1_000_000)] * 40)

    def test_the_number_of_files_is_bounded(self):
        with pytest.raises(tf.errors.InvalidArgumentError, match="at most 1024 files"):
            self.batch([JPEG] * (decode.MAX_FILES + 1))

    def test_one_bad_file_is_named_by_its_problem(self):
        with pytest.raises(tf.errors.InvalidArgumentError, match="too many pixels"):
            self.batch([JPEG, BOMBS["gif"]])
