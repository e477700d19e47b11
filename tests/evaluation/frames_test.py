"""PSNR and SSIM of moving areas against scikit-image."""

import numpy as np
import pytest
import tensorflow as tf
from skimage.metrics import structural_similarity

import keras_ssl as kssl
from keras_ssl.evaluation.frames import ssim


class Fixed:
    """Predicts noise, the same for all."""

    def __init__(self, image):
        self.image = image

    def __call__(self, x, training=False):
        return tf.repeat(self.image[None], tf.shape(x)[0], axis=0)

    def reconstruct(self, x, y, y_pred):
        return y_pred

    def baselines(self, x, y):
        return {"copy": x[:, -1]}


@pytest.fixture(scope="module")
def batches():
    """Three clips in two batches: of noise, of noise, and without motion."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (3, 2, 20, 24, 3)).astype(np.float32)
    y = np.zeros((3, 20, 24, 4), np.float32)
    y[..., :3] = rng.uniform(-1, 1, (3, 20, 24, 3))
    y[0, 8:12, 7:19, 3], y[1, :, :, 3] = 1, 1
    return x, y


def test_only_masked_pixels_count(batches):
    x, y = batches
    image = np.random.default_rng(1).uniform(0, 255, (20, 24, 3)).astype(np.float32)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
    found = kssl.evaluation.frame_prediction(Fixed(image), data)
    assert found["moving"] == pytest.approx((4 * 12 / 480 + 1 + 0) / 3)
    truth = 127.5 * (y[..., :3] + 1)
    for prefix, results in (("", [image, image]), ("copy_", [x[0, -1], x[1, -1]])):
        psnr, similar = [], []
        for k, result in enumerate(results):
            mask = y[k, ..., 3] > 0
            square = ((truth[k] - result)[mask] ** 2).mean()
            psnr.append(10 * np.log10(255**2 / square))
            _, whole = structural_similarity(
                truth[k], result, data_range=255, channel_axis=-1, gaussian_weights=True, sigma=1.5,
                use_sample_covariance=False, full=True,
            )  # fmt: skip
            mask[:5], mask[-5:], mask[:, :5], mask[:, -5:] = 0, 0, 0, 0  # whole windows only
            similar.append(whole.mean(-1)[mask].mean())
        assert found[f"{prefix}psnr"] == pytest.approx(np.mean(psnr), rel=1e-4)
        assert found[f"{prefix}ssim"] == pytest.approx(np.mean(similar), abs=1e-4)


def test_nothing_moves_anywhere(batches):
    x, y = batches
    data = tf.data.Dataset.from_tensors((x[2:], y[2:]))
    found = kssl.evaluation.frame_prediction(Fixed(x[0, 0]), data)
    assert found["moving"] == 0
    assert np.isnan([found[k] for k in ("psnr", "ssim", "copy_psnr", "copy_ssim")]).all()


def test_images_smaller_than_the_window():
    image = tf.random.stateless_uniform((2, 6, 9, 3), (0, 1)) * 255
    mask = tf.ones((2, 6, 9, 1))
    np.testing.assert_allclose(ssim(image, image, mask), 1, rtol=1e-5)
    assert (ssim(image, 255 - image, mask) < 0.5).numpy().all()


def test_tasks_that_do_not_predict_frames(task):
    with pytest.raises(ValueError, match="task must predict frames"):
        kssl.evaluation.frame_prediction(task, [])
