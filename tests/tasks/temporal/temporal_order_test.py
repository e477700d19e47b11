"""Temporal order: which three of five frames get which label, and that motion is what it learns from."""

import collections

import keras
import numpy as np
import pytest
import sprites
from orders import REFUSED, drawn

import keras_ssl as kssl
from keras_ssl.tasks import TemporalOrder


@pytest.fixture(scope="module")
def encoder():
    return kssl.encoders.resnet((8, 8, 3), width=2, blocks=(1,))


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


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_refuses(encoder, arguments, words):
    with pytest.raises(ValueError, match=words):
        TemporalOrder(encoder, **arguments)


def test_too_few_frames(encoder):
    frames = np.zeros((4, 4, 8, 8, 3), np.uint8)
    images = kssl.data.from_array(frames[:, 0], frames=frames)
    with pytest.raises(ValueError, match="T >= 5 .*use a reader with frames=5"):
        TemporalOrder(encoder).dataset(images, 2)


def test_labels_have_names(encoder):
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
