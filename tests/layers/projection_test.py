import keras
import numpy as np
import pytest

from keras_ssl.layers import projection


def kinds(head):
    return [type(layer).__name__ for layer in head.layers]


def test_simclr_normalizes_every_layer_and_the_last_without_an_offset():
    head = projection(6, 4, depth=2, normalized="all")
    assert kinds(head) == ["Dense", "BatchNormalization", "ReLU", "Dense", "BatchNormalization"]
    assert [layer.use_bias for layer in head.layers if isinstance(layer, keras.layers.Dense)] == [
        False, False
    ]  # fmt: skip
    assert [head.layers[1].center, head.layers[4].center] == [True, False]
    assert head.layers[1].synchronized
    x = np.random.default_rng(0).normal(size=(50, 6)).astype("float32")
    z = head(x, training=True).numpy()
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(axis=0), 1, rtol=1e-2)


def test_moco_and_byol():
    assert kinds(projection(6, 4, depth=1)) == ["Dense"]
    assert kinds(projection(6, 4, depth=2)) == ["Dense", "ReLU", "Dense"]
    head = projection(6, 4, hidden=9, normalized="hidden")
    assert kinds(head) == ["Dense", "BatchNormalization", "ReLU", "Dense"]
    assert head.weights[0].shape == (6, 9)
    assert projection(6, 4, depth=3).count_params() == 6 * 6 + 6 + 6 * 6 + 6 + 6 * 4 + 4


def test_float32_in_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        head = projection(6, 4, normalized="all")
    finally:
        keras.config.set_dtype_policy("float32")
    assert head(np.ones((3, 6), "float16")).dtype == "float32"


@pytest.mark.parametrize("name", ["inputs", "outputs", "depth", "hidden"])
def test_invalid_numbers(name):
    with pytest.raises(
        ValueError, match=rf"{name} must be an integer \(int64\) of at least 1, got 0"
    ):
        projection(**{"inputs": 4, "outputs": 2, name: 0})


def test_invalid_normalization():
    with pytest.raises(ValueError, match="normalized must be one of none, hidden, all, got 'last'"):
        projection(4, 2, normalized="last")
