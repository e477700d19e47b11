"""Sobel layer versus a loop."""

import keras
import numpy as np

import keras_ssl as kssl
from keras_ssl.layers import Sobel


def test_gradients_match_a_loop():
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3)).astype("float32")
    gray = np.pad(images.mean(-1), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    right = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    expected = np.zeros((2, 6, 5, 2))
    for y in range(6):
        for x in range(5):
            window = gray[:, y : y + 3, x : x + 3]
            expected[:, y, x, 0] = (window * right.T).sum((1, 2)) / (8 * 127.5)
            expected[:, y, x, 1] = (window * right).sum((1, 2)) / (8 * 127.5)
    found = Sobel()(images).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found).max() <= 1


def test_encoder_with_sobel_ignores_color(noise, tmp_path):
    encoder = kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1,), preprocessing=Sobel())
    gray = noise.astype("float32").mean(-1, keepdims=True).repeat(3, -1)
    np.testing.assert_allclose(encoder(noise), encoder(gray), atol=1e-4)
    encoder.save(tmp_path / "encoder.keras")
    copy = keras.models.load_model(tmp_path / "encoder.keras")
    np.testing.assert_allclose(copy(noise), encoder(noise), atol=1e-5)
