"""PSNR and SSIM of reconstructions against scikit-image."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import keras_ssl as kssl


@pytest.mark.parametrize("name", ["Colorization", "Inpainting", "SuperResolution"])
def test_scores_equal_scikit_image(name):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 32, 32, 3), np.uint8)
    images = kssl.data.from_array(pixels)
    task = getattr(kssl.tasks, name)(kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,)))
    found = kssl.evaluation.reconstruction(task, images, batch_size=4)

    seed = np.stack([np.zeros(9, np.int64), np.arange(9)], 1)
    x, y = task.corrupt(pixels, seed)
    for prefix, result in (
        ("", task.reconstruct(x, y, task(x, training=False))),
        ("baseline_", task.baseline(x, y)),
    ):
        result = np.asarray(result, np.float64)
        truth = pixels.astype(np.float64)
        expected_psnr = [
            peak_signal_noise_ratio(a, b, data_range=255)
            for a, b in zip(truth, result, strict=True)
        ]
        expected_ssim = [
            structural_similarity(
                a, b, data_range=255, channel_axis=-1, gaussian_weights=True, sigma=1.5,
                use_sample_covariance=False,
            )
            for a, b in zip(truth, result, strict=True)
        ]  # fmt: skip
        assert found[f"{prefix}psnr"] == pytest.approx(np.mean(expected_psnr), rel=1e-3)
        # scikit-image pads the border, TensorFlow leaves it out.
        assert found[f"{prefix}ssim"] == pytest.approx(np.mean(expected_ssim), abs=0.02)


def test_tasks_that_do_not_reconstruct(task):
    with pytest.raises(ValueError, match="task must reconstruct images"):
        kssl.evaluation.reconstruction(task, kssl.data.digits("test"))
