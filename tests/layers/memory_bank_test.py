import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssl.layers import MemoryBank


def unit(*shape, seed=0):
    z = np.random.default_rng(seed).normal(size=shape).astype("float32")
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def drawn(bank):
    """The rows that the next step draws."""
    return tf.random.stateless_uniform(
        (bank.negatives,), (bank.seed, int(bank.batches)), maxval=bank.size, dtype=tf.int32
    ).numpy()


def read(bank):
    """All rows that are read now."""
    return bank.read(np.arange(bank.size)).numpy()


def log_odds(bank, queries, ids, normalizer):
    """Oracle: ln(N P / m) with the probability P = exp(s / t) / Z, as equation 8 of Wu et al. has it.

    An image that is drawn as its own negative has no odds.
    """
    rows, found = (
        read(bank).astype(np.float64),
        np.zeros((len(ids), queries.shape[1], 1 + bank.negatives)),
    )
    for i, own in enumerate(ids):
        for q, query in enumerate(queries[i]):
            for k, row in enumerate([own, *drawn(bank)]):
                probability = np.exp(rows[row] @ query / bank.temperature) / normalizer
                found[i, q, k] = np.log(probability / (bank.negatives / bank.size))
                if k and row == own:
                    found[i, q, k] = -1e9
    return found


def first_normalizer(bank, queries, ids):
    """Oracle: Z, N times the mean of exp(s / t) over a batch."""
    rows, scores = read(bank).astype(np.float64), []
    for i, own in enumerate(ids):
        for query in queries[i]:
            scores += [np.exp(rows[row] @ query / bank.temperature) for row in [own, *drawn(bank)]]
    return bank.size * np.mean(scores)


def test_starts_with_random_unit_vectors():
    rows = MemoryBank(500, 8).rows.numpy()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    assert np.abs(rows.mean(axis=0)).max() < 0.1
    np.testing.assert_array_equal(MemoryBank(500, 8).rows, rows)
    assert not np.array_equal(MemoryBank(500, 8, seed=1).rows, rows)


def test_log_odds_follow_the_paper_and_the_normalizer_is_that_of_the_first_batch():
    bank = MemoryBank(9, 3, negatives=4, temperature=0.3, seed=2)
    step = tf.function(bank, reduce_retracing=True)
    batches = [(unit(3, 2, 3, seed=k), (np.array([5, 0, 8]) + k) % 9) for k in range(3)]
    kept = first_normalizer(bank, *batches[0])
    for queries, ids in batches:
        found = step(queries, tf.constant(ids), training=True).numpy()
        np.testing.assert_allclose(found, log_odds(bank, queries, ids, kept), atol=1e-5)
        # Again in evaluation: the same rows are drawn, and nothing changes.
        np.testing.assert_array_equal(step(queries, tf.constant(ids)), found)
        bank.write(ids, queries[:, 0])


def test_before_training_each_batch_has_its_own_normalizer():
    bank = MemoryBank(9, 3, negatives=4)
    for k in range(2):
        queries, ids = unit(2, 1, 3, seed=k), np.array([1, 7])
        expected = log_odds(bank, queries, ids, first_normalizer(bank, queries, ids))
        np.testing.assert_allclose(bank(queries, ids), expected, atol=1e-5)
    assert float(bank.log_mean) == 0


def test_perfect_embeddings_are_all_found_however_often_they_are_drawn():
    bank = MemoryBank(30, 64, negatives=3000)
    ids = np.arange(20)
    odds = bank(bank.read(ids)[:, None], ids).numpy()[:, 0]
    assert (odds[:, 0] > odds[:, 1:].max(axis=1) + 1).all()
    assert (odds == -1e9).sum() == (drawn(bank)[None] == ids[:, None]).sum() > 1000


@pytest.mark.parametrize(("storage", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("traced", [False, True])
def test_writes_moving_averages_of_unit_length_that_are_read_in_the_next_epoch(
    storage, tolerance, traced
):
    bank = MemoryBank(6, 4, momentum=0.25, storage=storage)
    write = tf.function(bank.write, reduce_retracing=True) if traced else bank.write
    shown, written = read(bank), bank.rows.numpy().astype("float32")[:6]
    # Three epochs of other orders; one image comes twice, and some are left out later.
    epochs = [[[4, 1], [0, 3], [2, 4, 5]], [[2, 1, 0], [3, 4]], [[4, 3], [2, 1]]]
    for epoch, batches in enumerate(epochs):
        for step, ids in enumerate(batches):
            if epoch and step == 0:
                shown, written = written, shown
            new = unit(len(ids), 4, seed=10 * epoch + step)
            write(tf.constant(ids, tf.int64), tf.constant(new))
            for row, z in zip(ids, new, strict=True):
                mixed = 0.25 * shown[row] + 0.75 * z
                written[row] = mixed / np.linalg.norm(mixed)
            np.testing.assert_allclose(read(bank), shown, atol=tolerance)
            np.testing.assert_allclose(bank.read(ids), shown[ids], atol=tolerance)
    assert (int(bank.batches), int(bank.epoch)) == (7, 3)
    assert np.abs(shown - written).max() > 0.1


def test_each_step_draws_others_with_replacement_uniformly():
    bank = MemoryBank(20, 2, negatives=3000)
    first = drawn(bank)
    bank.write(tf.constant([3]), tf.constant(unit(1, 2)))
    second = drawn(bank)
    assert not np.array_equal(first, second)
    counts = np.bincount(first, minlength=20)
    assert len(counts) == 20
    assert counts.min() > 100
    assert counts.max() < 200  # 150 each; 12 standard deviations of 4


def test_gradients_flow_into_the_queries_only():
    bank, queries = MemoryBank(9, 3, negatives=4, temperature=0.5), tf.Variable(unit(2, 1, 3))
    with tf.GradientTape() as tape:
        odds = bank(tf.convert_to_tensor(queries), tf.constant([3, 8]), training=True)
        loss = tf.reduce_sum(odds[..., 0]) + 2 * tf.reduce_sum(odds[..., 1:])
    found = tape.gradient(loss, [queries, bank.rows.value])
    rows = read(bank)
    # Z is a constant, although the first batch determines it.
    negatives = [rows[[k for k in drawn(bank) if k != own]].sum(0) for own in (3, 8)]
    expected = (rows[[3, 8]] + 2 * np.stack(negatives)) / 0.5
    np.testing.assert_allclose(found[0][:, 0], expected, rtol=1e-4)
    assert found[1] is None


def test_all_replicas_have_the_bank_of_one(two_replicas):
    queries, ids = unit(5, 1, 4), np.array([7, 2, 0, 5, 1])
    again = np.array([6, 3, 2, 0, 7])  # most of them, which no replica knows of its own part
    one, expected = MemoryBank(9, 4, negatives=3), []
    for batch in (ids, again, ids):
        expected.append(one(queries, batch, training=True).numpy())
        one.write(batch, queries[:, 0])
    with two_replicas.scope():
        bank = MemoryBank(9, 4, negatives=3)

    @tf.function
    def step(queries, ids):
        def run(queries, ids):
            odds = bank(queries, ids, training=True)
            bank.write(ids, queries[:, 0])
            return odds

        return two_replicas.run(run, args=(queries, ids))

    def part(array):  # 3 images and 2
        return two_replicas.experimental_distribute_values_from_function(
            lambda context: tf.constant([array[:3], array[3:]][context.replica_id_in_sync_group])
        )

    for batch, wanted in zip((ids, again, ids), expected, strict=True):
        odds = two_replicas.experimental_local_results(step(part(queries), part(batch)))
        np.testing.assert_allclose(np.concatenate(odds), wanted, atol=1e-5)
    assert int(one.epoch) == 3
    for name in ("rows", "written", "epoch", "log_mean", "batches"):
        for replica in two_replicas.experimental_local_results(getattr(bank, name).value):
            np.testing.assert_allclose(replica, getattr(one, name), atol=1e-6)


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_keeps_its_state_and_arguments(tmp_path, storage):
    inputs = keras.Input((1, 4)), keras.Input((), dtype="int32")
    bank = MemoryBank(8, 4, 3, temperature=0.2, momentum=0.9, storage=storage, seed=3)
    model = keras.Model(inputs, bank(*inputs))
    bank(unit(2, 1, 4), np.array([1, 2]), training=True)
    bank.write(np.array([1, 2]), unit(2, 4))
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras").layers[-1]
    for a, b in zip(bank.weights, copy.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert copy.rows.dtype == storage
    assert {**copy.get_config(), "name": 0} == {**bank.get_config(), "name": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, r"size must be an integer \(int64\) of at least 1, got 0"),
        ({"dimensions": 2.0}, "dimensions must be an integer"),
        ({"negatives": True}, "negatives must be an integer"),
        ({"temperature": 0}, "temperature must be a positive number, got 0"),
        ({"momentum": 1.5}, r"momentum must be in 0..1, got 1.5"),
        ({"storage": "float16"}, "storage must be one of float32, bfloat16, got 'float16'"),
    ],
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MemoryBank(**{"size": 8, "dimensions": 4, **arguments})


def test_invalid_calls():
    bank = MemoryBank(8, 4)
    with pytest.raises(ValueError, match=r"queries must be \(B, Q, 4\) like the rows of the bank"):
        bank(tf.zeros((2, 4)), tf.constant([0, 1]))
    with pytest.raises(ValueError, match=r"embeddings must be \(B, 4\) like the rows of the"):
        bank.write(tf.constant([0, 1]), tf.zeros((2, 3)))
