import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.ops import patches
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


@pytest.fixture
def plain(monkeypatch):
    """Patches keep their pixels, which are coordinates in these tests."""
    monkeypatch.setattr(patches, "normalize", lambda x: tf.cast(x, tf.float32))


@pytest.mark.parametrize("size", [(40, 40), (40, 61)])
@pytest.mark.parametrize(("grid", "number"), [(2, 12), (3, 40)])
def test_labels_match_positions_of_patches(grid, number, size, plain):
    task = make(size, grid=grid, patch=8, gap=4, jitter=1, color=None)
    x, y = task.pretext({"image": coordinates(100, *size)}, seeds(100))
    assert x.shape == (100, grid**2, 8, 8, 3)
    assert y.shape == (100, number)
    corners = x.numpy()[:, :, 0, 0, :2]  # row and column of the first pixel of each patch
    for k, (first, second, _) in enumerate(task.pairs):
        (label,) = set(y[:, k].numpy().tolist())
        apart = corners[:, second] - corners[:, first]
        # 8 + 4 pixels from corner to corner, and each of the two is shifted by at most one.
        np.testing.assert_array_less(
            np.abs(apart - 12 * np.array(OFFSETS[POSITIONS[label]])), 2.001
        )
    # At least gap - 2 * jitter pixels are left out between any two patches, so they have no common pixel.
    rows, columns = x.numpy()[..., 0], x.numpy()[..., 1]
    for a in range(grid**2):
        for b in range(a):
            row = np.maximum(rows[:, a].min((1, 2)) - rows[:, b].max((1, 2)),
                             rows[:, b].min((1, 2)) - rows[:, a].max((1, 2)))  # fmt: skip
            column = np.maximum(columns[:, a].min((1, 2)) - columns[:, b].max((1, 2)),
                                columns[:, b].min((1, 2)) - columns[:, a].max((1, 2)))  # fmt: skip
            assert (np.maximum(row, column) > 2).all()


@pytest.mark.parametrize("grid", [2, 3])
def test_pairs_are_all_neighbors_in_both_orders(grid):
    """Oracle: the pairs of cells that are at most one row and one column apart."""
    cells = [(row, column) for row in range(grid) for column in range(grid)]
    expected = {
        (a, b)
        for a, (r, c) in enumerate(cells)
        for b, (s, d) in enumerate(cells)
        if a != b and max(abs(r - s), abs(c - d)) == 1
    }
    pairs = make(grid=grid).pairs
    assert {(first, second) for first, second, _ in pairs} == expected
    assert len(pairs) == len(expected) == {2: 12, 3: 40}[grid]
    # No cell reveals the label: even if it were known, the best guess has this accuracy.
    labels = [[label for _, second, label in pairs if second == cell] for cell in range(grid**2)]
    assert all(len(set(of_cell)) == len(of_cell) >= 3 for of_cell in labels)


def test_preview_shows_the_neighbors_of_one_patch(noise):
    task = make(grid=2)
    x, y = task.pretext({"image": noise[:2]}, seeds(2))
    captions = [caption for _, caption in task.preview(x.numpy(), y.numpy())[0]]
    assert captions == ["center", "4: right", "6: below", "7: lower right"]
    task = make()
    x, y = task.pretext({"image": noise[:2]}, seeds(2))
    captions = [caption for _, caption in task.preview(x.numpy(), y.numpy())[0]]
    assert captions[4] == "center"
    del captions[4]
    assert captions == [f"{k}: {name}" for k, name in enumerate(POSITIONS)]


def test_nine_patches_cover_the_whole_image(plain):
    task = make((40, 61), patch=8, gap=4, jitter=1, color=None)
    x, _ = task.pretext({"image": coordinates(400, 40, 61)}, seeds(400))
    rows, columns = x.numpy()[..., 0], x.numpy()[..., 1]
    assert (rows.min(), rows.max()) == (0, 39)
    assert (columns.min(), columns.max()) == (0, 60)
    moves = rows[:, 1, 0, 0] - rows[:, 0, 0, 0]  # two patches of one row
    assert set(np.unique(moves)) == {-2, -1, 0, 1, 2}


def test_defaults_follow_the_paper():
    paper = make((494, 494))
    assert (paper.patch, paper.gap, paper.jitter) == (96, 48, 7)
    small = make((32, 32))
    assert (small.patch, small.gap, small.jitter) == (6, 3, 1)
    four = make((32, 32), grid=2)
    assert (four.patch, four.gap, four.jitter) == (8, 4, 1)


@pytest.mark.parametrize("grid", [2, 3])
def test_the_grid_moves_by_a_patch_by_default(grid, plain):
    task = make((96, 96), grid=grid, jitter=0, color=None)
    x, _ = task.pretext({"image": coordinates(400, 96, 96)}, seeds(400))
    corners = x.numpy()[:, :, 0, 0, :2]
    for cell in range(grid**2):
        assert (np.ptp(corners[:, cell], axis=0) >= task.patch).all()


def test_channels_have_one_mean_and_deviation_or_are_dropped(noise):
    """Normalization comes after the projection, and before the noise that it would amplify."""
    pixels = {"image": noise[:6]}
    plain, _ = make(color=None).pretext(pixels, seeds(6))
    np.testing.assert_allclose(plain.numpy().mean((2, 3)), 127.5, atol=1e-3)
    np.testing.assert_allclose(plain.numpy().std((2, 3)), 64, atol=1e-3)
    brighter, _ = make(color=None).pretext({"image": 0.5 * noise[:6] + 60}, seeds(6))
    np.testing.assert_allclose(brighter, plain, atol=1e-3)  # brightness and contrast reveal nothing

    dropped, _ = make(color="dropping").pretext(pixels, seeds(6))
    same = (dropped.numpy() == plain.numpy()).all(axis=(2, 3))
    np.testing.assert_array_equal(same.sum(-1), 1)
    assert dropped.numpy().std((2, 3))[~same].max() < 2
    projected, _ = make(color="projection").pretext(pixels, seeds(6))
    expected, _ = make(color=None).pretext({"image": patches.project_colors(noise[:6])}, seeds(6))
    np.testing.assert_allclose(projected, expected, atol=1e-2)


def test_pairs_are_compared_independently(noise):
    """Oracle: the prediction for a pair depends on no other patch."""
    task = make(color=None)
    x, _ = task.pretext({"image": noise[:4]}, seeds(4))
    logits = task(x).numpy()
    assert logits.shape == (4, 40, 8)
    features = task.encoder.call(tf.reshape(x, (36, 6, 6, 3))).numpy().reshape(4, 9, -1)
    for k, (first, second, _) in enumerate(task.pairs):
        pair = np.concatenate([features[:, first], features[:, second]], axis=1)
        np.testing.assert_allclose(
            logits[:, k], task.head(task.pair_layer(pair)), rtol=1e-4, atol=1e-5
        )


def test_learns_positions():
    """Red stripes become narrower to the right, green ones downwards: the position is in the texture."""
    rng = np.random.default_rng(0)
    stripes = 100 + 80 * np.sin(np.arange(40) ** 2 / 40)
    images = rng.integers(0, 20, (256, 40, 40, 3)).astype(np.float32)
    images[..., 0] += stripes
    images[..., 1] += stripes[:, None]
    encoder = kssl.encoders.resnet((40, 40, 3), width=8, blocks=(1,))
    task = kssl.tasks.RelativePatch(encoder, patch=8, gap=4, jitter=1, color=None, crop=1)
    task.compile("adam")
    images = kssl.data.from_array(images.astype(np.uint8))
    task.fit(task.dataset(images, 32, epochs=12), epochs=12, verbose=0)
    assert task.evaluate(task.dataset(images, 32), verbose=0)[1] > 0.7  # chance: 0.15


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
    assert kssl.tasks.RelativePatch(gray, color=None).patch == 6
    with pytest.raises(ValueError, match="need 5 pixels"):
        make((4, 4), patch=1)
