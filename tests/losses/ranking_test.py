import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssl.losses import DepthRanking
from keras_ssl.metrics import OrderedPairs


def example():
    """Pairs of three images of 3x5 pixels, in one of which no pair is known, and predictions."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 15, (3, 8, 2))
    order = rng.choice([-1, 0, 1, np.nan], (3, 8, 1))
    order[2] = np.nan
    return np.concatenate([pixels, order], -1).astype(np.float32), rng.normal(
        0, 2, (3, 3, 5, 1)
    ).astype(np.float32)


def by_hand(pairs, predicted):
    losses, right, number = [], 0, 0
    for image, z in zip(pairs, predicted, strict=True):
        costs = []
        for first, second, r in image:
            (i, j), (m, n) = divmod(int(first), 5), divmod(int(second), 5)
            difference = float(z[i, j, 0]) - float(z[m, n, 0])
            if math.isnan(r):
                continue
            costs.append(difference**2 if r == 0 else math.log(1 + math.exp(-r * difference)))
            if r != 0:
                right, number = right + (r * difference > 0), number + 1
        losses.append(sum(costs) / max(len(costs), 1))
    return losses, right / number


def test_loss_and_metric_equal_a_slow_loop():
    pairs, predicted = example()
    losses, right = by_hand(pairs, predicted)
    found = DepthRanking(reduction="none")(pairs, predicted)
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    assert found[2] == 0
    metric = OrderedPairs()
    metric.update_state(pairs, predicted)
    assert float(metric.result()) == pytest.approx(right)


def test_the_farther_pixel_must_have_the_larger_value():
    """The convention: r = 1 if the first pixel of the pair is farther."""
    near, far = (
        tf.constant([[[[0.0], [3.0]]]]),
        [[[1.0, 0.0, 1.0]]],
    )  # pixel 1 is farther than pixel 0
    assert float(DepthRanking()(far, near)) == pytest.approx(math.log(1 + math.exp(-3)))
    assert float(DepthRanking()(far, -near)) == pytest.approx(math.log(1 + math.exp(3)))
    for values, expected in ((near, 1), (-near, 0), (0 * near, 0)):
        metric = OrderedPairs()
        metric.update_state(far, values)
        assert float(metric.result()) == expected


def test_unknown_pairs_get_no_gradient_and_no_nan():
    pairs, predicted = example()
    predicted = tf.constant(predicted)
    with tf.GradientTape() as tape:
        tape.watch(predicted)
        loss = DepthRanking()(pairs, predicted)
    gradient = tape.gradient(loss, predicted).numpy()
    assert np.isfinite(gradient).all()
    assert not gradient[2].any()
    known = pairs[0][np.isfinite(pairs[0, :, 2])][:, :2].astype(int)
    touched = set(np.flatnonzero(gradient[0].ravel()))
    assert touched <= set(known.ravel())
    assert touched
    huge = DepthRanking()([[[0.0, 1.0, 1.0]]], tf.constant([[[[-1e30], [1e30]]]]))
    assert math.isfinite(float(huge))


def test_metric_leaves_out_unknown_and_equal_pairs_and_images_without_weight():
    metric = OrderedPairs()
    pairs = np.float32([[[0, 1, 1], [0, 1, np.nan]], [[0, 1, -1], [1, 0, 0]], [[0, 1, -1]] * 2])
    values = np.float32([[3, 1], [3, 1], [3, 1]]).reshape(3, 1, 2, 1)
    metric.update_state(pairs, values)
    assert float(metric.result()) == pytest.approx(1 / 4)
    metric.reset_state()
    metric.update_state(pairs, values, sample_weight=[1, 1, 0])
    assert float(metric.result()) == pytest.approx(1 / 2)


def test_order_of_a_pair_and_an_offset_do_not_count():
    pairs, predicted = example()
    swapped = pairs[..., [1, 0, 2]] * [1, 1, -1]
    loss = DepthRanking(reduction="none")
    expected = loss(pairs, predicted)
    np.testing.assert_allclose(loss(swapped, predicted), expected, rtol=1e-5)
    np.testing.assert_allclose(loss(pairs, predicted + 5), expected, rtol=1e-4)


def test_serialize():
    copy = keras.losses.deserialize(keras.losses.serialize(DepthRanking(name="r")))
    assert (type(copy), copy.name) == (DepthRanking, "r")
    copy = keras.metrics.deserialize(keras.metrics.serialize(OrderedPairs()))
    assert (type(copy), copy.name) == (OrderedPairs, "ordered")
