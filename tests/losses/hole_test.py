import keras
import numpy as np
import pytest

from keras_ssl.losses import Hole


def test_hole_and_band_have_their_weights():
    rng = np.random.default_rng(0)
    image, prediction = rng.normal(size=(2, 3, 6, 9, 3)).astype(np.float32)
    hidden = np.zeros((3, 6, 9, 1), np.float32)
    hidden[0, 2:4, 3:6] = 1
    hidden[1, 0, 0] = 1  # in the corner of the image: the band has two sides only
    hidden[2] = 1  # everything
    loss = Hole(overlap=1, weight=7.0, reduction="none")
    found = loss(np.concatenate([image, hidden], -1), prediction).numpy()

    square = ((image - prediction) ** 2).mean(-1)
    band = np.zeros((3, 6, 9))
    band[0, 1:5, 2:7] = 1
    band[0, 2:4, 3:6] = 0
    band[1, :2, :2] = 1
    band[1, 0, 0] = 0
    weight = hidden[..., 0] + 7 * band
    number = (hidden[..., 0] + band).sum((1, 2))
    np.testing.assert_allclose(found, (weight * square).sum((1, 2)) / number, rtol=1e-5)


def test_without_width_and_weight_it_is_the_squared_error_of_the_image():
    rng = np.random.default_rng(0)
    image, prediction = rng.normal(size=(2, 3, 6, 9, 3)).astype(np.float32)
    hidden = (rng.uniform(size=(3, 6, 9, 1)) < 0.3).astype(np.float32)
    loss = Hole(overlap=None, weight=1.0, reduction="none")
    found = loss(np.concatenate([image, hidden], -1), prediction)
    np.testing.assert_allclose(found, ((image - prediction) ** 2).mean((1, 2, 3)), rtol=1e-5)


def test_empty_mask_has_zero_loss():
    y_true = np.ones((2, 4, 4, 4), np.float32)
    y_true[..., 3] = 0
    assert float(Hole()(y_true, np.zeros((2, 4, 4, 3), np.float32))) == 0


def test_serializes():
    copy = keras.losses.deserialize(keras.losses.serialize(Hole(3, 5.0)))
    assert (copy.overlap, copy.weight) == (3, pytest.approx(5.0))
