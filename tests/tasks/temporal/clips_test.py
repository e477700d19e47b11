import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_ssl as kssl
from keras_ssl.tasks.temporal import clips


def seeds(number, start=0):
    return tf.stack([tf.fill(number, np.int64(start)), tf.range(number, dtype=tf.int64)], 1)


def test_windows_with_more_motion_are_drawn_more_often():
    """Steps of 2, 0, 0, 6 and 1 in one of 12 values: the windows of three frames have 2, 0, 6 and 7."""
    clip = np.zeros((6, 2, 2, 3), np.uint8)
    clip[:, 1, 0, 2] = np.cumsum([100, 2, 0, 0, 6, 1])
    frames = np.broadcast_to(clip, (4000, *clip.shape))
    found = clips.draw_window(tf.constant(frames), seeds(4000), 3).numpy()
    assert found.shape == (4000, 3, 2, 2, 3)
    kinds, counts = np.unique(found[:, :, 1, 0, 2], axis=0, return_counts=True)
    expected = {(100, 102, 102): 3, (102, 102, 102): 1, (102, 102, 108): 7, (102, 108, 109): 8}
    shares = dict(zip(map(tuple, kinds.tolist()), counts / 4000, strict=True))
    assert shares == {k: pytest.approx(v / 19, abs=0.03) for k, v in expected.items()}


def test_windows_of_clips_without_motion_are_uniform():
    frames = np.broadcast_to(np.uint8(9), (2000, 4, 1, 1, 3))
    drawn = clips.draw_window(tf.constant(frames), seeds(2000), 2)
    assert (drawn.numpy() == 9).all()
    # Which one is drawn shows in frames that differ by the same number.
    steps = np.broadcast_to(
        10 * np.arange(4, dtype=np.uint8)[:, None, None, None], (2000, 4, 1, 1, 3)
    )
    first = clips.draw_window(tf.constant(steps), seeds(2000), 2).numpy()[:, 0, 0, 0, 0]
    assert np.bincount(first // 10) / 2000 == pytest.approx([1 / 3] * 3, abs=0.04)


def test_a_window_does_not_depend_on_the_batch(noise):
    frames = np.stack([noise[k : k + 7] for k in range(0, 28, 4)])
    whole = clips.draw_window(tf.constant(frames), seeds(7), 3)
    for k in range(7):
        alone = clips.draw_window(tf.constant(frames[k : k + 1]), seeds(7)[k : k + 1], 3)
        np.testing.assert_array_equal(alone[0], whole[k])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**40), st.sampled_from([0.0, 0.125, 0.5]))
def test_all_frames_are_shifted_and_mirrored_alike(seed, shift):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (3, 1, 8, 10, 3), np.uint8)
    found = clips.augment_frames(tf.constant(image.repeat(4, axis=1)), seeds(3, seed), shift)
    assert found.dtype == tf.uint8
    for k in range(1, 4):
        np.testing.assert_array_equal(found[:, k], found[:, 0])
    if not shift:
        for before, after in zip(image[:, 0], found[:, 0].numpy(), strict=True):
            assert (after == before).all() or (after == before[:, ::-1]).all()


def test_jitter_shifts_each_frame_by_itself(noise):
    image = noise[:20, :16, :16]
    frames = tf.constant(np.stack([image] * 3, axis=1))
    found = clips.augment_frames(frames, seeds(20), 0, jitter=0.125).numpy()
    places = []
    for before, three in zip(image, found, strict=True):
        for after in three:
            part, sides = after[4:12, 4:12], (before, before[:, ::-1])
            at = [
                (s, r, c)
                for s, side in enumerate(sides)
                for r in range(9)
                for c in range(9)
                if (side[r : r + 8, c : c + 8] == part).all()
            ]
            assert len(at) == 1
            places.append(at[0])
    places = np.array(places).reshape(20, 3, 3)
    assert (places[:, :, 0] == places[:, :1, 0]).all()  # mirrored alike
    assert set(places[:, :, 0].ravel()) == {0, 1}
    offsets = places[:, :, 1:] - 4
    assert set(offsets.ravel()) == {-2, -1, 0, 1, 2}
    assert (offsets[:, 0] != offsets[:, 1]).any(axis=1).mean() > 0.8


def test_one_channel_per_frame(noise):
    frames = np.stack([noise] * 3, axis=1)
    found = clips.augment_frames(tf.constant(frames), seeds(40), 0, split_channels=True).numpy()
    assert (found == found[..., :1]).all()
    mirrored = found[:, :, :, ::-1]
    drawn = np.full((40, 3), -1)
    for channel in range(3):
        for same in (found, mirrored):
            drawn[(same[..., 0] == frames[..., channel]).all(axis=(2, 3))] = channel
    assert np.bincount(drawn.ravel()).min() > 20  # of 40; -1 would raise
    assert len({tuple(row) for row in drawn}) > 15  # of 27: another one for each frame


def test_moving_area():
    frames = np.full((3, 3, 7, 9, 3), 50, np.uint8)
    frames[0, 0, 2, 3, 1] = 59  # changed in the first step
    frames[1, 2, 6, 8, 2] = 41  # in the second, in a corner
    frames[2, 1:, 3, 3] = 58  # by no more than 8
    found = clips.moving_area(tf.constant(frames)).numpy()
    expected = np.zeros((3, 7, 9, 1))
    expected[0, 1:4, 2:5] = 1
    expected[1, 5:, 7:] = 1
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("frames", "words"),
    [(np.zeros((2, 4, 8, 8, 3), np.uint8), "T >= 5 .* got \\(4, 8, 8, 3\\)"),
     (np.zeros((2, 8, 8, 3), np.uint8), "frames=5 or more")],
)  # fmt: skip
def test_clips_that_are_too_short(frames, words):
    images = kssl.data.from_array(np.zeros((2, 8, 8, 3), np.uint8), frames=frames)
    with pytest.raises(ValueError, match=words):
        clips.check_length(images, 5)
    if frames.ndim == 5:
        clips.check_length(images, 4)


def test_differences_of_all_pairs():
    embedded = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    found = clips.differences(tf.constant(embedded)).numpy()
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    for row, (i, j) in enumerate(pairs):
        expected = np.hypot(1, embedded[:, i] - embedded[:, j]) - 1
        np.testing.assert_allclose(found[:, row], expected, atol=1e-6)
    assert found.shape == (2, 6, 5)
