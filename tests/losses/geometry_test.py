import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_ssl import losses

RNG = np.random.default_rng(0)


def normals(*shape):
    vectors = RNG.normal(size=(*shape, 3)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_cosine_distance_is_the_mean_over_known_pixels():
    y_true, y_pred = normals(3, 4, 5), 3 * RNG.normal(size=(3, 4, 5, 3)).astype(np.float32)
    y_true[0, :2] = np.nan
    y_true[2] = np.nan
    expected = []
    for image in range(3):
        found = []
        for row in range(4):
            for column in range(5):
                a, b = y_true[image, row, column], y_pred[image, row, column]
                if not np.isnan(a).any():
                    found.append(1 - a @ b / np.linalg.norm(b))
        expected.append(np.mean(found) if found else 0)
    np.testing.assert_allclose(losses.CosineDistance().call(y_true, y_pred), expected, atol=1e-5)


def test_cosine_distance_does_not_depend_on_the_length_and_is_largest_for_the_opposite():
    y = normals(2, 3, 3)
    loss = losses.CosineDistance()
    np.testing.assert_allclose(loss.call(y, 0.2 * y), 0, atol=1e-5)
    np.testing.assert_allclose(loss.call(y, -7 * y), 2, atol=1e-5)


def test_gradient_is_finite_where_the_prediction_is_0_or_the_truth_unknown():
    y_true = normals(1, 2, 2)
    y_true[0, 0, 0] = np.nan
    y_pred = tf.Variable(np.zeros((1, 2, 2, 3), np.float32))
    with tf.GradientTape() as tape:
        loss = losses.CosineDistance().call(y_true, y_pred)
    gradient = tape.gradient(loss, y_pred).numpy()
    assert np.abs(gradient).max() <= 1 / 0.05
    assert (gradient[0, 0, 0] == 0).all()
    assert (gradient[0, 1] != 0).any()


def test_balanced_cross_entropy_is_the_mean_of_two_means():
    y_true = (RNG.random((3, 4, 5, 1)) < 0.2).astype(np.float32)
    y_true[2] = 0  # no contour at all
    y_pred = RNG.normal(size=(3, 4, 5, 1)).astype(np.float32)
    expected = []
    for true, logit in zip(y_true, y_pred, strict=True):
        on, off = np.log1p(np.exp(-logit[true > 0])), np.log1p(np.exp(logit[true == 0]))
        expected.append(((on.mean() if on.size else 0) + off.mean()) / 2)
    np.testing.assert_allclose(
        losses.BalancedCrossEntropy().call(y_true, y_pred), expected, rtol=1e-5
    )


@given(st.integers(1, 15), st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_constant_logits_have_the_same_loss_however_many_contours_there_are(number, logit):
    y_true = np.zeros((1, 4, 4, 1), np.float32)
    y_true.ravel()[:number] = 1
    found = losses.BalancedCrossEntropy().call(y_true, np.full_like(y_true, logit))
    expected = (np.log1p(np.exp(-logit)) + np.log1p(np.exp(logit))) / 2
    assert float(found[0]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", [losses.CosineDistance(), losses.BalancedCrossEntropy()])
def test_they_can_be_saved(loss):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    y = np.abs(normals(2, 3, 3))[..., : 3 if "Cosine" in type(loss).__name__ else 1]
    np.testing.assert_array_equal(again.call(y, y), loss.call(y, y))
