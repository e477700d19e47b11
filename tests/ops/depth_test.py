import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_ssl.ops import depth

NO_DEPTH = np.float32([np.nan, np.inf, -np.inf, 0, -2, 1e-30])
metres = st.floats(2.0**-10, 2.0**10, width=32)


def test_what_is_known():
    assert not depth.known(tf.constant(NO_DEPTH)).numpy().any()
    assert depth.known(tf.constant([1e-6, 1e6])).numpy().all()


def test_logarithm_and_its_gradient_are_finite():
    x = tf.constant([*NO_DEPTH, 0.5, 20.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = depth.log(x)
    np.testing.assert_allclose(y, [0] * 6 + [np.log(0.5), np.log(20)], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(y, x), [0] * 6 + [2, 0.05], rtol=1e-6)


def test_depth_by_hand():
    disparity = np.array([[8, 16, 0], [np.nan, np.inf, -4]])
    found = depth.from_disparity(disparity, focal=100.0, baseline=0.5, offset=2.0)
    np.testing.assert_allclose(found, [[5, 50 / 18, np.nan], [np.nan] * 3], rtol=1e-6)
    # An offset that puts the point behind the camera.
    assert np.isnan(depth.from_disparity(tf.constant([3.0]), 100.0, 0.5, offset=-4.0)).all()


@given(metres, st.floats(10, 3000), st.floats(0.01, 2))
@settings(max_examples=30, deadline=None)
def test_twice_the_disparity_is_half_the_depth(disparity, focal, baseline):
    one, two = depth.from_disparity(tf.constant([disparity, 2 * disparity]), focal, baseline)
    assert float(one) == pytest.approx(2 * float(two), rel=1e-5)
    assert float(one) * disparity == pytest.approx(focal * baseline, rel=1e-5)


def test_image_of_depth_by_hand():
    shown = depth.to_image(tf.constant(NO_DEPTH[:, None]), 0.5, 50)
    assert not shown.numpy().any()
    values = np.float32([0.1, 0.5, 2, 5, 50, 400])
    found = depth.to_image(tf.constant(values[:, None]), 0.5, 50).numpy()
    clipped = np.clip(values, 0.5, 50)
    expected = [np.log(clipped / 0.5) / np.log(100), 0.5 / clipped, np.ones(6)]
    np.testing.assert_array_equal(found, np.round(255 * np.stack(expected, -1)))


@given(metres, metres)
@settings(max_examples=30, deadline=None)
def test_farther_is_brighter_in_the_first_channel_and_darker_in_the_second(a, b):
    near, far = sorted((a, b))
    first, second = depth.to_image(tf.constant([[near], [far]]), 2.0**-10, 2.0**10).numpy()
    assert first[0] <= second[0]
    assert first[1] >= second[1]
    assert first[2] == second[2] == 255
    assert first.min() >= 0
    assert second.max() <= 255


def test_the_depth_of_an_image_is_known_to_a_step_of_the_logarithm():
    """2.1 % for 0.5 to 100 m: the rounding to 8 bits."""
    values = np.geomspace(0.5, 100, 999).astype(np.float32)
    level = depth.to_image(tf.constant(values[:, None]), 0.5, 100)[:, 0]
    back = 0.5 * np.exp(level / 255 * np.log(200))
    assert np.abs(back / values - 1).max() < 0.0106
