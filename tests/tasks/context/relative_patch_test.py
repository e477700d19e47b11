import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.tasks.context.relative_patch import POSITIONS

OFFSETS = {
    "upper left": (-1, -1), "above": (-1, 0), "upper right": (-1, 1), "left": (0, -1),
    "right": (0, 1), "lower left": (1, -1), "below": (1, 0), "lower right": (1, 1),
}  # fmt: skip


def make(size=(32, 32), **arguments):
    encoder = kssl.encoders.resnet((*size, 3), width=2, blocks=(1,))
    return kssl.tasks.RelativePatch(encoder, **{"crop": 1, **arguments})


def seeds(number):
    return tf.stack([tf.zeros(number, tf.int64), tf.range(number, dtype=tf.int64)], 1)


def coordinates(number, height, width):
    image = np.zeros((number, height, width, 3), np.float32)
    image[..., 0] = np.arange(height)[:, None]
    image[..., 1] = np.arange(width)
    return image


@pytest.mark.parametrize("size", [(40, 40), (40, 61)])
def test_labels_match_positions_of_patches(size):
    task = make(size, patch=8, gap=4, jitter=1, color=None)
    x, y = task.pretext({"image": coordinates(100, *size)}, seeds(100))
    assert x.shape == (100, 9, 8, 8, 3)
    np.testing.assert_array_equal(y, [range(8)] * 100)
    corners = x.numpy()[:, :, 0, 0, :2]  # row and column of the first pixel of each patch
    neighbors = np.delete(corners, 4, axis=1)
    for label, name in enumerate(POSITIONS):
        apart = neighbors[:, label] - corners[:, 4]
        # 8 + 4 pixels from corner to corner, and each of the two is shifted by at most one.
        np.testing.assert_array_less(np.abs(apart - 12 * np.array(OFFSETS[name])), 2.001)
    # At least gap - 2 * jitter pixels are left out between any two patches, so they have no common pixel.
    rows, columns = x.numpy()[..., 0], x.numpy()[..., 1]
    for a in range(9):
        for b in range(a):
            row = np.maximum(rows[:, a].min((1, 2)) - rows[:, b].max((1, 2)),
                             rows[:, b].min((1, 2)) - rows[:, a].max((1, 2)))  # fmt: skip
            column = np.maximum(columns[:, a].min((1, 2)) - columns[:, b].max((1, 2)),
                                columns[:, b].min((1, 2)) - columns[:, a].max((1, 2)))  # fmt: skip
            assert (np.maximum(row, column) > 2).all()


def test_each_of_four_patches_is_the_center_once():
    task = make((40, 61), grid=2, patch=12, gap=5, jitter=2, color=None)
    x, y = task.pretext({"image": coordinates(100, 40, 61)}, seeds(100))
    assert x.shape == (100, 4, 12, 12, 3)
    assert y.shape == (100, 12)
    corners = x.numpy()[:, :, 0, 0, :2]
    assert len({(center, other) for center, other, _ in task.pairs}) == 12
    for k, (center, other, _) in enumerate(task.pairs):
        (label,) = set(y[:, k].numpy().tolist())
        apart = corners[:, other] - corners[:, center]
        np.testing.assert_array_less(
            np.abs(apart - 17 * np.array(OFFSETS[POSITIONS[label]])), 4.001
        )
    assert set(y.numpy().ravel()) == set(range(8))
    assert make(grid=2).patch == 12
    assert task(x).shape == (100, 12, 8)
    captions = [caption for _, caption in task.preview(x.numpy(), y.numpy())[0]]
    assert captions == ["center", "4: right", "6: below", "7: lower right"]


def test_nine_patches_cover_the_whole_image():
    task = make((40, 61), patch=8, gap=4, jitter=1, color=None)
    x, _ = task.pretext({"image": coordinates(400, 40, 61)}, seeds(400))
    rows, columns = x.numpy()[..., 0], x.numpy()[..., 1]
    assert (rows.min(), rows.max()) == (0, 39)
    assert (columns.min(), columns.max()) == (0, 60)
    moves = rows[:, 1, 0, 0] - rows[:, 0, 0, 0]  # two patches of one row
    assert set(np.unique(moves)) == {-2, -1, 0, 1, 2}


def test_defaults_follow_the_paper():
    large = make((448, 448))  # 96 * 3 + 48 * 2 + 7 * 2 = 398 pixels suffice
    assert large.gap == large.patch // 2
    assert large.jitter == round(7 / 96 * large.patch)
    paper = make((398, 398))
    assert (paper.patch, paper.gap, paper.jitter) == (96, 48, 7)
    small = make((32, 32))
    assert (small.patch, small.gap, small.jitter) == (7, 3, 1)


def test_colors_are_dropped_or_projected(noise):
    plain, _ = make(color=None).pretext({"image": noise[:6]}, seeds(6))
    dropped, _ = make(color="dropping").pretext({"image": noise[:6]}, seeds(6))
    projected, _ = make(color="projection").pretext({"image": noise[:6]}, seeds(6))
    same = (dropped.numpy() == plain.numpy()).all(axis=(2, 3))
    np.testing.assert_array_equal(same.sum(-1), 1)
    np.testing.assert_allclose(projected.numpy() @ [-1, 2, -1], 0, atol=1e-3)


def test_pairs_are_compared_independently(noise):
    """Oracle: the prediction for a pair does not depend on the other seven neighbors."""
    task = make(color=None)
    x, _ = task.pretext({"image": noise[:4]}, seeds(4))
    logits = task(x).numpy()
    assert logits.shape == (4, 8, 8)
    features = task.encoder.call(tf.reshape(x, (36, 7, 7, 3))).numpy().reshape(4, 9, -1)
    for k, other in enumerate([0, 1, 2, 3, 5, 6, 7, 8]):
        pair = np.concatenate([features[:, 4], features[:, other]], axis=1)
        np.testing.assert_allclose(
            logits[:, k], task.head(task.pair_layer(pair)), rtol=1e-4, atol=1e-5
        )


def test_learns_positions():
    rng = np.random.default_rng(0)
    ramp = np.linspace(20, 200, 24)
    images = rng.integers(0, 20, (256, 24, 24, 3)) + ramp[:, None, None] / 2
    images[..., 0] += ramp[None, :] / 2  # brightness encodes the row, red the column
    task = kssl.tasks.RelativePatch(
        kssl.encoders.resnet((24, 24, 3), width=8, blocks=(1,)),
        patch=5,
        gap=2,
        jitter=1,
        color=None,
        crop=1,
    )
    task.compile("adam")
    images = kssl.data.from_array(images.astype(np.uint8))
    task.fit(task.dataset(images, 32, epochs=12), epochs=12, verbose=0)
    assert task.evaluate(task.dataset(images, 32), verbose=0)[1] > 0.7  # chance: 0.125


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"grid": 4}, "grid must be 2 or 3"),
        ({"patch": 9}, "patch 9, gap 4 and jitter 1 need 37 pixels"),
        ({"patch": 8, "gap": 5}, "need 36 pixels.*32x32"),
        ({"patch": 0}, "patch must be at least 1"),
        ({"gap": -1}, "gap -1"),
        ({"patch": 7, "gap": 3, "jitter": 2}, "jitter 2 can move patches across the gap of 3"),
        ({"color": "gray"}, "color must be one of"),
    ],
)
def test_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        make(**arguments)


def test_refuses_encoders_without_fixed_size_or_colors():
    with pytest.raises(ValueError, match="fixed height and width"):
        kssl.tasks.RelativePatch(kssl.encoders.resnet((None, None, 3), width=2, blocks=(1,)))
    gray = kssl.encoders.resnet((32, 32, 1), width=2, blocks=(1,))
    with pytest.raises(ValueError, match="needs 3 channels"):
        kssl.tasks.RelativePatch(gray)
    assert kssl.tasks.RelativePatch(gray, color=None).patch == 7
    with pytest.raises(ValueError, match="need 5 pixels"):
        make((4, 4), patch=1)
