import keras
import numpy as np
import pytest

from keras_ssl.losses import ColorBins
from keras_ssl.ops import lab


def oracle(ab, logits):
    """Oracle for one pixel: five nearest bins, Gaussian weights, cross-entropy."""
    bins = lab.ab_bins()
    square = ((bins - ab) ** 2).sum(1)
    nearest = np.argsort(square)[:5]
    weight = np.exp(-square[nearest] / 50)
    weight /= weight.sum()
    log_p = logits - np.log(np.exp(logits).sum())
    return -(weight * log_p[nearest]).sum()


def test_is_cross_entropy_of_soft_encoded_color():
    rng = np.random.default_rng(0)
    # Not halfway between bins, where the five nearest are not unique.
    ab = rng.uniform(-60, 60, (2, 3, 4, 2)).astype(np.float32)
    logits = rng.normal(size=(2, 3, 4, 262)).astype(np.float32) * 3
    loss = ColorBins(reduction="none")(ab, logits).numpy()
    assert loss.shape == (2, 3, 4)
    for index in np.ndindex(2, 3, 4):
        assert loss[index] == pytest.approx(oracle(ab[index], logits[index]), rel=1e-4)


def test_color_far_outside_all_bins_is_finite():
    assert np.isfinite(ColorBins()([[4000.0, -4000.0]], np.zeros((1, 262), np.float32)))


def test_correct_bin_has_lowest_loss():
    color = [[20.0, -30.0]]
    costs = [
        float(ColorBins()(color, 10 * np.eye(262, dtype=np.float32)[i : i + 1])) for i in range(262)
    ]
    assert lab.ab_bins()[np.argmin(costs)].tolist() == color[0]


def test_serializes():
    copy = keras.losses.deserialize(keras.losses.serialize(ColorBins()))
    assert isinstance(copy, ColorBins)
