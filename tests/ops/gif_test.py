"""A GIF is reduced to its first frame."""

import io

import numpy as np
import pytest
import tensorflow as tf
from image_files import PIXELS, RGB, encode
from PIL import Image

from keras_ssl.ops import decode, gif


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
    whole = encode(RGB.convert("P"), "GIF")
    np.testing.assert_array_equal(decode.decode(local + TRAILER), decode.decode(whole))


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
