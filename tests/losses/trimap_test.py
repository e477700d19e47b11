import numpy as np
import pytest
import tensorflow as tf

from keras_ssl import losses


def oracle(y, z):
    """Of one image, pixel by pixel."""
    if not (y == 1).any():
        return 0.0
    costs = [
        np.log1p(np.exp(-b if a else b)) for a, b in zip(y.flat, z.flat, strict=True) if a >= 0
    ]
    return np.mean(costs)


def test_each_image_has_the_mean_over_its_certain_pixels():
    rng = np.random.default_rng(0)
    y = rng.choice(np.float32([0, 0, 1, np.nan]), (4, 3, 5, 1))
    y[1], y[2] = np.nan, np.where(y[2] == 1, 0, y[2])
    z = rng.normal(size=y.shape).astype(np.float32)
    found = losses.TrimapCrossEntropy(reduction=None)(y, z)
    expected = [oracle(*pair) for pair in zip(y, z, strict=True)]
    assert expected[0] > expected[1] == expected[2] == 0
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_uncertain_pixels_have_no_gradient():
    y = tf.constant([1, np.nan, 0, np.nan], tf.float32)[None, None, :, None]
    z = tf.Variable(np.float32([0.5, 80, -2, -90])[None, None, :, None])
    with tf.GradientTape() as tape:
        loss = losses.TrimapCrossEntropy()(y, z)
    gradient = tape.gradient(loss, z).numpy().ravel()
    sigmoid = 1 / (1 + np.exp([-0.5, 2]))
    np.testing.assert_allclose(gradient, [(sigmoid[0] - 1) / 2, 0, sigmoid[1] / 2, 0], rtol=1e-5)
    assert float(loss) == pytest.approx((np.log1p(np.exp(-0.5)) + np.log1p(np.exp(-2))) / 2)
