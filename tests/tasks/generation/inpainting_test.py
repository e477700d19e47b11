import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.ops import masks
from keras_ssl.tasks import Inpainting


def make(size=32, blocks=(1, 1), **arguments):
    encoder = kssl.encoders.resnet((size, size, 3), width=2, blocks=blocks)
    return Inpainting(encoder, filters=4, **arguments)


def seeds(number, epoch=0):
    return tf.stack([tf.fill(number, np.int64(epoch)), tf.range(number, dtype=tf.int64)], 1)


@pytest.mark.parametrize("mask", ["center", "blocks", "irregular"])
def test_hole_has_mean_color_of_visible_pixels(mask, noise):
    x, y = (a.numpy() for a in make(mask=mask).corrupt(noise, seeds(40)))
    hidden = y[..., 3] == 1
    np.testing.assert_array_equal(hidden, getattr(masks, mask)(seeds(40), 32, 32)[..., 0] == 1)
    np.testing.assert_allclose(y[..., :3], noise / 127.5 - 1, atol=1e-5)
    for i in range(40):
        np.testing.assert_array_equal(x[i][~hidden[i]], noise[i][~hidden[i]])
        expected = noise[i][~hidden[i]].mean(0)
        np.testing.assert_allclose(
            x[i][hidden[i]], np.tile(expected, (hidden[i].sum(), 1)), rtol=1e-4
        )


def test_hidden_pixels_affect_neither_x_nor_prediction(noise):
    task = make(mask="center")
    other = noise.copy()
    other[:, 8:24, 8:24] = 255 - other[:, 8:24, 8:24]
    (x, y), (x_other, y_other) = (task.corrupt(p, seeds(40)) for p in (noise, other))
    np.testing.assert_array_equal(x, x_other)
    assert (y != y_other).numpy().any()
    given = task.prediction(noise)["image"].numpy()
    np.testing.assert_array_equal(given, task.prediction(other)["image"])
    np.testing.assert_array_equal(given[:, :8], noise[:, :8])  # visible pixels are unchanged
    assert (given[:, 8:24, 8:24] != noise[:, 8:24, 8:24]).any()


def test_discriminator_gets_images_that_differ_only_in_the_hole(noise):
    task = make(mask="irregular")
    x, y = task.corrupt(noise, seeds(40))
    (real,), (fake,) = task.discriminator_inputs(x, y, task(x))
    differs = (real != fake).numpy().any(-1)
    hidden = y[..., 3].numpy() == 1
    assert not differs[~hidden].any()
    assert differs[hidden].mean() > 0.99
    restored = np.asarray(task.reconstruct(x, y, task(x)))
    np.testing.assert_allclose(restored, 127.5 * (np.clip(fake, -1, 1) + 1), atol=1e-3)


def test_every_pixel_affects_the_hole():
    """By the channel-wise dense layer, a corner affects the prediction in the center."""
    task = make(64, blocks=(1, 1, 1, 1), mask="center")
    assert max(task.connect.kernel.shape) <= 64
    x = tf.Variable(tf.random.uniform((1, 64, 64, 3), 0, 255, seed=1))
    with tf.GradientTape() as tape:
        middle = task(x)[:, 28:36, 28:36]
    reach = np.abs(tape.gradient(middle, x)).max(-1)[0]
    assert (reach[:4, :4] > 0).any()
    assert (reach[-4:, -4:] > 0).any()


def test_large_feature_maps_are_downsampled():
    task = make(96, blocks=(1,))
    assert task.connect.kernel.shape[1] <= 64
    assert task(tf.zeros((1, 96, 96, 3))).shape == (1, 96, 96, 3)


def test_odd_sizes():
    encoder = kssl.encoders.resnet((21, 34, 3), width=2, blocks=(1, 1))
    assert Inpainting(encoder)(tf.zeros((2, 21, 34, 3))).shape == (2, 21, 34, 3)


def test_learns_to_fill_simple_images():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    # Dark on the left, bright on the right: the mean of both is wrong everywhere in the hole.
    images = np.zeros((64, 32, 32, 3), np.float32)
    images[:, :, 16:] = 1
    images = (rng.uniform(20, 60, (64, 1, 1, 3)) + images * 120).astype(np.uint8)
    task = make(mask="center", adversarial=0.0)
    task.compile(keras.optimizers.Adam(5e-3))
    task.fit(task.dataset(kssl.data.from_array(images), 16, epochs=30), epochs=30, verbose=0)
    found = kssl.evaluation.reconstruction(task, kssl.data.from_array(images))
    assert found["psnr"] > found["baseline_psnr"] + 3


def test_refuses():
    with pytest.raises(
        ValueError, match="mask must be one of center, blocks, irregular, got 'left'"
    ):
        make(mask="left")
    with pytest.raises(ValueError, match="overlap must be at least 0 pixels, got -1"):
        make(overlap=-1)
    with pytest.raises(ValueError, match=r"adversarial must be in 0..1, got 1.5"):
        make(adversarial=1.5)
