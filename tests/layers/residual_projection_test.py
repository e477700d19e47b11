import keras
import numpy as np
import pytest

from keras_ssl.layers import residual_projection
from keras_ssl.layers.residual_projection import NearIdentity


def test_starts_as_a_copy_of_its_input():
    kernel = np.asarray(NearIdentity(seed=0)((6, 4)))
    np.testing.assert_array_equal(np.diag(kernel), np.ones(4))
    rest = kernel[~np.eye(6, 4, dtype=bool)]
    assert (np.abs(rest) <= 0.01).all()
    assert rest.std() > 0.003
    head = residual_projection(4, 6)
    copied = np.asarray(head.get_layer("shortcut").kernel)
    np.testing.assert_allclose(copied[:, :4], np.eye(4), atol=0.01)


def test_matches_numpy():
    head = residual_projection(3, 5)
    rng = np.random.default_rng(0)
    for weight in head.weights:
        weight.assign(rng.uniform(0.5, 1.5, weight.shape) * rng.choice([-1, 1], weight.shape))
    head.get_layer("normalization").moving_variance.assign([1.0, 2.0, 3.0, 4.0, 5.0])
    x = rng.normal(size=(2, 3, 4, 3)).astype("float32")
    w = {f"{v.path.split('/')[-2]}/{v.name}": v.numpy() for v in head.weights}
    norm = {n: w[f"normalization/{n}"] for n in ("gamma", "beta", "moving_mean", "moving_variance")}
    hidden = (x @ w["dense1/kernel"] - norm["moving_mean"]) / np.sqrt(
        norm["moving_variance"] + 1e-5
    )
    hidden = np.maximum(norm["gamma"] * hidden + norm["beta"], 0)
    total = hidden @ w["dense2/kernel"] + w["dense2/bias"] + x @ w["shortcut/kernel"]
    mean, variance = total.mean(-1, keepdims=True), total.var(-1, keepdims=True)
    expected = (total - mean) / np.sqrt(variance + 1e-5)
    expected = w["layer_normalization/gamma"] * expected + w["layer_normalization/beta"]
    np.testing.assert_allclose(head(x), expected, rtol=1e-4, atol=1e-4)


def test_without_normalization():
    head = residual_projection(3, 5, normalized=False)
    x = np.random.default_rng(0).normal(size=(2, 1, 1, 3)).astype("float32")
    first, second, shortcut = (head.get_layer(n) for n in ("dense1", "dense2", "shortcut"))
    first.bias.assign(np.arange(5) / 5)
    hidden = np.maximum(x @ first.kernel.numpy() + first.bias.numpy(), 0)
    expected = hidden @ second.kernel.numpy() + x @ shortcut.kernel.numpy()
    np.testing.assert_allclose(head(x, training=True), expected, rtol=1e-4, atol=1e-5)


def test_positions_are_embedded_alike():
    head = residual_projection(3, 5)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 3)).astype("float32")
    np.testing.assert_allclose(
        head(x[:, ::-1, ::-1]), head(x).numpy()[:, ::-1, ::-1], rtol=1e-4, atol=1e-5
    )


def test_float32_in_mixed_precision_and_synchronized():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        head = residual_projection(3, 5)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {layer.compute_dtype for layer in head.layers[1:]} == {"float32"}
    assert head.get_layer("normalization").synchronized


def test_refuses():
    with pytest.raises(ValueError, match="units must be an integer"):
        residual_projection(3, 0)
    with pytest.raises(ValueError, match="channels must be an integer"):
        residual_projection(2.5, 4)
    with pytest.raises(ValueError, match="normalized must be True or False, got 'all'"):
        residual_projection(3, 4, normalized="all")


def test_initializer_is_serialized():
    initializer = NearIdentity(seed=3)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(initializer))
    np.testing.assert_array_equal(copy((4, 3)), initializer((4, 3)))
