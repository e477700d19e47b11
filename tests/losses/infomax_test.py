"""Deep InfoMax's losses versus slow loops and closed forms."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssl.losses import InfoMax, mutual_information
from keras_ssl.losses.infomax import BOUNDS, image_scores

every_bound = pytest.mark.parametrize("bound", BOUNDS)


def embeddings(number=4, positions=3, width=5, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return (scale * rng.normal(size=(number, 1 + positions, width))).astype("float32")


def slow(z, bound):
    """Oracle: a loop over queries, images and positions."""
    z = z.astype("float64")
    number, positions = len(z), z.shape[1] - 1

    def score(i, n, place):
        return float(z[i, 0] @ z[n, 1 + place])

    def negatives(i):
        return [score(i, n, k) for n in range(number) for k in range(positions) if n != i]

    values = []
    for i in range(number):
        positives = [score(i, i, k) for k in range(positions)]
        if bound == "JSD":
            expected_joint = np.mean([math.log(2) - math.log1p(math.exp(-u)) for u in positives])
            expected_product = np.mean(
                [math.log1p(math.exp(u)) - math.log(2) for u in negatives(i)]
            )
            values.append(expected_product - expected_joint)
        elif bound == "InfoNCE":
            total = sum(math.exp(u) for u in negatives(i))
            values.append(
                np.mean([-math.log(math.exp(u) / (math.exp(u) + total)) for u in positives])
            )
        else:
            everyone = [math.exp(u) for j in range(number) for u in negatives(j)]
            values.append(math.log(np.mean(everyone)) - np.mean(positives))
    return values


@every_bound
@pytest.mark.parametrize("positions", [1, 3])
def test_matches_a_loop(bound, positions):
    z = embeddings(positions=positions)
    found = InfoMax(bound, reduction="none")(np.zeros(4), z)
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, slow(z, bound), rtol=1e-5)


@every_bound
def test_queries_and_keys_have_different_parts(bound):
    """Exchanging them changes the loss, and so do the keys of another image."""
    z = embeddings(positions=1)
    loss = InfoMax(bound, reduction="none")
    same = np.allclose(loss(np.zeros(4), z), loss(np.zeros(4), z[:, ::-1]), atol=1e-3)
    assert same == (bound == "DV")  # whose negatives are a single sum over all pairs
    z = embeddings()
    moved = np.concatenate([z[:, :1], np.roll(z[:, 1:], 1, axis=0)], axis=1)
    assert not np.allclose(loss(np.zeros(4), z), loss(np.zeros(4), moved), atol=1e-3)


def test_closed_forms():
    """The table of exact values: scores of 0, and perfect ones."""
    for number, positions in ((2, 1), (5, 4), (64, 64)):
        zero = np.zeros((number, 1 + positions, 1), "float32")
        labels = np.zeros(number)
        assert float(InfoMax("JSD")(labels, zero)) == pytest.approx(0, abs=1e-6)
        assert float(InfoMax("DV")(labels, zero)) == pytest.approx(0, abs=1e-5)
        expected = math.log(1 + (number - 1) * positions)
        assert float(InfoMax("InfoNCE")(labels, zero)) == pytest.approx(expected, rel=1e-6)
    # Scores of 30 for own positions, -30 for those of others.
    number, positions = 5, 4
    queries = np.concatenate([60 * np.eye(number), -30 * np.ones((number, 1))], 1)[:, None]
    keys = np.concatenate([np.eye(number), np.ones((number, 1))], 1)[:, None]
    z = np.concatenate([queries, keys.repeat(positions, 1)], axis=1).astype("float32")
    assert float(InfoMax("JSD")(np.zeros(5), z)) == pytest.approx(-2 * math.log(2), rel=1e-6)
    assert float(InfoMax("InfoNCE")(np.zeros(5), z)) == pytest.approx(0, abs=1e-6)
    assert float(InfoMax("DV")(np.zeros(5), z)) == pytest.approx(-60, rel=1e-6)


def test_one_position_is_the_bound_of_the_score_matrix():
    """Rows of the matrix are queries, columns the images of the keys."""
    z = embeddings(number=6, positions=1, scale=0.7)
    scores = z[:, 0] @ z[:, 1].T
    labels = np.zeros(6)
    found = float(InfoMax("InfoNCE")(labels, z))
    expected = math.log(6) - float(mutual_information.info_nce(scores))
    assert found == pytest.approx(expected, rel=1e-5)
    expected = -float(mutual_information.donsker_varadhan(scores))
    assert float(InfoMax("DV")(labels, z)) == pytest.approx(expected, rel=1e-5)
    # The gradient of JS, whose value is that of another bound.
    x = tf.Variable(scores)
    with tf.GradientTape(persistent=True) as tape:
        bound = mutual_information.jensen_shannon(x)
        queries = tf.concat([x, tf.zeros((6, 0))], axis=1)
        loss = InfoMax("JSD")(labels, tf.stack([queries, tf.eye(6)], axis=1))
    np.testing.assert_allclose(tape.gradient(loss, x), -tape.gradient(bound, x), atol=1e-6)


@every_bound
def test_laws(bound):
    z, order = embeddings(), [3, 0, 2, 1]
    loss = InfoMax(bound, reduction="none")
    value = loss(np.zeros(4), z).numpy()
    np.testing.assert_allclose(loss(np.zeros(4), z[order]), value[order], rtol=1e-5)
    np.testing.assert_allclose(loss(np.zeros(4), z[:, [0, 3, 1, 2]]), value, rtol=1e-5)  # positions
    # Of queries that are the rows of a matrix of scores: own ones are to be large, others small.
    scores = np.random.default_rng(1).normal(size=(4, 4)).astype("float32")
    one, other = np.eye(4, dtype="float32"), np.roll(np.eye(4, dtype="float32"), 1, axis=1)
    found = [
        float(InfoMax(bound)(np.zeros(4), np.stack([s, one], axis=1)))
        for s in (scores + one, scores, scores + other)
    ]
    assert found[0] < found[1] < found[2]


@every_bound
def test_a_batch_of_one_image_has_no_negatives(bound):
    z = tf.Variable(embeddings(number=1))
    with tf.GradientTape() as tape:
        loss = InfoMax(bound)([0], z)
    assert float(loss) == 0
    np.testing.assert_array_equal(tape.gradient(loss, z), np.zeros(z.shape))


@every_bound
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_finite_for_large_scores(bound, dtype):
    z = tf.Variable(tf.cast(embeddings(scale=100), dtype))
    with tf.GradientTape() as tape:
        loss = InfoMax(bound)(np.zeros(4), z)
    assert loss.dtype == tf.float32
    assert np.isfinite(float(loss))
    assert np.isfinite(tf.cast(tape.gradient(loss, z), tf.float32)).all()


def test_scores_and_own():
    z = embeddings()
    scores, own = image_scores(z[:, 0], z[:, 1:])
    np.testing.assert_allclose(scores, np.einsum("bd,nld->bnl", z[:, 0], z[:, 1:]), rtol=1e-5)
    np.testing.assert_array_equal(own, np.eye(4, dtype=bool))


def test_invalid_bound_and_config():
    with pytest.raises(ValueError, match="bound must be one of JSD, InfoNCE, DV, got 'NWJ'"):
        InfoMax("NWJ")
    loss = InfoMax("DV")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert copy.get_config() == loss.get_config()
