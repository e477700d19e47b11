import numpy as np
import pytest
import tensorflow as tf

from keras_ssl.losses import SquaredDistance


def vectors(seed=0):
    return np.random.default_rng(seed).normal(size=(4, 2, 2, 3)).astype("float32")


def test_matches_the_sum_of_squared_distances():
    y = vectors()
    unit = y / np.linalg.norm(y, axis=-1, keepdims=True)
    expected = [((p[0] - t[1]) ** 2).sum() + ((p[1] - t[0]) ** 2).sum() for p, t in unit]
    found = SquaredDistance(reduction="none")(np.zeros(4), y)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Swapping the views, and scaling, change nothing.
    np.testing.assert_allclose(
        SquaredDistance(reduction="none")(np.zeros(4), 7 * y[:, :, ::-1]), found, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("prediction", "expected"), [([1.0, 0.0], 0), ([0.0, 1.0], 4), ([-2.0, 0.0], 8)]
)
def test_closed_forms(prediction, expected):
    y = np.array([[[prediction] * 2, [[3.0, 0.0]] * 2]], "float32")
    assert float(SquaredDistance()([0], y)) == pytest.approx(expected, abs=1e-6)


def test_no_gradient_flows_into_the_targets():
    y = tf.Variable(vectors())
    with tf.GradientTape() as tape:
        loss = SquaredDistance()(np.zeros(4), y)
    gradient = tape.gradient(loss, y).numpy()
    assert (gradient[:, 0] != 0).any(axis=-1).all()
    np.testing.assert_array_equal(gradient[:, 1], 0)


def test_the_first_prediction_meets_the_second_target():
    targets = np.eye(2, dtype="float32")
    crossed = np.stack([targets[::-1], targets])[None]
    assert float(SquaredDistance()([0], crossed)) == pytest.approx(0, abs=1e-6)


def test_shape():
    with pytest.raises(ValueError, match=r"y_pred must be \(B, 2, 2, D\)"):
        SquaredDistance()([0], np.ones((1, 2, 3), "float32"))
