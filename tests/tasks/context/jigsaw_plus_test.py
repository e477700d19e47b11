import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.tasks.context.permutations import describe, permutations


def make(size=30, **arguments):
    encoder = kssl.encoders.resnet((size, size, 3), width=2, blocks=(1,))
    return kssl.tasks.JigsawPlus(encoder, **{"crop": 1, **arguments})


def seeds(number):
    return tf.stack([tf.zeros(number, tf.int64), tf.range(number, dtype=tf.int64)], 1)


def numbered(number, size=30, grid=3):
    """Cell k of image i has the color (i, k, i), which identifies every tile."""
    image = np.zeros((number, size, size, 3), np.float32)
    cell = size // grid
    for k in range(grid * grid):
        row, column = k // grid * cell, k % grid * cell
        image[:, row : row + cell, column : column + cell, 1] = k
    image[..., 0] = image[..., 2] = np.arange(number)[:, None, None]
    return image


@pytest.mark.parametrize("max_replaced", [0, 1, 2, 4])
def test_labels_hold_for_all_tiles_but_the_replaced(max_replaced):
    task = make(max_replaced=max_replaced, num_permutations=50, normalize=False, gray=0)
    x, y = (a.numpy() for a in task.pretext({"image": numbered(400)}, seeds(400)))
    owner, cell = x[:, :, 0, 0, 0].astype(int), x[:, :, 0, 0, 1].astype(int)
    own = owner == np.arange(400)[:, None]
    order = task.permutations[y]
    np.testing.assert_array_equal(cell[own], order[own])
    number = (~own).sum(1)
    np.testing.assert_array_equal(np.unique(number), range(max_replaced + 1))
    np.testing.assert_allclose(
        np.bincount(number) / 400, 1 / (max_replaced + 1), atol=0.1
    )  # 0, 1, ... are equally frequent
    for i in np.flatnonzero(number):
        assert len(np.unique(owner[i][~own[i]])) == 1  # all from one other image
        assert len(np.unique(cell[i][~own[i]])) == number[i]  # no tile twice
    if max_replaced:
        at_same_cell = cell[~own] == order[~own]
        assert at_same_cell.mean() < 0.3  # random tiles, not those of the same cell
        assert len(np.unique(np.flatnonzero(~own) % 9)) == 9  # at all positions


def test_label_is_unique_without_replaced_tiles():
    task = make()
    found = describe(task.permutations)
    assert len(task.permutations) == 701
    assert found["minimum"] >= 3  # the bound of the paper for two replaced tiles
    four = make(grid=2)
    assert (len(four.permutations), four.max_replaced) == (24, 1)
    with pytest.raises(ValueError, match="minimum Hamming distance of the permutations, 2"):
        make(grid=2, max_replaced=2)
    with pytest.raises(ValueError, match="max_replaced.*got 2"):
        make(permutations=permutations(20, distance="low"))
    assert make(permutations=permutations(20, distance="low"), max_replaced=1).max_replaced == 1


def test_replaced_tiles_become_gray_with_the_image():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 30, 30, 3), np.uint8)
    x, _ = make(normalize=False).pretext({"image": images}, seeds(300))
    gray = (np.ptp(x.numpy(), axis=-1) < 1e-2).all(axis=(2, 3))
    assert (gray.all(1) | ~gray.any(1)).all()
    assert gray[:, 0].mean() == pytest.approx(0.7, abs=0.08)


def test_single_image_keeps_its_tiles():
    task = make(normalize=False, gray=0)
    for seed in range(5):
        x, y = task.pretext({"image": numbered(1)}, tf.constant([[seed, 0]], tf.int64))
        np.testing.assert_array_equal(x[0, :, 0, 0, 1], task.permutations[y[0]])


def test_tiles_are_normalized(noise):
    x, _ = make().pretext({"image": noise[:8, :30, :30]}, seeds(8))
    np.testing.assert_allclose(x.numpy().mean((2, 3)), 127.5, atol=0.01)


def test_config_keeps_the_permutations():
    task = make(grid=2, max_replaced=1, num_permutations=5)
    copy = kssl.tasks.JigsawPlus.from_config(task.get_config())
    np.testing.assert_array_equal(copy.permutations, task.permutations)
    assert (copy.grid, copy.max_replaced, copy.gray) == (2, 1, 0.7)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_replaced": 9}, r"max_replaced must be in 0\.\.8"),
        ({"max_replaced": -1}, r"max_replaced must be in 0\.\.8"),
        ({"grid": 2, "max_replaced": 4}, r"0\.\.3"),
        ({"grid": 5}, "grid must be 2 or 3"),
        ({"num_permutations": 400000}, r"number must be in 1\.\.362880"),
        ({"gray": -0.1}, "gray"),
    ],
)
def test_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        make(**arguments)
