import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_ssl.losses import ScaleInvariantDepth


def example():
    """Depth of three maps, the logarithm of a prediction, and where depth is known."""
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.5, 20, (3, 5, 7, 1)).astype(np.float32)
    depth[0, 1, 2], depth[0, 4, 6], depth[1, 0, 0], depth[1, 3, 3] = np.nan, np.inf, 0, -1
    depth[2] = np.nan  # nothing is known
    return depth, rng.normal(1, 1, depth.shape).astype(np.float32)


def by_hand(depth, predicted, scale_free):
    values = []
    for y, p in zip(depth, predicted, strict=True):
        d = [
            float(p[index]) - np.log(float(y[index]))
            for index in np.ndindex(y.shape)
            if np.isfinite(y[index]) and y[index] > 0
        ]
        n = max(len(d), 1)
        values.append(sum(v * v for v in d) / n - scale_free * (sum(d) / n) ** 2)
    return values


@pytest.mark.parametrize("scale_free", [0, 0.5, 1])
def test_equals_a_slow_loop(scale_free):
    depth, predicted = example()
    found = ScaleInvariantDepth(scale_free, reduction="none")(depth, predicted)
    np.testing.assert_allclose(found, by_hand(depth, predicted, scale_free), rtol=1e-4, atol=1e-6)
    assert found[2] == 0


def test_unknown_pixels_get_no_gradient_and_no_nan():
    depth, predicted = example()
    predicted = tf.constant(predicted)
    with tf.GradientTape() as tape:
        tape.watch(predicted)
        loss = ScaleInvariantDepth()(depth, predicted)
    gradient = tape.gradient(loss, predicted).numpy()
    known = np.isfinite(depth) & (depth > 0)
    assert np.isfinite(gradient).all()
    assert not gradient[~known].any()
    assert gradient[known].all()


@given(st.floats(0.01, 100))
@settings(max_examples=20, deadline=None)
def test_scale(factor):
    """A wrong scale alone costs (1 - lambda) log(factor)^2; lambda = 1 ignores it."""
    depth, predicted = example()
    depth = depth[:2]
    exact = np.log(np.where(np.isfinite(depth) & (depth > 0), depth, 1))
    found = ScaleInvariantDepth(0.5)(depth, exact + np.float32(np.log(factor)))
    assert float(found) == pytest.approx(0.5 * np.log(factor) ** 2, rel=1e-3, abs=1e-5)
    whole = ScaleInvariantDepth(1.0)
    a, b = (float(whole(depth, predicted[:2] + s)) for s in (0, np.float32(np.log(factor))))
    assert a == pytest.approx(b, rel=1e-3)


def test_half_the_pixels_unknown_is_the_loss_of_the_others():
    """In the count, too: not half of it."""
    depth, predicted = example()
    one, other = depth[:1, :2, :2], predicted[:1, :2, :2]
    one[0, 1] = 3.0
    padded = np.concatenate([one, np.full_like(one, np.nan)], 2)
    loss = ScaleInvariantDepth()
    expected = float(loss(one, other))
    assert float(loss(padded, np.concatenate([other, other + 9], 2))) == pytest.approx(expected)


@pytest.mark.parametrize("value", [-0.1, 1.1, "0.5", None])
def test_refuses(value):
    with pytest.raises(ValueError, match=f"scale_free must be in 0..1, got {value!r}"):
        ScaleInvariantDepth(value)


def test_serializes():
    copy = keras.losses.deserialize(keras.losses.serialize(ScaleInvariantDepth(0.25)))
    assert isinstance(copy, ScaleInvariantDepth)
    assert copy.scale_free == 0.25
