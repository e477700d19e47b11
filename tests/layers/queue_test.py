import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssl.layers import Queue
from keras_ssl.layers import queue as queue_module


def test_starts_with_random_unit_vectors():
    keys = Queue(500, 8).keys().numpy()
    np.testing.assert_allclose(np.linalg.norm(keys, axis=1), 1, rtol=1e-5)
    assert np.abs(keys.mean(axis=0)).max() < 0.1
    np.testing.assert_array_equal(Queue(500, 8).keys(), keys)
    assert not np.array_equal(Queue(500, 8, seed=1).keys(), keys)


def test_is_a_ring_for_batches_of_any_size():
    queue, expected = Queue(7, 2), [*Queue(7, 2).keys().numpy()]
    rng, place = np.random.default_rng(0), 0
    append = tf.function(queue.append, reduce_retracing=True)
    for number in (3, 3, 2, 7, 1, 5, 9):
        keys = rng.normal(size=(number, 2)).astype("float32")
        append(tf.constant(keys))
        for key in keys:
            expected[place] = key
            place = (place + 1) % 7
        np.testing.assert_array_equal(queue.keys(), expected)


def test_call_returns_the_earlier_keys():
    queue = Queue(4, 2)
    before = queue.keys().numpy()
    np.testing.assert_array_equal(queue(tf.ones((2, 2))), before)
    np.testing.assert_array_equal(queue.keys()[:2], 1)
    np.testing.assert_array_equal(queue.keys()[2:], before[2:])


def test_no_gradient_flows_into_the_queue():
    queue, query = Queue(4, 2), tf.Variable([[1.0, 2.0]])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.matmul(query, queue.keys(), transpose_b=True))
    found = tape.gradient(loss, [query, queue.ring.value])
    assert found[0] is not None
    assert found[1] is None


@pytest.mark.parametrize(
    ("policy", "tolerance"), [("float32", 1e-5), ("mixed_float16", 4e-3), ("mixed_bfloat16", 2e-2)]
)
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_soft_maximum_in_blocks_has_value_and_gradient_of_the_whole(
    monkeypatch, policy, tolerance, temperature
):
    monkeypatch.setattr(queue_module, "BLOCK", 3)  # the last of three blocks has a single key
    queue = Queue(7, 4, dtype=policy)
    queries = tf.math.l2_normalize(tf.random.stateless_normal((5, 4), (1, 0)), axis=-1)
    weights = tf.range(1.0, 6.0)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(queries)
        soft, largest = tf.function(queue.soft_maximum)(queries, temperature)
        loss = tf.reduce_sum(weights * soft)
        similarities = tf.matmul(queries, queue.keys(), transpose_b=True)
        expected = tf.reduce_logsumexp(similarities / temperature, axis=-1)
        expected_loss = tf.reduce_sum(weights * expected)
    np.testing.assert_allclose(soft * temperature, expected * temperature, atol=tolerance)
    np.testing.assert_allclose(largest, tf.reduce_max(similarities, axis=-1), atol=tolerance)
    found, wanted = (temperature * tape.gradient(x, queries) for x in (loss, expected_loss))
    np.testing.assert_allclose(found, wanted, atol=weights[-1] * tolerance)
    np.testing.assert_array_equal(tape.gradient(largest, queries), 0)


def test_all_replicas_append_the_keys_of_all(two_replicas):
    keys = np.arange(10, dtype="float32").reshape(5, 2)
    parts = [keys[:3], keys[3:]]
    with two_replicas.scope():
        queue = Queue(8, 2)

    @tf.function
    def step(part):
        two_replicas.run(queue.append, args=(part,))

    step(two_replicas.experimental_distribute_values_from_function(
        lambda context: tf.constant(parts[context.replica_id_in_sync_group])
    ))  # fmt: skip
    for replica in two_replicas.experimental_local_results(queue.ring.value):
        np.testing.assert_array_equal(replica[:5], keys)
    assert [int(n) for n in two_replicas.experimental_local_results(queue.next.value)] == [5, 5]


def test_keeps_its_state_and_arguments():
    queue = Queue(4, 2, seed=3)
    queue.append(tf.ones((3, 2)))
    copy = keras.layers.deserialize(keras.layers.serialize(queue))
    copy.set_weights(queue.get_weights())
    np.testing.assert_array_equal(copy.keys(), queue.keys())
    assert (int(copy.next), copy.seed) == (3, 3)


@pytest.mark.parametrize("name", ["size", "dimensions"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "8"])
def test_invalid_arguments(name, value):
    with pytest.raises(
        ValueError, match=rf"{name} must be an integer \(int64\) of at least 1, got"
    ):
        Queue(**{"size": 4, "dimensions": 2, name: value})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda queue: queue.append(tf.zeros((2, 3))), r"keys must be \(B, 4\) like"),
        (
            lambda queue: queue.soft_maximum(tf.zeros((2, 3)), 0.1),
            r"must be \(B, 4\) like the keys",
        ),
        (lambda queue: queue.soft_maximum(tf.zeros((2, 4)), 0), "temperature must be a positive"),
    ],
)
def test_invalid_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call(Queue(7, 4))
