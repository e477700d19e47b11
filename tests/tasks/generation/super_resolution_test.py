import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.tasks import SuperResolution


def make(size=32, blocks=(1, 1), stem="small", **arguments):
    encoder = kssl.encoders.resnet((size, size, 3), width=2, blocks=blocks, stem=stem)
    return SuperResolution(encoder, **arguments)


def seeds(number):
    return tf.stack([tf.zeros(number, tf.int64), tf.range(number, dtype=tf.int64)], 1)


@pytest.mark.parametrize("scale", [2, 4])
def test_small_image_has_block_means(scale, noise):
    x, y = make(scale=scale).corrupt(noise, None)
    side = 32 // scale
    means = noise.reshape(40, side, scale, side, scale, 3).mean((2, 4))
    np.testing.assert_allclose(x, means, atol=0.5001)
    np.testing.assert_array_equal(x, np.round(x))
    np.testing.assert_allclose(y, noise / 127.5 - 1, atol=1e-5)


def test_pretext_shifts_by_whole_pixels(noise):
    """No interpolation: every pixel of the target is a pixel of the image."""
    _, y = make().pretext({"image": noise}, seeds(40))
    pixels = np.round(127.5 * (y.numpy() + 1)).astype(np.uint8)
    for i in range(0, 40, 7):
        known = {tuple(p) for p in noise[i].reshape(-1, 3)}
        assert {tuple(p) for p in pixels[i].reshape(-1, 3)} <= known


@pytest.mark.parametrize("scale", [2, 4])
def test_untrained_prediction_is_bicubic_at_any_size(scale, noise):
    task = make(scale=scale)
    x, y = task.corrupt(noise, None)
    bicubic = tf.image.resize(x, (32, 32), "bicubic")
    assert np.abs(task(x) - (bicubic / 127.5 - 1)).max() < 0.2
    np.testing.assert_allclose(task.baseline(x, y), np.clip(bicubic, 0, 255), atol=1e-3)
    large = task.prediction(noise)["image"]
    assert large.shape == (40, 32 * scale, 32 * scale, 3)
    assert large.dtype == np.uint8
    expected = np.clip(tf.image.resize(noise, (32 * scale, 32 * scale), "bicubic"), 0, 255)
    assert np.abs(large.numpy().astype(int) - expected).mean() < 5


def test_encoder_gets_the_small_image():
    task = make(96, blocks=(1, 1, 1), stem="imagenet", scale=4)
    assert task.maps.call(tf.zeros((1, 24, 24, 3)))["stage1"].shape[1:3] == (6, 6)
    assert task(tf.zeros((1, 24, 24, 3))).shape == (1, 96, 96, 3)


def test_every_stage_gets_a_gradient(noise):
    task = make(blocks=(1, 1, 1))
    x, y = task.corrupt(noise, None)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.abs(task(x, training=True) - y))
    gradients = tape.gradient(loss, task.encoder.trainable_variables)
    assert all(g is not None and np.abs(g).max() > 0 for g in gradients)


def test_learns_sharp_edges():
    """Stripes that bicubic upsampling blurs, but whose orientation is always the same."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    start = rng.integers(0, 8, 64)
    rows = (np.arange(32)[None] + start[:, None]) // 4 % 2
    images = np.broadcast_to(60 + 120 * rows[:, :, None, None], (64, 32, 32, 3)).astype(np.uint8)
    task = make(scale=4)
    task.compile(keras.optimizers.Adam(5e-3))
    images = kssl.data.from_array(images)
    task.fit(task.dataset(images, 16, epochs=20), epochs=20, verbose=0)
    found = kssl.evaluation.reconstruction(task, images)
    assert found["psnr"] > found["baseline_psnr"] + 2


def test_refuses():
    with pytest.raises(ValueError, match="scale must be 2 or 4, got 3"):
        make(scale=3)
    with pytest.raises(ValueError, match="scale 4 must divide the images' size, 30x30"):
        make(30, scale=4)
    inputs = keras.Input((32, 32, 3))
    flat = keras.layers.Flatten()(keras.layers.Conv2D(2, 3, name="stage1")(inputs))
    with pytest.raises(ValueError, match="encoder cannot take patches|encoder gives"):
        SuperResolution(keras.Model(inputs, keras.layers.Dense(4)(flat)))
