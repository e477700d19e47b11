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
