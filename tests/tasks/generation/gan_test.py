import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.tasks import GAN


def make(shape=(32, 32, 3), **arguments):
    encoder = kssl.encoders.resnet(shape, width=2, blocks=(1, 1))
    return GAN(encoder, **{"filters": 4, "codes": 6, **arguments})


def seeds(number, epoch=0):
    return tf.stack([tf.fill(number, np.int64(epoch)), tf.range(number, dtype=tf.int64)], 1)


def test_noise_is_standard_normal_and_differs_by_image_and_epoch(noise):
    task = make(codes=50)
    x, y = task.pretext({"image": noise}, seeds(40))
    drawn = x["noise"].numpy()
    assert drawn.mean() == pytest.approx(0, abs=0.06)
    assert drawn.std() == pytest.approx(1, abs=0.05)
    assert len(np.unique(drawn[:, 0])) == 40
    later = task.pretext({"image": noise}, seeds(40, epoch=1))[0]["noise"].numpy()
    assert (drawn != later).all()
    np.testing.assert_allclose(y, x["image"] / 127.5 - 1, atol=1e-5)


@pytest.mark.parametrize("shape", [(32, 32, 3), (21, 34, 3), (4, 4, 3)])
def test_generated_images_have_the_size_of_real_ones(shape):
    task = make(shape)
    images = task.generate(tf.random.normal((5, 6)))
    assert images.shape == (5, *shape)
    assert np.abs(images).max() <= 1
    predicted = task.prediction(tf.zeros((2, *shape)))["image"]
    assert predicted.shape == (2, *shape)
    assert predicted.dtype == np.uint8


def test_discriminator_gets_pairs_of_image_and_code(noise):
    task = make()
    x, y = task.pretext({"image": noise}, seeds(40))
    y_pred = task(x)
    real, fake = task.discriminator_inputs(x, y, y_pred)
    for found, expected in zip(
        real + fake, [y, y_pred["code"], y_pred["image"], x["noise"]], strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    # The logit depends on both parts.
    logits = task.discriminator(real)
    for part in range(2):
        changed = [r + (i == part) for i, r in enumerate(real)]
        assert np.abs(task.discriminator(changed) - logits).max() > 1e-4


def test_codes_have_mean_0_and_variance_1_even_if_their_mean_is_large(noise):
    """A shift of the features, common to all images, does not change their codes."""
    task = make()
    kernel = np.random.default_rng(0).normal(size=task.code.kernel.shape)
    task.code.kernel.assign(kernel)
    features = np.random.default_rng(1).normal(size=(40, kernel.shape[0]))
    raw = features @ kernel
    expected = (raw - raw.mean(0)) / np.sqrt(raw.var(0) + 1e-3)
    task.encoder.call = lambda images, training: tf.constant(features + 3000, tf.float32)
    np.testing.assert_allclose(task.encode(noise, training=True), expected, atol=0.01)


def test_diversity_is_distance_of_samples_relative_to_images(noise):
    task = make()
    task.compile("adam")
    x, y = task.pretext({"image": noise}, seeds(40))
    for factor in (0.5, 1.0):
        fake = tf.reduce_mean(y, 0) + factor * (y - tf.reduce_mean(y, 0))
        task.diversity.reset_state()
        task.compute_metrics(x, y, {"code": None, "image": fake})
        assert float(task.diversity.result()) == pytest.approx(factor, rel=1e-4)
    # Oracle: the root mean square distance over all pairs.
    fake = task(x)["image"].numpy()

    def spread(images):
        p = np.asarray(images).reshape(40, -1)
        return np.sqrt(((p[:, None] - p) ** 2).sum(-1).mean())

    task.diversity.reset_state()
    task.compute_metrics(x, y, {"code": None, "image": fake})
    assert float(task.diversity.result()) == pytest.approx(spread(fake) / spread(y), rel=1e-3)


def test_refuses():
    with pytest.raises(ValueError, match="codes must be at least 1, got 0"):
        make(codes=0)
    with pytest.raises(ValueError, match="filters must be at least 1, got 0"):
        make(filters=0)
    with pytest.raises(ValueError, match="encoder must take images"):
        make((32, 32, 1))
