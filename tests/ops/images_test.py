import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from keras_ssl.ops import augment, decode, images
from keras_ssl.ops.random import uniform

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)


@given(st.integers(-8, 8))
@settings(max_examples=17, deadline=None)
def test_rotate_equals_numpy(turns):
    x = np.stack([PIXELS, PIXELS[::-1]])
    np.testing.assert_array_equal(images.rotate(x, 90 * turns), np.rot90(x, turns, axes=(1, 2)))


@given(st.integers(-4, 4), st.integers(-4, 4))
@settings(max_examples=20, deadline=None)
def test_rotations_compose(a, b):
    twice = images.rotate(images.rotate(PIXELS, 90 * a), 90 * b)
    np.testing.assert_array_equal(twice, images.rotate(PIXELS, 90 * (a + b)))


def test_rotate_refuses():
    with pytest.raises(ValueError, match="degrees.*45"):
        images.rotate(PIXELS, 45)


@given(st.integers(0, 3), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_unfold_inverts_fold(batch, views, size):
    x = np.arange(batch * views * size * 2).reshape(batch, views, size, 2)
    folded = images.fold(x)
    assert folded.shape == (batch * views, size, 2)
    np.testing.assert_array_equal(images.unfold(folded, views), x)


def test_fold_keeps_static_shape_and_order():
    x = np.arange(12).reshape(2, 3, 2)
    np.testing.assert_array_equal(
        images.fold(x), [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    )
    function = tf.function(images.fold, input_signature=[tf.TensorSpec((None, 4, 8, 8, 3))])
    assert function.get_concrete_function().structured_outputs.shape == [None, 8, 8, 3]


def test_uniform_depends_only_on_the_seed():
    seeds = tf.constant([[3, 5], [3, 6], [4, 5]], tf.int64)
    numbers = uniform(seeds, 50).numpy()
    np.testing.assert_array_equal(uniform(seeds[1:2], 50)[0], numbers[1])
    assert len(np.unique(numbers)) == 150
    assert ((numbers >= 0) & (numbers < 1)).all()


def test_random_shift_shifts_by_whole_pixels_and_flips():
    seeds = tf.stack([tf.zeros(64, tf.int64), tf.range(64, dtype=tf.int64)], 1)
    x = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    moved = augment.random_shift(np.stack([x] * 64), seeds, fraction=0.25, flip=True).numpy()
    padded = np.pad(x, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    possible = {
        padded[i : i + 8, j : j + 8][:, ::step].tobytes(): (i, j, step)
        for i in range(5)
        for j in range(5)
        for step in (1, -1)
    }
    found = {possible[m.tobytes()] for m in moved}  # KeyError: not one of the 50 possible images
    assert len(found) > 25
    still = augment.random_shift(x[None], seeds[:1], fraction=0, flip=False)
    np.testing.assert_array_equal(still[0], x)


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


def test_resize_covers_and_crops_the_center():
    x = np.zeros((20, 60, 3), np.uint8)
    x[:, 17:43] = 200  # the central square, and the border that antialiasing affects
    np.testing.assert_array_equal(images.resize(x, 10, 10), np.full((10, 10, 3), 200))
    np.testing.assert_array_equal(images.resize(PIXELS, 6, 5), PIXELS)
    assert images.resize(PIXELS[:1, :1], 32, 16).shape == (32, 16, 3)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_resize_returns_the_requested_size(height, width, to_height, to_width):
    assert images.resize(np.zeros((height, width, 3), np.uint8), to_height, to_width).shape == (
        to_height,
        to_width,
        3,
    )


def seeds(number):
    return tf.stack(
        [tf.fill((number,), tf.constant(3, tf.int64)), tf.range(number, dtype=tf.int64)], 1
    )


def test_random_crop_keeps_the_requested_area():
    """On a ramp, the slopes of the crop give the fraction of height and width that is kept."""
    y, x = np.meshgrid(np.arange(33.0), np.arange(33.0), indexing="ij")
    ramps = np.tile(np.stack([y, x, x], -1)[None], (200, 1, 1, 1)).astype("float32")
    crops = augment.random_crop(ramps, seeds(200), smallest=0.25).numpy()
    heights = (crops[:, -1, 0, 0] - crops[:, 0, 0, 0]) / 32
    widths = (crops[:, 0, -1, 1] - crops[:, 0, 0, 1]) / 32
    assert 0.35 < (widths < 0).mean() < 0.65  # mirrored
    areas = heights * np.abs(widths)
    assert areas.min() > 0.24
    assert areas.max() > 0.8
    ratios = heights / np.abs(widths)
    assert ratios.min() > 0.74
    assert ratios.max() < 1.34
    np.testing.assert_allclose(crops[..., 1], crops[..., 2])


def test_random_colors_changes_only_colors(noise):
    jittered = augment.random_colors(noise, seeds(40)).numpy()
    assert jittered.min() >= 0
    assert jittered.max() <= 255
    gray = np.ptp(jittered, axis=-1).max((1, 2)) < 1e-3
    assert 0.05 < gray.mean() < 0.4
    np.testing.assert_allclose(
        augment.random_colors(noise, seeds(40), strength=0.0, gray=0.0), noise, atol=1e-3
    )
    # The random numbers depend only on the seed of the image, and differ from those of the crop.
    alone = augment.random_colors(noise[7:8], seeds(40)[7:8])
    np.testing.assert_allclose(alone[0], jittered[7], atol=1e-4)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [(5, 8), (1, 2), (16, 3)])
def test_enlarge_matches_tensorflows_bicubic(size, factor):
    x = np.random.default_rng(0).uniform(0, 255, (2, *size, 3)).astype(np.float32)
    expected = tf.image.resize(x, (size[0] * factor, size[1] * factor), "bicubic")
    np.testing.assert_allclose(images.enlarge(x, factor), expected, rtol=0, atol=1e-3)
    flat = images.enlarge(np.full((1, *size, 1), 7, np.uint8), factor)
    np.testing.assert_allclose(flat, 7, rtol=1e-5)


def test_enlarge_refuses():
    with pytest.raises(ValueError, match="factor must be at least 1, got 0"):
        images.enlarge(np.zeros((1, 2, 2, 3)), 0)
