import keras
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from keras_ssl.metrics import PSNR, psnr


def test_matches_scikit_image():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, (2, 4, 8, 9, 3)).astype(np.float32)
    expected = [peak_signal_noise_ratio(x, y, data_range=2) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(psnr(a, b), expected, rtol=1e-5)
    metric = PSNR()
    metric.update_state(a[:3], b[:3])
    metric.update_state(a[3:], b[3:])
    assert float(metric.result()) == pytest.approx(np.mean(expected), rel=1e-5)


def test_mask_selects_pixels():
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
