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


@pytest.mark.parametrize("mask", ["blocks", "irregular"])
def test_discriminator_gets_the_whole_output(mask, noise):
    task = make(mask=mask)
    x, y = task.corrupt(noise, seeds(40))
    y_pred = task(x)
    (real,), (fake,) = task.discriminator_inputs(x, y, y_pred)
    np.testing.assert_array_equal(fake, y_pred)
    np.testing.assert_array_equal(real, y[..., :3])
    assert task.discriminator.input_shape == (None, 32, 32, 3)
    # And so the reconstruction loss is that of all pixels.
    square = ((y[..., :3] - y_pred) ** 2).numpy().mean()
    assert float(task.default_loss()(y, y_pred)) == pytest.approx(square, rel=1e-5)


def test_discriminator_gets_the_predicted_part_of_the_center():
    """The hole of 30x44 images is 15x22 pixels from (7, 11); the band has two more on every side."""
    encoder = kssl.encoders.resnet((30, 44, 3), width=2, blocks=(1,))
    task = Inpainting(encoder, mask="center", overlap=2, filters=4)
    images = np.random.default_rng(0).integers(0, 256, (3, 30, 44, 3), np.uint8)
    x, y = task.corrupt(images, seeds(3))
    assert (y[0, 7:22, 11:33, 3] == 1).numpy().all()
    assert y[0, ..., 3].numpy().sum() == 15 * 22
    y_pred = task(x)
    (real,), (fake,) = task.discriminator_inputs(x, y, y_pred)
    np.testing.assert_array_equal(fake, y_pred[:, 5:24, 9:35])
    np.testing.assert_array_equal(real, y[:, 5:24, 9:35, :3])
    assert task.discriminator.input_shape == (None, 19, 26, 3)
    wide = Inpainting(encoder, mask="center", overlap=100, filters=4)  # up to the border
    assert wide.discriminator.input_shape == (None, 30, 44, 3)


def test_discriminator_gets_real_pixels_where_nothing_is_trained(noise):
    task = make(mask="irregular", overlap=1)
    x, y = task.corrupt(noise, seeds(40))
    (real,), (fake,) = task.discriminator_inputs(x, y, task(x))
    differs = (real != fake).numpy().any(-1)
    trained = (y[..., 3:] + masks.band(y[..., 3:], 1)).numpy()[..., 0] == 1
    assert not differs[~trained].any()
    assert differs[trained].mean() > 0.99


def test_visible_pixels_stay_in_the_reconstruction(noise):
    task = make(mask="irregular")
    x, y = task.corrupt(noise, seeds(40))
    y_pred = task(x)
    hidden = y[..., 3].numpy() == 1
    found = np.asarray(task.reconstruct(x, y, y_pred))
    np.testing.assert_array_equal(found[~hidden], x.numpy()[~hidden])
    expected = 127.5 * (np.clip(y_pred, -1, 1) + 1)
    np.testing.assert_allclose(found[hidden], expected[hidden], atol=1e-3)


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
