"""The losses of CPC and AMDIM versus slow loops, closed forms and laws."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssl.losses import MultiscaleInfoNCE, PredictiveCoding

LOCATIONS = (2, 3)


def normal(*shape, scale=1.0):
    return (scale * np.random.default_rng(0).normal(size=shape)).astype("float32")


def predictions():
    """4 images, two steps, 5 rows of 3 columns, so that no two axes have the same length."""
    return normal(4, 3, 5, 3, 2)


def slow_predictive(y, first):
    """Oracle of CPC: a loop over steps, images and positions."""
    y = y.astype("float64")
    number, slots, height, width, _ = y.shape
    values = np.zeros((number, slots - 1))
    for b in range(number):
        for step in range(1, slots):
            k, terms = first + step - 1, []
            for row in range(height - k):  # of the context
                for column in range(width):
                    prediction = y[b, step, row + k, column]
                    scores = y[:, 0] @ prediction
                    label = b * height * width + (row + k) * width + column
                    terms.append(np.log(np.exp(scores).sum()) - scores.ravel()[label])
            values[b, step - 1] = np.mean(terms)
    return values.mean(axis=1)


def embeddings(scale=2.0):
    return normal(4, 2, 2 + sum(LOCATIONS), 3, scale=scale)


def slow_local(y, clip=20.0, penalty=0.05, parts=False):
    """Oracle of AMDIM: a loop over directions, terms, images and locations."""
    y = y.astype("float64")
    number, _, _, size = y.shape
    first = slice(2, 2 + LOCATIONS[0])
    second = slice(2 + LOCATIONS[0], None)
    values, penalties = np.zeros(number), np.zeros(number)
    for view, other in ((0, 1), (1, 0)):
        for source, targets in ((0, first), (0, second), (1, first)):
            for b in range(number):
                raw = y[:, other, targets] @ y[b, view, source] / math.sqrt(size)
                scores = clip * np.tanh(raw / clip)
                negatives = sum(np.exp(scores[n]).sum() for n in range(number) if n != b)
                terms = [-math.log(math.exp(s) / (math.exp(s) + negatives)) for s in scores[b]]
                values[b] += np.mean(terms) / 2
                penalties[b] += penalty * np.mean(raw**2) / 2
    return (values, penalties) if parts else values + penalties


CASES = [
    (PredictiveCoding(2, reduction="none"), predictions(), lambda y: slow_predictive(y, 2)),
    (PredictiveCoding(1, reduction="none"), predictions(), lambda y: slow_predictive(y, 1)),
    (MultiscaleInfoNCE(LOCATIONS, reduction="none"), embeddings(), slow_local),
    (MultiscaleInfoNCE(LOCATIONS, 1.5, 0.3, reduction="none"), embeddings(),
     lambda y: slow_local(y, 1.5, 0.3)),
]  # fmt: skip
IDS = ["cpc-2", "cpc-1", "amdim", "amdim-clipped"]
CASE = pytest.mark.parametrize(("loss", "y", "slow"), CASES, ids=IDS)


@CASE
def test_loss_matches_a_loop(loss, y, slow):
    found = loss(np.zeros(4), y)
    assert found.shape == (4,)
    np.testing.assert_allclose(found, slow(y), rtol=1e-5)


@CASE
def test_gradient_matches_differences_of_the_loop(loss, y, slow):
    variable = tf.Variable(y)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(loss(np.zeros(4), variable))
    gradient, step = tape.gradient(value, variable).numpy(), 1e-5
    for index in [(0, 0, 0), (1, 1, 1), (2, 0, 2), (3, 1, 4), (1, 0, 4), (2, 1, 3)]:
        index += (0,) * (y.ndim - 3)
        sides = []
        for sign in (1, -1):
            moved = y.astype("float64")
            moved[index] += sign * step
            sides.append(slow(moved).sum())
        difference = (sides[0] - sides[1]) / (2 * step)
        assert gradient[index] == pytest.approx(difference, rel=1e-3, abs=1e-5), index
    assert np.abs(gradient).max() > 0.1


@CASE
def test_permuting_images_permutes_the_values(loss, y, slow):
    order = [3, 0, 2, 1]
    value = loss(np.zeros(4), y).numpy()
    np.testing.assert_allclose(loss(np.zeros(4), y[order]), value[order], rtol=1e-5)
    assert len(set(value.round(3))) == 4


@pytest.mark.parametrize("number", [1, 3])
def test_scores_of_zero_give_the_logarithm_of_the_number_of_positions(number):
    for first in (1, 2):
        found = PredictiveCoding(first)(np.zeros(number), np.zeros((number, 4, 7, 6, 5), "float32"))
        assert float(found) == pytest.approx(math.log(number * 7 * 6), rel=1e-6)
    # It is enough that the predictions are 0.
    y = predictions()
    y[:, 1:] = 0
    assert float(PredictiveCoding(2)(np.zeros(4), y)) == pytest.approx(math.log(60), rel=1e-6)


@pytest.mark.parametrize("number", [2, 5])
def test_scores_of_zero_give_the_logarithm_of_the_number_of_negatives(number):
    y = np.zeros((number, 2, 2 + 25 + 49, 8), "float32")
    expected = 2 * math.log1p((number - 1) * 25) + math.log1p((number - 1) * 49)
    assert float(MultiscaleInfoNCE((25, 49))(np.zeros(number), y)) == pytest.approx(expected, 1e-6)


def test_rows_that_nothing_predicts_are_not_used():
    y = predictions()
    value = PredictiveCoding(2, reduction="none")(np.zeros(4), y)
    other = y.copy()
    other[:, 1, :2], other[:, 2, :3] = 77, -5
    np.testing.assert_array_equal(PredictiveCoding(2, reduction="none")(np.zeros(4), other), value)
    other[:, 1, 2] += 1  # the first that is used
    assert (PredictiveCoding(2, reduction="none")(np.zeros(4), other) != value).numpy().all()


def test_the_order_of_the_views_does_not_matter():
    y, loss = embeddings(), MultiscaleInfoNCE(LOCATIONS, reduction="none")
    np.testing.assert_allclose(loss(np.zeros(4), y[:, ::-1]), loss(np.zeros(4), y), rtol=1e-6)
    half = y.copy()
    half[:, 1, 2:] = half[:, 1, 2:][:, ::-1]  # the order of the locations within a map does
    assert (loss(np.zeros(4), half) != loss(np.zeros(4), y)).numpy().any()


def test_the_order_of_locations_does_not_matter():
    y, loss = embeddings(), MultiscaleInfoNCE(LOCATIONS, reduction="none")
    other = y.copy()
    other[:, 0, 2:4], other[:, 1, 4:] = y[:, 0, [3, 2]], y[:, 1, [5, 6, 4]]
    np.testing.assert_allclose(loss(np.zeros(4), other), loss(np.zeros(4), y), rtol=1e-5)


def test_the_penalty_is_on_the_scores_before_the_clip():
    y = 30 * embeddings()
    large, none = (
        MultiscaleInfoNCE(LOCATIONS, penalty=p, reduction="none")(np.zeros(4), y) for p in (0.05, 0)
    )
    np.testing.assert_allclose(large - none, slow_local(y, parts=True)[1], rtol=1e-4)
    assert (large - none).numpy().min() > 3 * 0.05 * 20**2  # what clipped scores have at most
    assert none.numpy().max() < 3 * (40 + math.log(20))


def test_other_locations_of_the_own_image_are_no_negatives():
    y = embeddings()
    loss = MultiscaleInfoNCE(LOCATIONS, penalty=0, reduction="none")
    # Of a single pair, the targets of the first image: a location that is like all others is found as well.
    same = y.copy()
    same[0, :, 2:] = same[0, :, 2:3]
    values = loss(np.zeros(4), same)[0]
    expected = slow_local(same, penalty=0)[0]
    assert float(values) == pytest.approx(expected, rel=1e-5)
    assert float(loss(np.zeros(1), embeddings()[:1])[0]) == pytest.approx(0, abs=1e-6)


def test_a_batch_of_one_image_has_finite_gradients():
    for loss, y in (
        (MultiscaleInfoNCE(LOCATIONS, penalty=0), embeddings()[:1]),
        (PredictiveCoding(2), predictions()[:1]),
    ):
        variable = tf.Variable(y)
        with tf.GradientTape() as tape:
            value = loss([0], variable)
        gradient = tape.gradient(value, variable).numpy()
        assert np.isfinite(gradient).all()
        # CPC's negatives are also the other positions of the image; AMDIM's are other images only.
        assert (np.abs(gradient).max() > 0) == isinstance(loss, PredictiveCoding)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_finite_in_16_bits(dtype):
    for loss, y in (
        (MultiscaleInfoNCE(LOCATIONS), 30 * embeddings()),
        (PredictiveCoding(2), 30 * predictions()),
    ):
        variable = tf.Variable(tf.cast(y, dtype))
        with tf.GradientTape() as tape:
            value = loss(np.zeros(4), variable)
        assert value.dtype == tf.float32
        assert np.isfinite(float(value))
        assert np.isfinite(tf.cast(tape.gradient(value, variable), tf.float32)).all()


def test_invalid_arguments():
    for first in (0, 1.0, True):
        with pytest.raises(ValueError, match=r"first must be an integer \(int64\) of at least 1"):
            PredictiveCoding(first)
    for clip in (0, -1.0, float("nan"), "20"):
        with pytest.raises(ValueError, match="clip must be a positive number, got"):
            MultiscaleInfoNCE(LOCATIONS, clip)
    for penalty in (-0.1, None):
        with pytest.raises(ValueError, match="penalty must be a number of at least 0, got"):
            MultiscaleInfoNCE(LOCATIONS, penalty=penalty)
    with pytest.raises(ValueError, match=r"locations must be a pair of integers, got \(1, 2, 3\)"):
        MultiscaleInfoNCE((1, 2, 3))
    with pytest.raises(ValueError, match=r"locations\[1\] must be an integer .* got 0"):
        MultiscaleInfoNCE((1, 0))


@pytest.mark.parametrize("shape", [(4, 3, 5, 3), (4, 1, 5, 3, 2), (4, 3, 3, 3, 2)])
def test_predictions_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"y_pred must be \(B, 1 \+ S, H, W, D\), .*first=2"):
        PredictiveCoding(2)(np.zeros(4), np.zeros(shape, "float32"))
    # The last of two steps fits exactly if there is one row more.
    PredictiveCoding(2)(np.zeros(4), np.zeros((4, 3, 4, 3, 2), "float32"))


@pytest.mark.parametrize("shape", [(4, 2, 7), (4, 1, 7, 3), (4, 2, 8, 3)])
def test_embeddings_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"y_pred must be \(B, 2, 7, D\) for locations=\(2, 3\)"):
        MultiscaleInfoNCE(LOCATIONS)(np.zeros(4), np.zeros(shape, "float32"))


@pytest.mark.parametrize("loss", [PredictiveCoding(2), MultiscaleInfoNCE(LOCATIONS, 5.0, 0.1)])
def test_config_round_trip(loss):
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert copy.get_config() == loss.get_config()
