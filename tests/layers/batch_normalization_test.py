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


def picture(shape, seed=0):
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
    x, target = tf.constant(picture((6, 5, 4, 3))), picture((6, 5, 4, 3), seed=2)
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
    x = picture((size, 1, 1, 2))
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
    x = tf.cast(picture((6, 5, 4, 3)), ours.compute_dtype)
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
    x = picture(shape)
    np.testing.assert_allclose(ours(x, training=True), theirs(x, training=True), rtol=1e-6)
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_mask_and_frozen_layer():
    ours, theirs = pair((None, 4, 5, 3))
    x, mask = picture((6, 4, 5, 3)), np.random.default_rng(0).random((6, 4, 5)) < 0.5
    expected = theirs(x, training=True, mask=mask)
    np.testing.assert_allclose(ours(x, training=True, mask=mask), expected, rtol=1e-6)
    ours.trainable = False
    before = ours.get_weights()
    np.testing.assert_array_equal(ours(x, training=True), ours(x))
    np.testing.assert_array_equal(np.concatenate(before), np.concatenate(ours.get_weights()))


@pytest.mark.parametrize("synchronized", [False, True])
def test_on_two_replicas(synchronized, two_replicas):
    shape = (8, 5, 4, 3)
    x = picture(shape)
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


def test_config_round_trip_through_keras():
    layer = BatchNormalization(momentum=0.7, epsilon=0.01, synchronized=True, name="bn")
    assert (
        layer.get_config()
        == keras.layers.BatchNormalization.from_config(layer.get_config()).get_config()
    )
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(copy) is BatchNormalization
