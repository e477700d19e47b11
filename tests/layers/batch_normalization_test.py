"""Batch normalization versus Keras, and synchronized on replicas versus one."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from normalization import on_replicas, pair, random_input, step

from keras_ssl.layers import BatchNormalization


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"center": False},
        {"scale": False},
        {"epsilon": 0.1, "momentum": 0.5},
        {"synchronized": True},  # has no effect on one replica
    ],
)
def test_matches_keras_in_training_and_inference(arguments):
    ours, theirs = pair((None, 5, 4, 3), **arguments)
    x, target = tf.constant(random_input((6, 5, 4, 3))), random_input((6, 5, 4, 3), seed=2)
    for _ in range(2):
        (y, gradients), (expected, expected_gradients) = (
            step(b, x, target) for b in (ours, theirs)
        )
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
        for a, b in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        assert a.path.split("/")[-1] == b.path.split("/")[-1]
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_variance_is_biased(size):
    ours, theirs = pair((None, 1, 1, 2))
    x = random_input((size, 1, 1, 2))
    ours(x, training=True)
    theirs(x, training=True)
    np.testing.assert_allclose(ours.moving_variance, theirs.moving_variance, rtol=1e-5)


def test_empty_batch_does_not_change_statistics():
    # A replica gets an empty batch if the last batch is smaller than the number of replicas.
    layer, _ = pair((None, 2, 2, 3))
    before = layer.get_weights()
    layer(np.zeros((0, 2, 2, 3), "f4"), training=True)
    for a, b in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_matches_keras_in_mixed_precision(policy):
    ours, theirs = pair((None, 5, 4, 3), dtype=policy)
    x = tf.cast(random_input((6, 5, 4, 3)), ours.compute_dtype)
    for training in (True, False):
        y, expected = ours(x, training=training), theirs(x, training=training)
        assert y.dtype == expected.dtype == ours.compute_dtype
        # Both compute in float32 and round once, so they differ by at most one unit of the narrow type.
        step = 2**-7 if policy == "mixed_bfloat16" else 2**-10
        np.testing.assert_allclose(
            tf.cast(y, "float32"), tf.cast(expected, "float32"), rtol=step, atol=1e-6
        )
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        # Keras computes the moments in float32, but clips them to the range of float16.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [((6, 3), {}), ((6, 4, 3), {}), ((6, 3, 4, 5), {"axis": 1}),
     ((6, 4, 5, 3), {"renorm": True}), ((6, 4, 5, 3), {"dtype": "float64"}),
     ((6, 4, 5, 3), {"dtype": "float16"}), ((6, 4, 5, 3), {"dtype": "bfloat16"}),
     ((6, 3), {"dtype": "float16", "synchronized": True})],
)  # fmt: skip
def test_other_cases_are_computed_by_keras(shape, arguments):
    ours, theirs = pair((None, *shape[1:]), **arguments)
    x = random_input(shape)
    np.testing.assert_allclose(ours(x, training=True), theirs(x, training=True), rtol=1e-6)
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_mask_and_frozen_layer():
    ours, theirs = pair((None, 4, 5, 3))
    x, mask = random_input((6, 4, 5, 3)), np.random.default_rng(0).random((6, 4, 5)) < 0.5
    expected = theirs(x, training=True, mask=mask)
    np.testing.assert_allclose(ours(x, training=True, mask=mask), expected, rtol=1e-6)
    ours.trainable = False
    before = ours.get_weights()
    np.testing.assert_array_equal(ours(x, training=True), ours(x))
    np.testing.assert_array_equal(np.concatenate(before), np.concatenate(ours.get_weights()))


@pytest.mark.parametrize("synchronized", [False, True])
def test_two_replicas(synchronized, two_replicas):
    shape = (8, 5, 4, 3)
    x = random_input(shape)
    halves = two_replicas.experimental_distribute_values_from_function(
        lambda context: tf.constant(np.split(x, 2)[context.replica_id_in_sync_group])
    )
    results = []
    for kind in (BatchNormalization, keras.layers.BatchNormalization):
        with two_replicas.scope():
            layer = kind(synchronized=synchronized)
            layer.build(shape)

        @tf.function
        def step(values, layer=layer):
            return two_replicas.run(lambda half: layer(half, training=True), (values,))

        y = two_replicas.experimental_local_results(step(halves))
        results.append((np.concatenate(y), layer.get_weights()))
    (ours, our_weights), (theirs, their_weights) = results
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    for a, b in zip(our_weights, their_weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(50, 3), (10, 5, 3), (2, 5, 5, 3)])
def test_synchronized_keeps_the_variance_of_large_means_on_one_replica(shape):
    """E[x^2] - E[x]^2 would be 0 in float32: the squares are a million times the variance."""
    x = 1000 + random_input(shape)
    layer = BatchNormalization(synchronized=True, momentum=0, epsilon=1e-5)
    y = layer(x, training=True)
    axes, exact = tuple(range(len(shape) - 1)), x.astype(np.float64)
    expected = (exact - exact.mean(axes)) / np.sqrt(exact.var(axes) + 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-3)
    np.testing.assert_allclose(layer.moving_variance, exact.var(axes), rtol=1e-3)


@pytest.mark.parametrize("sizes", [(2, 2), (3, 2), (2, 3), (5, 0)])
@pytest.mark.parametrize(
    ("shape", "dtype", "mean", "deviation"),
    [
        ((6, 4, 3), "float32", 1, 2),
        ((6, 4, 3), "float32", 100, 0.1),
        ((6, 4, 3), "mixed_bfloat16", 1, 2),
        ((3,), "float32", 1, 2),
    ],
)
def test_synchronized_replicas_match_one(shape, dtype, mean, deviation, sizes, two_replicas):
    rng = np.random.default_rng(sum(sizes) + len(shape))
    batch = (sum(sizes), *shape)
    # Every image has its own mean, and so does every replica.
    x = rng.normal(size=batch) + rng.normal(size=(batch[0], *[1] * len(shape)))
    x = tf.constant(mean * np.array([1, -2, 0.5]) + deviation * x, "float32")
    target = tf.constant(rng.normal(size=batch), "float32")
    if dtype != "float32":
        x, target = (tf.cast(tf.cast(a, "bfloat16"), "float32") for a in (x, target))

    arguments = {"momentum": 0.25, "epsilon": 1e-5}
    exact = keras.layers.BatchNormalization(dtype="float64", **arguments)
    with two_replicas.scope():
        layer = BatchNormalization(synchronized=True, dtype=dtype, **arguments)
        layer.build(batch)
    exact.build(batch)
    weights = [rng.uniform(0.5, 2, 3).astype("float32") for _ in range(4)]
    layer.set_weights(weights)
    exact.set_weights(weights)
    with tf.GradientTape() as tape:
        inputs = tf.cast(x, "float64")
        tape.watch(inputs)
        expected = exact(inputs, training=True)
        loss = tf.reduce_sum(expected * tf.cast(target, "float64"))
    expected_gradients = tape.gradient(loss, [inputs, *exact.trainable_weights])
    y, gradients = on_replicas(two_replicas, layer, x.numpy(), target.numpy(), sizes)

    # The mean of a hundred values has a relative error of a few times 2^-24, which in units of the
    # standard deviation is the smallest error that any formula can have.
    close = 1e-6 + 8 * 2**-23 * mean / deviation
    assert y.dtype == gradients[0].dtype == layer.compute_dtype
    # The gradients of gamma and beta are sums with cancellation; this is the norm of their terms.
    norm = np.sqrt(np.sum(np.square(target), axis=tuple(range(len(shape)))).max())
    expected = [np.asarray(v) for v in (expected, *expected_gradients)]
    sizes = [np.abs(expected[0]).max(), np.abs(expected[1]).max(), norm, norm]
    rounding = [0 if dtype == "float32" else 2**-8] * 2 + [0] * 2
    for a, b, size, rtol in zip([y, *gradients], expected, sizes, rounding, strict=True):
        np.testing.assert_allclose(tf.cast(a, "float64"), b, rtol=rtol, atol=close * size)
    for a, b in zip(layer.weights, exact.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=close if "variance" in a.path else 1e-6)
    for moving in (layer.moving_mean, layer.moving_variance):
        first, second = two_replicas.experimental_local_results(moving.value)
        np.testing.assert_array_equal(first, second)


def test_config_round_trip_through_keras():
    layer = BatchNormalization(momentum=0.7, epsilon=0.01, synchronized=True, name="bn")
    assert (
        layer.get_config()
        == keras.layers.BatchNormalization.from_config(layer.get_config()).get_config()
    )
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(copy) is BatchNormalization
