import keras
import numpy as np
import pytest
import tensorflow as tf
from skimage import color

import keras_ssl as kssl
from keras_ssl.data.columns import random_access
from keras_ssl.ops import lab
from keras_ssl.tasks.generation import colorization


def make(target="rgb", size=32, **arguments):
    encoder = kssl.encoders.resnet((size, size, 3), width=2, blocks=(1, 1, 1))
    return kssl.tasks.Colorization(encoder, target, **arguments)


def seeds(number, epoch=0):
    return tf.stack([tf.fill(number, np.int64(epoch)), tf.range(number, dtype=tf.int64)], 1)


@pytest.fixture(scope="module")
def blotches():
    """20 images of smooth colors, a few of them nearly gray: (20, 32, 32, 3) uint8."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (20, 4, 4, 3)).astype(np.float32)
    coarse[:5] = coarse[:5].mean(-1, keepdims=True) + rng.normal(size=(5, 4, 4, 3)) * 3
    return tf.cast(tf.clip_by_value(tf.image.resize(coarse, (32, 32)), 0, 255), tf.uint8).numpy()


def test_rgb_input_is_mean_of_channels(blotches):
    x, y = make().corrupt(blotches, None)
    np.testing.assert_allclose(x, blotches.mean(-1, keepdims=True).repeat(3, -1), atol=1e-3)
    np.testing.assert_allclose(y, blotches / 127.5 - 1, atol=1e-5)


def test_ab_bins_input_is_lightness_and_target_is_quarter_resolution_ab(blotches):
    x, y = make("ab_bins").corrupt(blotches, None)
    result = color.rgb2lab(blotches)
    np.testing.assert_allclose(x, result[..., :1].repeat(3, -1) * 2.55, atol=0.01)
    blocks = result[..., 1:].reshape(20, 8, 4, 8, 4, 2).mean((2, 4))
    np.testing.assert_allclose(y, blocks, atol=0.01)


def test_pretext_shifts_and_flips_before_removing_colors(blotches):
    task = make()
    one = {"image": np.repeat(blotches[7:8], 200, axis=0)}
    x, y = (a.numpy() for a in task.pretext(one, seeds(200)))
    np.testing.assert_allclose(x, 127.5 * (y.mean(-1, keepdims=True) + 1).repeat(3, -1), atol=1e-3)
    plain = blotches[7] / 127.5 - 1
    is_plain = np.abs(y - plain).max((1, 2, 3)) < 1e-5
    is_mirrored = np.abs(y - plain[:, ::-1]).max((1, 2, 3)) < 1e-5
    assert is_plain.sum() < 20  # nearly all are shifted
    assert len(np.unique(y.reshape(200, -1).round(4), axis=0)) > 60
    left = y[:, 12:20, 12:20].reshape(200, -1)
    assert is_mirrored.sum() < 20
    assert left.std(0).max() > 0.01


def test_true_bins_reconstruct_the_colors(blotches):
    """All probability on the nearest bin: the error is half a bin, and that of the low resolution."""
    task = make("ab_bins")
    x, y = task.corrupt(blotches, None)
    sure = 100 * tf.one_hot(tf.argmin(lab.distances(y), -1), 262)
    result = color.rgb2lab(np.asarray(task.reconstruct(x, y, sure)) / 255)
    truth = color.rgb2lab(blotches)
    assert np.abs(result - truth)[..., 1:].mean() < 4
    np.testing.assert_allclose(result[..., 0], truth[..., 0], atol=6)  # clipped if out of gamut


def test_annealed_mean():
    """Two bins with 60 and 40 %: the distribution is sharpened by 1/0.38 before its mean is computed."""
    task = make("ab_bins")
    bins = lab.ab_bins().tolist()
    logits = np.full((1, 8, 8, 262), -1e4, np.float32)
    logits[..., bins.index([20, 0])] = np.log(0.6)
    logits[..., bins.index([-20, 0])] = np.log(0.4)
    x = np.full((1, 32, 32, 3), 150, np.float32)
    first, second = 0.6 ** (1 / 0.38), 0.4 ** (1 / 0.38)
    expected = 20 * (first - second) / (first + second)
    result = color.rgb2lab(np.asarray(task.reconstruct(x, None, logits)) / 255)
    np.testing.assert_allclose(result[..., 1], expected, atol=0.1)
    np.testing.assert_allclose(result[..., 2], 0, atol=0.1)


def test_rebalancing_gives_rare_colors_larger_weights(blotches):
    task = make("ab_bins")
    images = kssl.data.from_array(blotches)
    assert task.late_labels(None, np.full((1, 2, 2, 2), 9, np.float32), None)[1].numpy().max() == 1
    task.dataset(images, 4)
    prior = task.prior.numpy()
    assert prior.sum() == pytest.approx(1, abs=1e-4)

    _, y = task.corrupt(blotches, None)
    bins = lab.ab_bins()
    nearest = ((y.numpy()[..., None, :] - bins) ** 2).sum(-1).argmin(-1)
    frequency = np.bincount(nearest.ravel(), minlength=262) / nearest.size
    spread = np.exp(-((bins[:, None] - bins) ** 2).sum(-1) / 50)
    expected = frequency @ (spread / spread.sum(1, keepdims=True))
    np.testing.assert_allclose(prior, expected, atol=1e-5)
    weight = 1 / (0.5 * expected + 0.5 / 262)
    weight /= (expected * weight).sum()
    labels, found = task.late_labels(None, y, None)
    np.testing.assert_array_equal(labels, y)
    has_color = np.abs(y).max((1, 2, 3), keepdims=True)[..., 0] > 5
    assert 0 < has_color.sum() < 20  # the others are gray
    np.testing.assert_allclose(found, weight[nearest] * has_color, rtol=1e-3)


def test_a_gray_image_has_no_weight():
    """As in the authors' NonGrayMaskLayer: one colored pixel of 64 is enough, of a or of b."""
    y = np.zeros((4, 8, 8, 2), np.float32)
    y[0], y[1, 3, 4, 0], y[2, 7, 0, 1], y[3] = 4.9, -5.1, 5.1, 30
    weight = make("ab_bins").late_labels(None, y, None)[1].numpy()
    np.testing.assert_array_equal(weight.max((1, 2)), [0, 1, 1, 1])
    np.testing.assert_array_equal(weight.min((1, 2)), [0, 1, 1, 1])


@pytest.mark.parametrize("target", ["rgb", "ab_bins"])
def test_colors_are_measured_once_and_saved(target, blotches, tmp_path):
    task = make(target)
    task.compile("adam")
    data = task.dataset(kssl.data.from_array(blotches), 10)
    x, y = task.corrupt(blotches, None)
    if target == "rgb":
        expected = (y - (x / 127.5 - 1)).numpy().mean((0, 1, 2))
    else:
        expected = y.numpy().mean((0, 1, 2))
    np.testing.assert_allclose(task.mean, expected, atol=1e-4)
    task.fit(data, verbose=0)
    task.save(tmp_path / "task.keras")
    copy = keras.models.load_model(tmp_path / "task.keras")
    # Other colors, which are not measured again.
    copy.dataset(kssl.data.from_array(blotches // 2), 10)
    np.testing.assert_allclose(copy.mean, expected, atol=1e-4)
    # The baseline has the mean color of the data everywhere, except for clipping.
    baseline = np.asarray(task.baseline(x, y))
    if target == "rgb":
        np.testing.assert_allclose(baseline.mean((0, 1, 2)), blotches.mean((0, 1, 2)), atol=2)
    else:
        ab = color.rgb2lab(baseline / 255)[..., 1:].mean((0, 1, 2))
        np.testing.assert_allclose(ab, expected, atol=2)


def test_measures_a_sample_and_loads_nothing_else(blotches, monkeypatch):
    """One of the five images cannot be read: the mean is that of the other four."""
    monkeypatch.setattr(colorization, "MEASURED_IMAGES", 5)
    loaded = []

    def read(number):
        loaded.append(int(number))
        if number == 8:
            raise ValueError("damaged")
        return blotches[number]

    def load(row):
        image = tf.ensure_shape(tf.numpy_function(read, [row["id"]], tf.uint8), (32, 32, 3))
        return {"image": image, "id": row["id"]}

    task = make()
    task.dataset(random_access({"id": np.arange(20)}, load), 4)
    assert sorted(loaded) == [0, 4, 8, 12, 16]
    gray = blotches.mean(-1, keepdims=True)
    expected = ((blotches - gray) / 127.5)[[0, 4, 12, 16]].mean((0, 1, 2))
    np.testing.assert_allclose(task.mean, expected, atol=1e-4)


def test_starts_near_gray_and_learns_a_constant_color():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 200, (32, 32, 32, 1)) + np.array([50, 0, 25])
    images = kssl.data.from_array(pixels.astype(np.uint8))
    task = make()
    x, y = task.corrupt(pixels, None)
    before = task(x)
    assert np.abs(before - (x / 127.5 - 1)).max() < 0.1
    task.compile(keras.optimizers.Adam(1e-2))
    task.fit(task.dataset(images, 8, epochs=12), epochs=12, verbose=0)
    error = np.abs(np.asarray(task.reconstruct(x, y, task(x))) - pixels).mean()
    assert error < 5  # grayscale has 16.7


def test_refuses():
    with pytest.raises(ValueError, match='target must be "rgb" or "ab_bins", got \'lab\''):
        make("lab")
    with pytest.raises(ValueError, match=r"encoder must take images \(H, W, 3\) of fixed size"):
        kssl.tasks.Colorization(kssl.encoders.resnet((32, 32, 1), width=2))
    with pytest.raises(ValueError, match="encoder must take images"):
        kssl.tasks.Colorization(kssl.encoders.resnet((None, None, 3), width=2))
    inputs = keras.Input((32, 32, 3))
    nameless = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs))
    with pytest.raises(ValueError, match="names no stages"):
        kssl.tasks.Colorization(nameless)
