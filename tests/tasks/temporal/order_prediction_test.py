"""Order prediction: which order of four frames gets which label, and what is compared with what."""

import itertools

import numpy as np
import pytest
from orders import REFUSED, drawn

import keras_ssl as kssl
from keras_ssl.tasks import OrderPrediction
from keras_ssl.tasks.temporal import order_prediction


@pytest.fixture(scope="module")
def encoder():
    return kssl.encoders.resnet((8, 8, 3), width=2, blocks=(1,))


def test_twelve_orders_of_four_frames(encoder):
    assert len(order_prediction.ORDERS) == 12
    both = {*order_prediction.ORDERS, *(order[::-1] for order in order_prediction.ORDERS)}
    assert both == set(itertools.permutations(range(4)))
    found = drawn(OrderPrediction(encoder, split_channels=False, hidden=2), 4, 6000)
    assert len(found) == 24  # no order with two labels
    for (order, label), number in found.items():
        assert order_prediction.ORDERS[label] in (order, order[::-1])
        assert number == pytest.approx(250, abs=75)


def test_longer_clips_give_consecutive_frames(encoder):
    orders = {order for order, _ in drawn(OrderPrediction(encoder, hidden=2), 7)}
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(k, k + 4)) for k in range(4)}


def test_pairs_are_compared_by_one_layer(encoder):
    """Row (i, j) of what is classified depends on the frames i and j, and on no other."""
    task = OrderPrediction(encoder, hidden=32)
    x = np.random.default_rng(0).integers(0, 256, (1, 4, 8, 8, 3), np.uint8)
    task(x)
    seen = []
    task.head = lambda pairs: seen.append(pairs.numpy().reshape(6, 32)) or pairs
    for changed in (None, 0, 1, 2, 3):
        other = x.copy()
        if changed is not None:
            other[:, changed] = 255 - other[:, changed]
        task.call(other)
    for k in range(4):
        differs = np.abs(seen[k + 1] - seen[0]).max(axis=1) > 1e-4
        assert differs.tolist() == [k in pair for pair in itertools.combinations(range(4), 2)]


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_refuses(encoder, arguments, words):
    with pytest.raises(ValueError, match=words):
        OrderPrediction(encoder, **arguments)


def test_too_few_frames(encoder):
    frames = np.zeros((4, 3, 8, 8, 3), np.uint8)
    images = kssl.data.from_array(frames[:, 0], frames=frames)
    with pytest.raises(ValueError, match="T >= 4 .*use a reader with frames=4"):
        OrderPrediction(encoder).dataset(images, 2)


def test_labels_have_names(encoder):
    assert OrderPrediction(encoder).label_text(1) == "1-2-4-3"
