import keras
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import keras_ssl as kssl
from keras_ssl.metrics import PSNR, psnr


def test_is_that_of_scikit_image():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, (2, 4, 8, 9, 3)).astype(np.float32)
    expected = [peak_signal_noise_ratio(x, y, data_range=2) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(psnr(a, b), expected, rtol=1e-5)
    metric = PSNR()
    metric.update_state(a[:3], b[:3])
    metric.update_state(a[3:], b[3:])
    assert float(metric.result()) == pytest.approx(np.mean(expected), rel=1e-5)


def test_only_hidden_pixels_count():
    y_true = np.zeros((1, 4, 4, 2), np.float32)
    y_true[0, :2, :, 1] = 1
    y_pred = np.full((1, 4, 4, 1), 0.2, np.float32)
    y_pred[0, 2:] = 0.9
    assert float(psnr(y_true, y_pred)[0]) == pytest.approx(20, abs=1e-4)


def test_perfect_clipped_and_empty():
    a = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(psnr(a, a), 100, rtol=1e-6)
    np.testing.assert_allclose(psnr(np.ones_like(a), np.full_like(a, 7)), 100, rtol=1e-6)
    nothing = np.concatenate([a, np.zeros_like(a[..., :1])], -1)
    np.testing.assert_allclose(psnr(nothing, np.zeros_like(a)), 100, rtol=1e-6)


def test_serializes():
    copy = keras.metrics.deserialize(keras.metrics.serialize(PSNR(name="decibels")))
    assert isinstance(copy, PSNR)
    assert copy.name == "decibels"


@pytest.mark.parametrize("name", ["Colorization", "Inpainting", "SuperResolution"])
def test_reconstruction_judges_the_pictures_beside_the_trivial_answer(name):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (9, 32, 32, 3), np.uint8)
    images = kssl.data.from_array(pictures)
    task = getattr(kssl.tasks, name)(kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,)))
    found = kssl.evaluation.reconstruction(task, images, batch_size=4)

    seed = np.stack([np.zeros(9, np.int64), np.arange(9)], 1)
    x, y = task.corrupt(pictures, seed)
    for prefix, answer in (
        ("", task.reconstruct(x, y, task(x, training=False))),
        ("trivial_", task.baseline(x, y)),
    ):
        answer = np.asarray(answer, np.float64)
        truth = pictures.astype(np.float64)
        decibels = [
            peak_signal_noise_ratio(a, b, data_range=255)
            for a, b in zip(truth, answer, strict=True)
        ]
        similar = [
            structural_similarity(
                a, b, data_range=255, channel_axis=-1, gaussian_weights=True, sigma=1.5,
                use_sample_covariance=False,
            )
            for a, b in zip(truth, answer, strict=True)
        ]  # fmt: skip
        assert found[f"{prefix}psnr"] == pytest.approx(np.mean(decibels), rel=1e-3)
        # scikit-image pads the border, TensorFlow leaves it out.
        assert found[f"{prefix}ssim"] == pytest.approx(np.mean(similar), abs=0.02)


def test_reconstruction_refuses_tasks_that_give_no_picture_back(task):
    with pytest.raises(ValueError, match="task must give pictures back"):
        kssl.evaluation.reconstruction(task, kssl.data.digits("test"))
