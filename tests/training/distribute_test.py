"""Distribution strategies by name and environment, and exchange between replicas."""

import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl import fitting
from keras_ssl.training import distribute


def in_replicas(strategy, function, values):
    """Runs `function` in each replica, with its own value."""

    @tf.function
    def run():
        given = strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(values[context.replica_id_in_sync_group])
        )
        return strategy.run(function, args=(given,))

    return [tf.nest.map_structure(np.asarray, part) for part in _parts(strategy, run())]


def _parts(strategy, structure):
    flat = [strategy.experimental_local_results(v) for v in tf.nest.flatten(structure)]
    return [
        tf.nest.pack_sequence_as(structure, [v[k] for v in flat])
        for k in range(strategy.num_replicas_in_sync)
    ]


ROWS = [np.float32([[1, 2], [3, 4], [5, 6]]), np.float32([[7, 8], [9, 10]])]  # 3 and 2


def test_all_gather_and_first_row(two_replicas):
    def both(rows):
        return distribute.all_gather(rows), distribute.first_row(rows)

    for k, (gathered, first) in enumerate(in_replicas(two_replicas, both, ROWS)):
        np.testing.assert_array_equal(gathered, np.concatenate(ROWS))
        assert first == [0, 3][k]


def test_gradients_reach_the_replica_of_the_row(two_replicas):
    """Each replica weights all rows by its own factor; the gradient of a row is the sum over the replicas."""
    weights = np.arange(10, dtype=np.float32).reshape(5, 2)

    def gradient(rows):
        context = tf.distribute.get_replica_context()
        factor = tf.cast(context.replica_id_in_sync_group + 1, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(rows)
            loss = factor * tf.reduce_sum(distribute.all_gather(rows) ** 2 * weights)
        return tape.gradient(loss, rows)

    found = in_replicas(two_replicas, gradient, ROWS)
    expected = (1 + 2) * 2 * np.concatenate(ROWS) * weights
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-6)


def test_single_worker_is_a_no_op():
    rows = tf.constant(ROWS[0])
    strategy = tf.distribute.get_strategy()
    assert distribute.all_gather(rows) is rows
    assert distribute.first_row(rows) == 0
    assert distribute.strategy("auto") is strategy
    assert distribute.worker(strategy) == (0, 1)
    data = kssl.data.digits("test")
    assert distribute.per_worker(strategy, data) is data
    with pytest.raises(tf.errors.UnavailableError), distribute.lost_worker(strategy):
        raise tf.errors.UnavailableError(None, None, "something else")


def test_predictions_of_workers_are_sorted():
    """Two workers with two replicas each, two epochs of 7 images in batches of 5."""
    strategy = SimpleNamespace(worker=(1, 2), num_replicas_in_sync=4)
    task = SimpleNamespace(distribute_strategy=strategy)
    data = SimpleNamespace(from_step=None, number=7, batch_size=5)
    batches = [np.arange(0, 5), np.arange(5, 7), np.arange(7, 12), np.arange(12, 14)]
    joined = np.concatenate([batch[k::4] for batch in batches for k in range(4)])
    assert fitting.in_order(task, data, {"a": joined})["a"].tolist() == list(range(14))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", r"TF_CONFIG does not name this process \(JSONDecodeError"),
        ({"cluster": {"worker": ["a:1", "b:1"]}}, r"\(KeyError: 'task'\)"),
        (
            {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 3}},
            r"\(IndexError: .*\): it must be .* got ",
        ),
        (
            {"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}},
            "may have a chief and workers only, got worker, ps",
        ),
    ],
)
def test_refuses_invalid_tf_config(config, words, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(ValueError, match=words):
        distribute.strategy("auto")


def test_refuses_invalid_strategies(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match='strategy must be "auto", "mirrored" or "multi_worker"'):
        distribute.strategy("two")
    with pytest.raises(ValueError, match="multi_worker finds no other worker: set TF_CONFIG"):
        distribute.strategy("multi_worker")
    alone = {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(alone))
    assert distribute.strategy("auto") is tf.distribute.get_strategy()


def test_evaluates_and_resumes_on_two_replicas(two_replicas, tmp_path):
    """Training is resumed before a last batch that is split unevenly."""
    images = kssl.data.from_array(kssl.data.to_arrays(kssl.data.digits("test"))["image"][:21])

    def make():
        keras.utils.set_random_seed(0)
        with two_replicas.scope():
            encoder = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,), synchronized=True)
            task = kssl.tasks.Rotation(encoder)
            task.compile("adam")
        return task

    def fit(task, *callbacks):
        data = task.dataset(images, 8, epochs=2, seed=1)
        task.fit(data, epochs=2, verbose=0, callbacks=list(callbacks))
        return task

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                raise KeyboardInterrupt

    whole = fit(make())
    saved = kssl.callbacks.Checkpoint(tmp_path, every_steps=1)
    with pytest.raises(KeyboardInterrupt):
        fit(make(), saved, Stop())
    resumed = fit(make(), kssl.callbacks.Checkpoint(tmp_path))
    for a, b in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
    assert np.isfinite(whole.evaluate(whole.dataset(images, 8), verbose=0)).all()
