import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.tasks.context.permutations import describe, permutations


def make(size=32, channels=3, **arguments):
    encoder = kssl.encoders.resnet((size, size, channels), width=2, blocks=(1,))
    return kssl.tasks.Jigsaw(encoder, **{"crop": 1, **arguments})


def seeds(number, epoch=0):
    return tf.stack([tf.fill(number, np.int64(epoch)), tf.range(number, dtype=tf.int64)], 1)


@pytest.mark.parametrize("grid", [2, 3])
def test_image_can_be_reconstructed_from_tiles_and_label(grid, noise):
    size = 32 // grid * grid
    images = noise[:, :size, :size]
    task = make(size, grid=grid, tile=size // grid, jitter=0, normalize=False, gray=0)
    x, y = (a.numpy() for a in task.pretext({"image": images}, seeds(40)))
    assert x.shape == (40, grid * grid, size // grid, size // grid, 3)
    assert len(np.unique(y)) > 15
    for i in range(40):
        tiles = np.empty_like(x[i])
        tiles[task.permutations[y[i]]] = x[i]
        rows = [np.concatenate(tiles[r * grid : (r + 1) * grid], axis=1) for r in range(grid)]
        np.testing.assert_array_equal(np.concatenate(rows), images[i])


def test_all_labels_occur_and_change_every_epoch(noise):
    task = make(grid=2)
    images = {"image": np.repeat(noise[:1], 1000, axis=0)}
    _, y = task.pretext(images, seeds(1000))
    counts = np.bincount(y, minlength=24)
    assert counts.min() > 15  # the expected count is 42
    _, later = task.pretext(images, seeds(1000, epoch=1))
    assert (y.numpy() != later.numpy()).mean() > 0.9


def test_tiles_are_normalized_and_some_images_gray(noise):
    bright = np.clip(noise[:, :, :, :] * np.linspace(0.2, 1, 32)[:, None], 0, 255).astype(np.uint8)
    x, _ = make(gray=0.3).pretext({"image": np.tile(bright, (5, 1, 1, 1))}, seeds(200))
    x = x.numpy()
    np.testing.assert_allclose(x.mean((2, 3)), 127.5, atol=0.01)
    np.testing.assert_allclose(x.std((2, 3)), 64, rtol=1e-3)
    gray = (np.ptp(x, axis=-1) < 1e-2).all(axis=(2, 3))  # (200, 9)
    assert (gray.all(1) | ~gray.any(1)).all()  # all tiles of an image or none
    assert gray[:, 0].mean() == pytest.approx(0.3, abs=0.1)
    plain, _ = make(gray=0, normalize=False).pretext({"image": bright}, seeds(40))
    assert plain.numpy().mean((2, 3, 4)).std() > 10


def test_channels_of_large_tiles_are_jittered():
    image = np.zeros((100, 96, 96, 3), np.float32) + np.arange(96)[:, None, None]
    task = make(96, normalize=False, gray=0)
    assert (task.tile, task.jitter) == (27, 0)
    task = make(96, tile=26, jitter=2, normalize=False, gray=0, permutations=[range(9)])
    x, _ = task.pretext({"image": image}, seeds(100))
    apart = x.numpy()[..., 0, 0, 0] - x.numpy()[..., 0, 0, 1]
    assert set(np.unique(apart)) == set(range(-4, 5))


def test_tiles_are_encoded_separately_and_merged_in_order(noise):
    task = make(grid=2, gray=0)
    x, _ = task.pretext({"image": noise[:3]}, seeds(3))
    logits = task(x).numpy()
    assert logits.shape == (3, 24)
    features = [task.tile_layer(task.encoder.call(x[:, k])).numpy() for k in range(4)]
    assert features[0].shape == (3, 128)
    expected = task.head(task.merge_layer(np.concatenate(features, axis=1)))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    swapped = task(tf.gather(x, [1, 0, 2, 3], axis=1)).numpy()
    assert np.abs(swapped - logits).max() > 1e-4


@pytest.mark.parametrize("name", ["Jigsaw", "JigsawPlus"])
def test_same_layer_serves_every_tile(name, noise):
    """Permuting the tiles and, alike, their blocks in the next layer's kernel changes nothing."""
    encoder = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,))
    task = getattr(kssl.tasks, name)(encoder, grid=2, tile_units=5, hidden=7)
    x, _ = task.pretext({"image": noise[:3]}, seeds(3))
    logits = task(x).numpy()
    assert task.tile_layer.kernel.shape == (encoder.output_shape[-1], 5)
    assert task.merge_layer.kernel.shape == (4 * 5, 7)
    order = [2, 0, 3, 1]
    blocks = task.merge_layer.kernel.numpy().reshape(4, 5, 7)
    task.merge_layer.kernel.assign(blocks[order].reshape(20, 7))
    np.testing.assert_allclose(task(tf.gather(x, order, axis=1)), logits, rtol=1e-4, atol=1e-5)
    assert np.abs(task(x).numpy() - logits).max() > 1e-4


def test_preview_shows_shuffled_and_solved_puzzle(noise):
    task = make(30, tile=10, jitter=0, normalize=False, gray=0)
    images = noise[:4, :30, :30]
    x, y = (a.numpy() for a in task.pretext({"image": images}, seeds(4)))
    for i, ((unsolved, label), (solved, caption)) in enumerate(task.preview(x, y)):
        assert (label, caption) == (f"permutation {y[i]}", "solved")
        assert solved.shape == unsolved.shape == (32, 32, 3)
        inner = np.delete(np.delete(solved, [10, 21], axis=0), [10, 21], axis=1)
        np.testing.assert_array_equal(inner, images[i])
        assert (unsolved != solved).any()


def test_custom_permutations_are_saved(tmp_path):
    low = permutations(20, distance="low")
    task = make(permutations=low)
    np.testing.assert_array_equal(task.permutations, low)
    copy = kssl.tasks.Jigsaw.from_config(task.get_config())
    np.testing.assert_array_equal(copy.permutations, low)
    assert describe(make().permutations)["minimum"] >= 6
    assert make(num_permutations=7).head.units == 7


def test_learns_to_order_tiles():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 90, (256, 16, 16, 3))
    images[:, :8] += 150  # bright above: removed by normalization
    images[:, :8:2] -= 100  # stripes above
    images[:, :, 8::2] = images[:, :, 8::2] // 3  # and other stripes on the right
    task = make(16, grid=2, gray=0)
    task.compile("adam")
    images = kssl.data.from_array(images.astype(np.uint8))
    task.fit(task.dataset(images, 32, epochs=15), epochs=15, verbose=0)
    assert task.evaluate(task.dataset(images, 32), verbose=0)[1] > 0.5  # chance: 0.042


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"grid": 4}, "grid must be 2 or 3"),
        ({"grid": 2, "num_permutations": 25}, r"number must be in 1\.\.24"),
        ({"tile": 11}, "tile 11"),
        ({"jitter": 3}, "jitter 3"),
        ({"gray": 1.1}, "gray"),
        ({"permutations": [[0, 1, 2, 3]]}, r"\(N, 9\)"),
        ({"channels": 1}, "needs 3 channels"),
        ({"tile_units": 0}, "tile_units must be at least 1, got 0"),
        ({"hidden": -2}, "hidden must be at least 1, got -2"),
    ],
)
def test_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        make(**arguments)


def test_grayscale_images_without_gray():
    task = make(channels=1, gray=0)
    x, _ = task.pretext({"image": np.zeros((2, 32, 32, 1), np.uint8)}, seeds(2))
    assert x.shape == (2, 9, 9, 9, 1)
