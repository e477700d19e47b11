import keras
import numpy as np
import pytest

from keras_ssl.losses import Triplet


def slow(columns, similarities, margin):
    """Oracle: the mean over all pairs that violate the margin, in a loop."""
    losses = []
    for column, row in zip(columns, similarities, strict=True):
        terms = [margin + s - row[column] for k, s in enumerate(row) if k != column]
        terms = [t for t in terms if t > 0]
        losses.append(sum(terms) / len(terms) if terms else 0.0)
    return losses


def test_matches_a_loop():
    rng = np.random.default_rng(0)
    similarities, columns = rng.uniform(-1, 1, (6, 9)).astype("f4"), rng.integers(0, 9, 6)
    found = Triplet(margin=0.3, reduction="none")(columns, similarities)
    np.testing.assert_allclose(found, slow(columns, similarities, 0.3), rtol=1e-5)


def test_closed_forms():
    loss = Triplet(margin=0.5, reduction="none")
    np.testing.assert_allclose(
        loss([1, 0], [[0.0, 0.5, -0.5], [1.0, 0.4, 0.5]]), 0
    )  # the margin is satisfied exactly
    np.testing.assert_allclose(loss([2], [[0.2, 0.2, 0.2]]), 0.5)  # all equal: the margin
    np.testing.assert_allclose(loss([0], [[0.3]]), 0)  # no negatives


def test_distant_negatives_have_no_gradient():
    import tensorflow as tf

    similarities = tf.Variable([[0.9, 0.8, -0.9, 0.6]])
    with tf.GradientTape() as tape:
        loss = Triplet(margin=0.2)([0], similarities)
    np.testing.assert_allclose(tape.gradient(loss, similarities), [[-1.0, 1.0, 0.0, 0.0]])


def test_config_round_trip():
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(Triplet(margin=0.7))
    )
    assert copy.margin == pytest.approx(0.7)
