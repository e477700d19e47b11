"""The discriminator: spectral normalization, precision and independence of the batch."""

import numpy as np
import pytest
import tensorflow as tf

from keras_ssl.training import adversarial


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_spectral_normalization_and_logits_are_float32(dtype):
    networks = []
    for policy in (None, dtype):
        networks.append(adversarial.discriminator(32, 32, filters=4, code=5, dtype=policy))
    networks[1].set_weights(networks[0].get_weights())
    shown = [tf.random.normal((6, 32, 32, 3)), tf.random.normal((6, 5))]
    exact, logits = (network(shown, training=True) for network in networks)
    for a, b in zip(*(network.weights for network in networks), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=a.path)
    assert logits.dtype == tf.float32
    low = dtype.removeprefix("mixed_")
    assert (tf.cast(tf.cast(logits, low), tf.float32) != logits).numpy().any()
    np.testing.assert_allclose(logits, exact, atol=0.02)
    convolutions = [v.layer for v in networks[1].layers if hasattr(v, "layer")]
    assert [v.compute_dtype for v in convolutions] == [low] * 4 + ["float32"]


def test_logits_do_not_depend_on_the_batch():
    """Required by the factor between the gradients of the two losses."""
    network = adversarial.discriminator(32, 32, filters=4, code=5)
    images, codes = tf.random.normal((6, 32, 32, 3)), tf.random.normal((6, 5))
    network([images, codes], training=True)
    whole = network([images, codes])
    np.testing.assert_allclose(network([images[:2], codes[:2]]), whole[:2], rtol=1e-4, atol=1e-5)


def test_every_kernel_is_divided_by_its_spectral_norm():
    """Doubling all kernels changes no logit, and no kernel is changed by the forward pass."""
    network = adversarial.discriminator(32, 32, filters=4, code=5)
    shown = [tf.random.normal((6, 32, 32, 3)), tf.random.normal((6, 5))]
    logits = network(shown)
    kernels = [v for v in network.trainable_variables if len(v.shape) > 1]
    before = [2 * v.numpy() for v in kernels]
    for v, value in zip(kernels, before, strict=True):
        v.assign(value)
    np.testing.assert_allclose(network(shown), logits, rtol=1e-4, atol=1e-6)
    network(shown, training=True)
    for v, value in zip(kernels, before, strict=True):
        np.testing.assert_array_equal(v, value)


def test_refuses_to_have_no_filters():
    with pytest.raises(ValueError, match="filters must be at least 1, got 0"):
        adversarial.discriminator(32, 32, filters=0)
