"""Decoding matches Pillow, and damaged files and those that cost too much are refused."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_ssl.ops import decode, gif, headers

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


def chunk(kind, content):
    """A chunk of a PNG."""
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(width, height, text_chunks=0, depth=8):
    """A black PNG, with chunks of compressed text of 8 MB each."""
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(7_900_000), 9))
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width * depth // 8 + 1) * height), 9)
    parts = chunk(b"IHDR", header), text * text_chunks, chunk(b"IDAT", rows), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def segment(code, content):
    """A segment of a JPEG."""
    return b"\xff" + bytes([code]) + struct.pack(">H", len(content) + 2) + content


def progressive(width, height, scans, frame=0xC2):
    """A gray JPEG whose further scans all refine nothing, in 15 bits for 32,767 blocks."""
    blocks = -(-width // 8) * -(-height // 8)
    bits = "0" + 14 * "1"  # a run of blocks without a coefficient
    bits = bits * -(-blocks // 32767)
    bits += "1" * (-len(bits) % 8)
    run = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    first, refine = (segment(0xDA, bytes([1, 1, 0]) + s) for s in (b"\0\0\0", b"\1\x3f\x10"))
    return b"".join([
        b"\xff\xd8",
        segment(0xDB, b"\0" + bytes([1] * 64)),
        segment(frame, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0"),
        segment(0xC4, b"\x00" + bytes([1] + [0] * 15) + b"\x00"),
        segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\xe0"),
        first + bytes(8),
        (refine + run) * (scans - 1),
        b"\xff\xd9",
    ])  # fmt: skip


def gif_parts(**options):
    """The header, first frame and trailer of a GIF."""
    encoded = encode(RGB.convert("P"), "GIF", **options)
    frame = encoded.index(b"\x2c\0\0\0\0")
    return encoded[:frame], encoded[frame:-1], encoded[-1:]


def extension(*blocks):
    """An application extension of a GIF."""
    return b"\x21\xff" + b"".join(bytes([len(b)]) + b for b in blocks) + b"\0"


HEADER, FRAME, TRAILER = gif_parts()
EXTENSIONS = {
    "none": b"",
    "comment": b"\x21\xfe\5hello\0",
    "empty": b"\x21\xfe\0" * 5000,
    "image in a block": extension(b"\x21\xf9\x2c\0\0\0\0\0", b"\0" * 255),
    "one-byte blocks": extension(*[b"\x2c"] * 9000),
    "ends at a window": extension(
        *[b"x" * 255] * 15, b"x" * (gif.WINDOW - 15 * 256 - len(HEADER) - 4)
    ),
}


@pytest.mark.parametrize("kind", EXTENSIONS)
@pytest.mark.parametrize("options", [{}, {"interlace": True}, {"interlace": False}])
def test_a_gif_is_reduced_to_its_first_frame(kind, options):
    header, frame, trailer = gif_parts(**options)
    whole = header + EXTENSIONS[kind] + frame + trailer
    for rest in (b"", EXTENSIONS[kind], frame * 3, b"no record"):
        cut, pixels = gif.first_frame(header + EXTENSIONS[kind] + frame + rest + trailer)
        assert (cut.numpy(), int(pixels)) == (header + frame + trailer, PIXELS[..., 0].size)
    expected = np.asarray(Image.open(io.BytesIO(whole)).convert("RGB"))
    np.testing.assert_array_equal(decode.decode(whole), expected)


def test_a_gif_of_many_full_blocks_is_cut_at_the_second_frame():
    noise = np.random.default_rng(0).integers(0, 256, (99, 250), np.uint8)
    encoded = encode(Image.fromarray(noise), "GIF")
    assert gif.first_frame(encoded[:-1] + FRAME + TRAILER)[0].numpy() == encoded


def test_a_gif_with_a_table_of_local_colors():
    table = HEADER[10:11] + HEADER[13:]
    local = HEADER[:10] + b"\0" + HEADER[11:13] + FRAME[:9] + table + FRAME[10:]
    cut, pixels = gif.first_frame(local + FRAME + TRAILER)
    assert (cut.numpy(), int(pixels)) == (local + TRAILER, 30)
    np.testing.assert_array_equal(decode.decode(local + TRAILER), decode.decode(CASES["gif"][0]))


@pytest.mark.parametrize("length", [*range(13, 30), len(HEADER), len(HEADER) + 11])
def test_a_gif_that_ends_before_its_frame_is_refused(length):
    with pytest.raises(tf.errors.InvalidArgumentError, match="Unknown image file format"):
        decode.decode((HEADER + FRAME)[:length])


def test_the_further_frames_of_a_gif_cost_nothing(peak_bytes):
    frames = [Image.new("P", (2000, 2000)) for _ in range(30)]
    encoded = tf.constant(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    frame = tf.constant(encode(frames[0], "GIF"))
    decoded = tf.function(decode.decode, autograph=False)
    decoded(frame)
    assert peak_bytes(lambda: decoded(encoded)) < 2**26  # 30 frames: 2**27


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
