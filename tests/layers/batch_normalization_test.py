import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssl.layers import BatchNormalization


def pair(shape, **arguments):
    """Our layer and Keras', with the same weights, none of them at its initial value."""
    ours, theirs = BatchNormalization(**arguments), keras.layers.BatchNormalization(**arguments)
    rng = np.random.default_rng(1)
    for layer in (ours, theirs):
        layer.build(shape)
    weights = [rng.uniform(0.5, 2, w.shape) for w in theirs.weights]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    return ours, theirs


def image(shape, seed=0):
    # Every channel has its own mean and deviation.
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * rng.uniform(1, 3, shape[-1]) + np.arange(shape[-1])).astype(
        "f4"
    )


def step(layer, x, target):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
        loss = tf.reduce_sum(tf.cast(y, tf.float32) * target)
    return y, tape.gradient(loss, [x, *layer.trainable_weights])


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"center": False},
        {"scale": False},
        {"epsilon": 0.1, "momentum": 0.5},
        {"synchronized": True},  # with one replica as any other
    ],
)
def test_equals_keras_in_training_and_inference(arguments):
    ours, theirs = pair((None, 5, 4, 3), **arguments)
    x, target = tf.constant(image((6, 5, 4, 3))), image((6, 5, 4, 3), seed=2)
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
def test_variance_is_the_biased_one(size):
    ours, theirs = pair((None, 1, 1, 2))
    x = image((size, 1, 1, 2))
    ours(x, training=True)
    theirs(x, training=True)
    np.testing.assert_allclose(ours.moving_variance, theirs.moving_variance, rtol=1e-5)


def test_empty_batch_leaves_the_statistics():
    # What a replica gets when the last batch is smaller than the number of replicas.
    layer, _ = pair((None, 2, 2, 3))
    before = layer.get_weights()
    layer(np.zeros((0, 2, 2, 3), "f4"), training=True)
    for a, b in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_equals_keras_in_mixed_precision(policy):
    ours, theirs = pair((None, 5, 4, 3), dtype=policy)
    x = tf.cast(image((6, 5, 4, 3)), ours.compute_dtype)
    for training in (True, False):
        y, expected = ours(x, training=training), theirs(x, training=training)
        assert y.dtype == expected.dtype == ours.compute_dtype
        # Both compute in float32 and round once: at most one step of the narrow type apart.
        step = 2**-7 if policy == "mixed_bfloat16" else 2**-10
        np.testing.assert_allclose(
            tf.cast(y, "float32"), tf.cast(expected, "float32"), rtol=step, atol=1e-6
        )
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        # Keras takes the moments of the float32 input but clips them to float16's range.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [((6, 3), {}), ((6, 4, 3), {}), ((6, 3, 4, 5), {"axis": 1}),
     ((6, 4, 5, 3), {"renorm": True}), ((6, 4, 5, 3), {"dtype": "float64"})],
)  # fmt: skip
def test_the_rest_is_keras(shape, arguments):
    ours, theirs = pair((None, *shape[1:]), **arguments)
    x = image(shape)
    np.testing.assert_allclose(ours(x, training=True), theirs(x, training=True), rtol=1e-6)
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_mask_and_frozen_layer():
    ours, theirs = pair((None, 4, 5, 3))
    x, mask = image((6, 4, 5, 3)), np.random.default_rng(0).random((6, 4, 5)) < 0.5
    expected = theirs(x, training=True, mask=mask)
    np.testing.assert_allclose(ours(x, training=True, mask=mask), expected, rtol=1e-6)
    ours.trainable = False
    before = ours.get_weights()
    np.testing.assert_array_equal(ours(x, training=True), ours(x))
    np.testing.assert_array_equal(np.concatenate(before), np.concatenate(ours.get_weights()))


@pytest.mark.parametrize("synchronized", [False, True])
def test_on_two_replicas(synchronized, two_replicas):
    shape = (8, 5, 4, 3)
    x = image(shape)
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


def on_replicas(strategy, layer, x, target, sizes):
    """A step with the batch shared out, the gradients of weights summed as an optimizer does."""
    parts = [np.split(a, np.cumsum(sizes)[:-1]) for a in (x, target)]

    def part(k):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.cast(
                parts[k][context.replica_id_in_sync_group], [layer.compute_dtype, "float32"][k]
            )
        )

    @tf.function(reduce_retracing=True)
    def run(x, target):
        return strategy.run(lambda x, target: step(layer, x, target), (x, target))

    y, (by_x, *by_weights) = run(part(0), part(1))
    y, by_x = (tf.concat(strategy.experimental_local_results(v), 0) for v in (y, by_x))
    return y, [by_x, *(strategy.reduce("SUM", g, axis=None) for g in by_weights)]


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
def test_replicas_together_compute_what_one_does(
    shape, dtype, mean, deviation, sizes, two_replicas
):
    rng = np.random.default_rng(sum(sizes) + len(shape))
    batch = (sum(sizes), *shape)
    # Every image has a mean of its own: so have the replicas.
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

    # The sum of a hundred values is off by a few times 2^-24 of it, and so is the mean: that in units of
    # the deviation is what no formula can know better.
    close = 1e-6 + 8 * 2**-23 * mean / deviation
    assert y.dtype == gradients[0].dtype == layer.compute_dtype
    # The gradients of gamma and beta are sums in which much cancels: their terms have this norm.
    norm = np.sqrt(np.sum(np.square(target), axis=tuple(range(len(shape)))).max())
    expected = [np.asarray(v) for v in (expected, *expected_gradients)]
    sizes = [np.abs(expected[0]).max(), np.abs(expected[1]).max(), norm, norm]
    rounding = [0 if dtype == "float32" else 2**-8] * 2 + [0] * 2
    for a, b, size, share in zip([y, *gradients], expected, sizes, rounding, strict=True):
        np.testing.assert_allclose(tf.cast(a, "float64"), b, rtol=share, atol=close * size)
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
