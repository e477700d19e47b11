import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_ssl.ops import images

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


def enlarge_then_crop(image, height, width):
    """The definition of `resize`: resizes all of the image, and crops afterwards."""
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    scale = tf.reduce_max(tf.constant([height, width], tf.float32) / size)
    covering = tf.maximum(tf.cast(tf.round(size * scale), tf.int32), [height, width])
    image = tf.image.resize(image, covering, antialias=True)
    top, left = tf.unstack((covering - [height, width]) // 2)
    return tf.round(image[top : top + height, left : left + width])


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_resize_equals_enlarging_and_cropping(height, width, to_height, to_width):
    x = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    difference = tf.cast(images.resize(x, to_height, to_width), tf.float32) - enlarge_then_crop(
        x, to_height, to_width
    )
    # The same weights of the same pixels, but float32 positions counted from the crop instead of from
    # the covering image: a value near .5 may be rounded to the other side.
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("size", [(20, 3000), (3000, 20), (7, 1000), (1, 900)])
def test_resize_of_long_images_equals_enlarging_and_cropping(size):
    x = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)  # columns are cut first
    difference = tf.cast(images.resize(x, 32, 32), tf.float32) - enlarge_then_crop(x, 32, 32)
    assert np.abs(difference).max() <= 1
    assert (difference == 0).numpy().mean() > 0.9


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1), (1, 2**23)])
def test_resize_computes_the_crop_only(size, peak_bytes):
    x = tf.fill((*size, 3), tf.constant(77, tf.uint8))
    resized = tf.function(lambda image: images.resize(image, 32, 32), autograph=False)
    spec = tf.TensorSpec((None, None, 3), tf.uint8)
    assert resized.get_concrete_function(spec).structured_outputs.shape == (32, 32, 3)
    resized(x[:8, :8])
    peak = peak_bytes(lambda: resized(x))
    assert peak < 2**25  # that of 1 x 200,000 pixels has 6,400,000 x 32 if it is resized first
    np.testing.assert_array_equal(resized(x), np.full((32, 32, 3), 77))


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


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_nearest_neighbor_is_aligned_with_the_resized_intrinsics(
    height, width, to_height, to_width
):
    """Each pixel gets its coordinates: they differ from those of its ray by less than half a pixel."""
    coordinates = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    found = images.resize_nearest(coordinates, to_height, to_width)
    assert found.shape == (to_height, to_width, 2)
    camera = tf.constant([3.0, 4.0, 5.5, 6.5])
    fx, fy, cx, cy = images.resize_intrinsics(camera, (height, width), to_height, to_width).numpy()
    x, y = np.meshgrid(np.arange(to_width), np.arange(to_height))
    ray = np.stack([(x - cx) / fx * 3 + 5.5, (y - cy) / fy * 4 + 6.5], -1)
    assert np.abs(ray - found).max() <= 0.5001
    # The middle of the image, but for a pixel: what is cropped at both sides is a whole number.
    middle = ray[0, 0] + ray[-1, -1] - np.array([width, height]) + 1
    assert (np.abs(middle) <= 1.001 * np.array([3 / fx, 4 / fy])).all()


def test_nearest_neighbor_of_the_same_size_changes_nothing():
    np.testing.assert_array_equal(images.resize_nearest(PIXELS, 6, 5), PIXELS)
    camera = tf.constant([3.0, 4.0, 5.5, 6.5])
    np.testing.assert_array_equal(images.resize_intrinsics(camera, (6, 5), 6, 5), camera)


def test_nearest_neighbor_and_resize_show_the_same_region():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    np.testing.assert_array_equal(images.resize_nearest(wide, 10, 10), np.full((10, 10, 3), 200))
    wide[:, :20] = 100
    shown = images.resize_nearest(wide, 10, 12)[0, :, 0].numpy()
    assert shown.tolist() == [100] + [200] * 10 + [0]
