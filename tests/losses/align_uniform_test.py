"""Alignment and uniformity versus loops, the evaluation's functions and closed forms."""

import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssl import evaluation
from keras_ssl.losses import Alignment, AlignmentUniformity, Uniformity


def embeddings(number=5, dimensions=3, seed=0):
    return np.random.default_rng(seed).normal(size=(number, 2, dimensions)).astype("float32")


def unit(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


@pytest.mark.parametrize("alpha", [0.7, 1.0, 2.0, 3.0])
def test_alignment_matches_its_definition(alpha):
    z = embeddings()
    distance = np.linalg.norm(np.subtract(*np.moveaxis(unit(z), 1, 0)), axis=-1)
    found = Alignment(alpha, reduction="none")(np.zeros(5), z)
    np.testing.assert_allclose(found, distance**alpha, rtol=1e-5)
    assert float(Alignment(alpha)(np.zeros(5), z)) == pytest.approx(
        evaluation.alignment(z[:, 0], z[:, 1], alpha), rel=1e-5
    )


def test_alignment_has_a_gradient_where_the_views_coincide():
    z = tf.Variable(np.ones((1, 2, 3), "float32"))
    with tf.GradientTape() as tape:
        loss = Alignment(1.0)([0], z)
    np.testing.assert_array_equal(tape.gradient(loss, z), np.zeros((1, 2, 3)))


@pytest.mark.parametrize("t", [1.0, 2.0, 3.0])
def test_uniformity_matches_a_loop_over_the_pairs_of_each_view(t):
    z = embeddings()
    values = []
    for view in np.moveaxis(unit(z).astype("float64"), 1, 0):
        pairs = [math.exp(-t * ((a - b) ** 2).sum()) for a, b in itertools.combinations(view, 2)]
        values.append(math.log(np.mean(pairs)))
    found = Uniformity(t, reduction="none")(np.zeros(5), z)
    np.testing.assert_allclose(found, np.full(5, np.mean(values)), rtol=1e-5)


def test_closed_forms():
    # n points in a regular simplex: all squared distances are 2 n / (n - 1).
    for number in (2, 4, 9):
        simplex = np.eye(number) - 1 / number
        z = np.repeat(simplex[:, None], 2, axis=1).astype("float32")
        expected = -2 * 2 * number / (number - 1)
        assert float(Uniformity()(np.zeros(number), z)) == pytest.approx(expected, rel=1e-5)
    collapsed = np.ones((6, 2, 4), "float32")
    assert float(AlignmentUniformity()(np.zeros(6), collapsed)) == pytest.approx(0, abs=1e-5)
    orthogonal = np.array([[[1, 0], [0, 1]], [[0, 1], [-1, 0]]], "float32")
    assert float(Alignment()(np.zeros(2), orthogonal)) == pytest.approx(2)
    assert float(
        Alignment()(np.zeros(1), np.array([[[1.0, 0.0], [-2.0, 0.0]]], "f4"))
    ) == pytest.approx(4)


@pytest.mark.parametrize(
    ("dimensions", "expected"), [(2, -1.575), (3, -2.080), (64, -3.875), (128, -3.938)]
)
def test_uniform_on_the_sphere(dimensions, expected):
    z = np.random.default_rng(0).normal(size=(3000, 1, dimensions)).astype("float32")
    found = float(Uniformity()(np.zeros(3000), np.repeat(z, 2, axis=1)))
    assert found == pytest.approx(expected, abs=0.02)


def test_the_sum_is_weighted():
    z, y = embeddings(), np.zeros(5)
    found = AlignmentUniformity(1.5, 3.0, 3.0, 0.5, reduction="none")(y, z)
    terms = [loss(y, z) for loss in (Alignment(1.5, reduction="none"), Uniformity(3.0))]
    np.testing.assert_allclose(found, 3.0 * terms[0] + 0.5 * terms[1], rtol=1e-5)


def test_laws():
    z, y, order = embeddings(), np.zeros(5), [3, 0, 4, 1, 2]
    loss = AlignmentUniformity(reduction="none")
    value = loss(y, z).numpy()
    np.testing.assert_allclose(loss(y, z[order]), value[order], rtol=1e-5)
    np.testing.assert_allclose(loss(y, z[:, ::-1]), value, rtol=1e-5)
    scales = np.random.default_rng(1).uniform(0.1, 10, (5, 2, 1)).astype("float32")
    np.testing.assert_allclose(loss(y, scales * z), value, rtol=1e-4)


def test_a_single_image_has_no_pairs():
    z = tf.Variable(embeddings(1))
    with tf.GradientTape() as tape:
        loss = Uniformity()([0], z)
    assert float(loss) == 0
    np.testing.assert_array_equal(tape.gradient(loss, z), np.zeros((1, 2, 3)))


def test_finite_in_float16():
    z = tf.Variable(tf.cast(100 * embeddings(), tf.float16))
    with tf.GradientTape() as tape:
        loss = AlignmentUniformity()(np.zeros(5), z)
    assert np.isfinite(float(loss))
    assert np.isfinite(tf.cast(tape.gradient(loss, z), tf.float32)).all()


def test_invalid_arguments():
    for value in (0, -1.0, float("nan"), "2"):
        with pytest.raises(ValueError, match="alpha must be a positive number, got"):
            AlignmentUniformity(alpha=value)
        with pytest.raises(ValueError, match="t must be a positive number, got"):
            Uniformity(value)
    with pytest.raises(ValueError, match="at least two views"):
        Uniformity()([0], np.ones((4, 3), "float32"))
    for loss in (Alignment(), AlignmentUniformity()):
        with pytest.raises(ValueError, match=r"of 2 views of each image, got shape \(4, 3, 5\)"):
            loss([0] * 4, np.ones((4, 3, 5), "float32"))


def test_config_round_trip():
    loss = AlignmentUniformity(1.5, 3.0, 3.0, 0.5)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert copy.get_config() == loss.get_config()
