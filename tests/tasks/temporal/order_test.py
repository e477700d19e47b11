"""Both tasks of order: which frames in which order get which label."""

import collections
import itertools

import keras
import numpy as np
import pytest
import sprites
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.tasks import OrderPrediction, TemporalOrder
from keras_ssl.tasks.temporal import order_prediction


@pytest.fixture(scope="module")
def encoder():
    return kssl.encoders.resnet((8, 8, 3), width=2, blocks=(1,))


def seeds(number, start=0):
    return tf.stack([tf.fill(number, np.int64(start)), tf.range(number, dtype=tf.int64)], 1)


def drawn(task, frames, number=2000):
    """Counts (order, label) of the frames of a clip; frame t has the color t."""
    colors = np.arange(frames, dtype=np.uint8)[:, None, None, None]
    clip = np.broadcast_to(colors, (number, frames, 8, 8, 3))
    x, y = task.pretext({"frames": clip}, seeds(number))
    assert (x == x[:, :, :1, :1]).numpy().all()
    orders = map(tuple, x[:, :, 0, 0, 0].numpy().tolist())
    return collections.Counter(zip(orders, y.numpy().tolist(), strict=True))


def test_triplets_of_five_frames(encoder):
    found = drawn(TemporalOrder(encoder, hidden=2), 5)
    # b, c, d = 1, 2, 3 and the reverse are in order; of the others the middle frame is a = 0 or e = 4.
    expected = {((1, 2, 3), 1): 500, ((3, 2, 1), 1): 500}
    for end in (0, 4):
        expected |= {((1, end, 3), 0): 250, ((3, end, 1), 0): 250}
    assert found == {k: pytest.approx(v, abs=80) for k, v in expected.items()}


def test_first_and_last_frame_tell_nothing(encoder):
    """Given these two frames, in this order, both labels are equally frequent."""
    ends = collections.defaultdict(collections.Counter)
    for (order, label), number in drawn(TemporalOrder(encoder, hidden=2), 9).items():
        ends[order[0], order[2]][label] += number
    for (first, last), labels in ends.items():
        assert abs(first - last) == 2
        assert labels[0] / labels.total() == pytest.approx(0.5, abs=0.12)


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


@pytest.mark.parametrize("task", [TemporalOrder, OrderPrediction])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"shift": 0.6}, "shift must be in 0..0.5"), ({"shift": None}, "shift"), ({"jitter": -0.1}, "jitter"),
     ({"hidden": 0}, "hidden"), ({"split_channels": 1}, "split_channels must be True or False")],
)  # fmt: skip
def test_refuses(encoder, task, arguments, words):
    with pytest.raises(ValueError, match=words):
        task(encoder, **arguments)


@pytest.mark.parametrize(("task", "least"), [(TemporalOrder, 5), (OrderPrediction, 4)])
def test_too_few_frames(encoder, task, least):
    frames = np.zeros((4, least - 1, 8, 8, 3), np.uint8)
    images = kssl.data.from_array(frames[:, 0], frames=frames)
    with pytest.raises(ValueError, match=f"T >= {least} .*use a reader with frames={least}"):
        task(encoder).dataset(images, 2)


def test_labels_have_names(encoder):
    assert OrderPrediction(encoder).label_text(1) == "1-2-4-3"
    assert TemporalOrder(encoder).label_text(1) == "right"


def test_learns_the_order_of_sprites_and_guesses_without_motion():
    keras.utils.set_random_seed(0)

    def images(number, seed, speed):
        clips, _ = sprites.clips(number, 16, seed=seed, shapes=1, speed=speed)
        return kssl.data.from_array(clips[:, 2], frames=clips)

    encoder = kssl.encoders.resnet((16, 16, 3), width=4, blocks=(1, 1))
    task = TemporalOrder(encoder, shift=0, jitter=0, hidden=64)
    task.compile(keras.optimizers.Adam(3e-3))
    task.fit(task.dataset(images(500, 0, 2), 50, epochs=12), epochs=12, verbose=0)
    moving, still = (
        task.evaluate(task.dataset(images(200, 1, speed), 100), verbose=0, return_dict=True)
        for speed in (2, 0)
    )
    assert moving["accuracy"] > 0.8
    assert 0.35 < still["accuracy"] < 0.65
