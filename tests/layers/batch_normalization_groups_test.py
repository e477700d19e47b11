"""Groups of a batch that are normalized one by one."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from normalization import on_replicas, pair, random_input, step

from keras_ssl.layers.batch_normalization import grouped


def by_groups(layer, x, target, groups):
    with grouped(groups):
        return step(layer, x, target)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((3,), {}),
        ((4, 3), {"scale": False}),
        ((5, 4, 3), {}),
        ((5, 4, 3), {"synchronized": True, "center": False}),
        ((5, 4, 3), {"dtype": "mixed_bfloat16"}),
        ((2, 5, 4, 3), {}),
    ],
)
def test_groups_are_normalized_as_in_calls_of_their_own(shape, arguments, compiled):
    arguments = {"epsilon": 0.01, "momentum": 0.75, **arguments}
    layer, other = pair((None, *shape), **arguments)
    start = {w.path.split("/")[-1]: np.asarray(w) for w in layer.weights}
    x, target = random_input((6, *shape)), random_input((6, *shape), seed=2)
    x *= np.arange(1, 7).reshape(6, *[1] * len(shape))  # every group has its own statistics
    x = tf.cast(x, layer.compute_dtype)
    run = tf.function(by_groups, jit_compile=True) if compiled else by_groups
    y, gradients = run(layer, x, target, 3)
    assert y.dtype == gradients[0].dtype == layer.compute_dtype

    # In NumPy: parts of two images each.
    flat = np.asarray(tf.cast(x, "float64")).reshape(3, -1, shape[-1])
    mean, variance = flat.mean(1), flat.var(1)
    expected = (flat - mean[:, None]) / np.sqrt(variance[:, None] + 0.01)
    expected = expected * start.get("gamma", 1) + start.get("beta", 0)
    narrow = layer.compute_dtype == "bfloat16"
    close = {"rtol": 2**-7, "atol": 2**-7} if narrow else {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(tf.cast(y, "float64"), expected.reshape(6, *shape), **close)
    for moving, old, new in (
        (layer.moving_mean, start["moving_mean"], mean),
        (layer.moving_variance, start["moving_variance"], variance),
    ):
        np.testing.assert_allclose(moving, 0.75 * old + 0.25 * new.mean(0), rtol=1e-5)

    # The gradients: those of three calls of Keras' layer.
    calls = [step(other, x[k : k + 2], target[k : k + 2])[1] for k in (0, 2, 4)]
    by_x, *by_weights = zip(*calls, strict=True)
    expected = [tf.concat(by_x, 0), *(tf.add_n(g) for g in by_weights)]
    for a, b in zip(gradients, expected, strict=True):
        size = np.abs(tf.cast(b, "float32")).max()
        np.testing.assert_allclose(
            tf.cast(a, "float32"), tf.cast(b, "float32"), atol=size * (2**-7 if narrow else 1e-5)
        )


def test_groups_end_with_their_block():
    layer, expected = pair((None, 5, 4, 3))
    x = random_input((6, 5, 4, 3))
    with grouped(2):
        np.testing.assert_allclose(layer(x), expected(x), atol=1e-5)  # not in training
        with pytest.raises(RuntimeError), grouped(3):
            raise RuntimeError
    before = layer.get_weights()
    with grouped(2, moves=False):
        layer(x, training=True)
    np.testing.assert_array_equal(np.concatenate(before), np.concatenate(layer.get_weights()))
    np.testing.assert_allclose(layer(x, training=True), expected(x, training=True), atol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, expected.moving_variance, rtol=1e-5)


def test_rows_that_fill_up_the_last_groups_do_not_count():
    layer, _ = pair((None, 3), momentum=0.0)
    x = random_input((8, 3)) * np.arange(1, 9)[:, None]
    with grouped(4, rows=5):
        layer(x, training=True)
    statistics = x.reshape(4, 2, 3).mean(1), x.reshape(4, 2, 3).var(1)
    for moving, v in zip((layer.moving_mean, layer.moving_variance), statistics, strict=True):
        np.testing.assert_allclose(moving, (2 * v[0] + 2 * v[1] + v[2]) / 5, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("synchronized", [False, True])
def test_groups_of_replicas(synchronized, two_replicas):
    """Replicas are traced in threads that take turns at every variable."""
    x, target = random_input((8, 5, 4, 3)), random_input((8, 5, 4, 3), seed=2)
    one, _ = pair((None, 5, 4, 3))
    y, gradients = by_groups(one, tf.constant(x), target, 4)
    with two_replicas.scope():
        layer, _ = pair((None, 5, 4, 3), synchronized=synchronized)
    halves = functools.partial(by_groups, groups=2)
    found, found_gradients = on_replicas(two_replicas, layer, x, target, (4, 4), halves)
    np.testing.assert_allclose(found, y, atol=1e-5)
    for a, b in zip(found_gradients, gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    if synchronized:  # otherwise each replica keeps its own moving averages
        for moving in ("moving_mean", "moving_variance"):
            values = two_replicas.experimental_local_results(getattr(layer, moving).value)
            np.testing.assert_allclose(values, 2 * [getattr(one, moving).numpy()], rtol=1e-5)
