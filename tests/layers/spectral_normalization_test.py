"""Spectral normalization versus the singular value decomposition and finite differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssl.layers import SpectralNormalization

RANDOM = np.random.default_rng(0)


def converged(layer, inputs):
    """Builds the layer, gives it an asymmetric kernel, and iterates until u is the singular vector."""
    wrapper = SpectralNormalization(layer, power_iterations=200)
    wrapper.build(inputs.shape)
    wrapper.kernel.assign(RANDOM.normal(size=wrapper.kernel.shape))
    wrapper(inputs, training=True)
    return wrapper


CASES = [
    (keras.layers.Dense(3), (5, 4)),
    (keras.layers.Conv2D(3, 2, padding="same"), (2, 5, 4, 2)),
]


def normalized(kernel):
    """Oracle: the kernel divided by its largest singular value, in float64."""
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return kernel / np.linalg.svd(matrix, compute_uv=False)[0]


@pytest.mark.parametrize(("layer", "shape"), CASES)
def test_output_is_that_of_the_kernel_divided_by_its_largest_singular_value(layer, shape):
    inputs = RANDOM.normal(size=shape).astype("float32")
    wrapper = converged(layer.__class__.from_config(layer.get_config()), inputs)
    kernel = wrapper.kernel.numpy()
    found = wrapper(inputs, training=True), wrapper(inputs)
    np.testing.assert_array_equal(wrapper.kernel, kernel)  # only an optimizer changes it
    wrapper.layer.kernel.assign(normalized(kernel.astype("float64")))
    for output in found:
        np.testing.assert_allclose(output, wrapper.layer(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layer", "shape"), CASES)
def test_gradient_flows_through_sigma(layer, shape):
    """The gradient is that of the quotient, by central differences of an oracle in float64."""
    inputs = RANDOM.normal(size=shape).astype("float32")
    wrapper = converged(layer.__class__.from_config(layer.get_config()), inputs)
    kernel = wrapper.kernel.numpy().astype("float64")
    with tf.GradientTape() as tape:
        output = wrapper(inputs, training=True)
        target = RANDOM.normal(size=output.shape).astype("float32")
        loss = tf.reduce_sum(output * target)
    gradient = tape.gradient(loss, wrapper.trainable_variables[0]).numpy()

    # The layer is linear, so the loss is <G, kernel / sigma> with the gradient G of the plain layer.
    with tf.GradientTape() as tape:
        plain = tf.reduce_sum(wrapper.layer(inputs) * target)
    slope = tape.gradient(plain, wrapper.layer.trainable_variables[0]).numpy()
    expected = np.zeros_like(kernel)
    for index in np.ndindex(kernel.shape):
        step = np.zeros_like(kernel)
        step[index] = 1e-5
        ends = [(slope * normalized(kernel + s)).sum() for s in (step, -step)]
        expected[index] = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-3)
    # The quotient does not depend on the scale of the kernel.
    assert (gradient * kernel).sum() == pytest.approx(0, abs=1e-3)


def test_one_power_iteration_per_training_step_updates_u():
    wrapper = SpectralNormalization(keras.layers.Dense(3))
    inputs = RANDOM.normal(size=(5, 4)).astype("float32")
    wrapper.build(inputs.shape)
    kernel, u = wrapper.kernel.numpy(), wrapper.vector_u.numpy()[0]
    wrapper(inputs)
    np.testing.assert_array_equal(wrapper.vector_u.numpy()[0], u)
    wrapper(inputs, training=True)
    expected = kernel.T @ kernel @ u
    np.testing.assert_allclose(
        wrapper.vector_u.numpy()[0], expected / np.linalg.norm(expected), rtol=1e-4
    )


def test_a_kernel_of_zeros_stays():
    wrapper = SpectralNormalization(keras.layers.Dense(3, kernel_initializer="zeros"))
    with tf.GradientTape() as tape:
        output = wrapper(np.ones((2, 4), np.float32), training=True)
    np.testing.assert_array_equal(output, np.zeros((2, 3)))
    assert np.isfinite(tape.gradient(output, wrapper.trainable_variables[0])).all()


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_computes_sigma_in_float32_and_the_layer_in_its_own_dtype(dtype):
    inputs = RANDOM.normal(size=(5, 4)).astype("float32")
    layer = keras.layers.Dense(3, dtype=dtype)
    wrapper = converged(layer, inputs)
    output = wrapper(inputs)
    assert output.dtype == layer.compute_dtype
    expected = inputs @ normalized(wrapper.kernel.numpy())
    np.testing.assert_allclose(tf.cast(output, tf.float32), expected, atol=0.03)


def test_is_saved(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, SpectralNormalization(keras.layers.Dense(3))(inputs))
    x = RANDOM.normal(size=(5, 4)).astype("float32")
    model(x, training=True)
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    assert type(copy.layers[-1]) is SpectralNormalization
    np.testing.assert_array_equal(copy(x), model(x))
