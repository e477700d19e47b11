"""Exact statistics of batch normalization over a data set."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssl import data, encoders


def calibratable(axis=-1):
    """Batch normalization of two channels, a 1x1 convolution to three, and batch normalization."""
    inputs = keras.Input((3, 4, 2))
    x = keras.layers.BatchNormalization(name="first")(inputs)
    x = keras.layers.Conv2D(3, 1, name="stage1")(x)
    x = keras.layers.BatchNormalization(name="second", axis=axis)(x)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


def test_calibrate_has_the_exact_statistics_of_the_population():
    encoder, rng = calibratable(), np.random.default_rng(0)
    weights = [rng.uniform(0.5, 2, w.shape).astype("float32") for w in encoder.get_weights()]
    encoder.set_weights(weights)
    # Large means, which lose the variance if squares are averaged in float32; parts that differ.
    pixels = rng.normal(size=(23, 3, 4, 2)) * [1, 3] + [1000, -2000]
    pixels[:9] += 7
    pixels = pixels.astype("float32")
    images = tf.data.Dataset.from_tensor_slices({"image": pixels})
    found = encoders.calibrate(encoder, images, batch_size=5)

    x = pixels.astype("float64")
    first = x.mean((0, 1, 2)), x.var((0, 1, 2))
    gamma, beta = (np.float64(w) for w in weights[:2])
    x = gamma * (x - first[0]) / np.sqrt(first[1] + 1e-3) + beta
    kernel, bias = (np.float64(w) for w in encoder.get_layer("stage1").get_weights())
    # In closed form: the normalized channels have mean beta, so the second mean needs no images.
    np.testing.assert_allclose(
        (x @ kernel[0, 0] + bias).mean((0, 1, 2)), beta @ kernel[0, 0] + bias
    )
    covariance = np.cov(x.reshape(-1, 2).T, bias=True)
    second = (
        beta @ kernel[0, 0] + bias,
        np.einsum("ik,ij,jk->k", kernel[0, 0], covariance, kernel[0, 0]),
    )
    for name, (mean, variance) in (("first", first), ("second", second)):
        layer = found.get_layer(name)
        np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-3)
        for weight in ("gamma", "beta"):
            expected = getattr(encoder.get_layer(name), weight)
            np.testing.assert_array_equal(getattr(layer, weight), expected)
    for before, after in zip(weights, encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_calibrate_over_another_axis_and_whole_networks(noise):
    found = encoders.calibrate(
        calibratable(axis=1), tf.data.Dataset.from_tensor_slices({"image": noise[:, :3, :4, :2]})
    )
    assert found.get_layer("second").moving_mean.shape == (3,)
    images = data.from_array(noise)
    encoder = encoders.resnet((32, 32, 3), width=2, blocks=(1,))
    a, b = (encoders.calibrate(encoder, images, size) for size in (40, 7))
    for left, right in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)
    # In training mode the batch of all images is normalized by the same statistics.
    np.testing.assert_allclose(a(noise), encoder(noise, training=True), rtol=1e-4, atol=1e-4)


def test_calibrate_refuses_what_it_cannot_reach(noise):
    inner = calibratable()
    outer = keras.Sequential([keras.Input((3, 4, 2)), inner])
    images = tf.data.Dataset.from_tensors({"image": np.zeros((3, 4, 2), "float32")})
    with pytest.raises(ValueError, match="must contain its layer '.*' directly"):
        encoders.calibrate(outer, images)
    with pytest.raises(ValueError, match="at least one image"):
        encoders.calibrate(inner, images.take(0))
