import keras
import numpy as np
import pytest

from keras_ssl.losses import GradientDifference


def oracle(image, prediction, weight, norm, gradient):
    """The loss of one image (H, W, C), pixel by pixel."""
    height, width, _ = image.shape
    total, count = 0.0, 0.0
    for i in range(height):
        for j in range(width):
            total += weight[i, j] * (np.abs(image[i, j] - prediction[i, j]) ** norm).mean()
            count += weight[i, j]
    loss = total / count
    for down, right in ((1, 0), (0, 1)):
        total, count = 0.0, 0.0
        for i in range(height - down):
            for j in range(width - right):
                one, two = (abs(a[i + down, j + right] - a[i, j]) for a in (image, prediction))
                pair = weight[i, j] * weight[i + down, j + right]
                total, count = total + pair * np.abs(one - two).mean(), count + pair
        loss += gradient * total / count
    return loss


@pytest.mark.parametrize(
    ("norm", "gradient", "outside"), [(1, 0.7, 0.0), (2, 0.3, 0.25), (2, 0, 1.0)]
)
def test_equals_the_sum_over_pixels(norm, gradient, outside):
    rng = np.random.default_rng(0)
    image, prediction = rng.normal(size=(2, 3, 5, 7, 2)).astype(np.float32)
    mask = (rng.random((3, 5, 7, 1)) < 0.6).astype(np.float32)
    loss = GradientDifference(norm, gradient, outside, reduction="none")
    found = loss(np.concatenate([image, mask], -1), prediction)
    weight = np.where(mask[..., 0] > 0, 1, outside)
    expected = [
        oracle(*each, norm, gradient) for each in zip(image, prediction, weight, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_blurred_edges_cost_more():
    """A step of 1, and a ramp with the same error per pixel as a shifted step."""
    step = np.float32([0, 0, 0, 1, 1, 1])[None, None, :, None]
    y_true = np.concatenate([step, np.ones_like(step)], -1)
    ramp = np.float32([0, 0, 0.25, 0.75, 1, 1])[None, None, :, None]
    plain, with_gradient = GradientDifference(gradient=0.0), GradientDifference(gradient=1.0)
    lift = step + 0.5 / 6  # the same mean error, and no error of gradients
    assert float(plain(y_true, lift)) == pytest.approx(float(plain(y_true, ramp)))
    assert float(with_gradient(y_true, lift)) == pytest.approx(0.5 / 6)
    assert float(with_gradient(y_true, ramp)) == pytest.approx(0.5 / 6 + (0.25 + 0.5 + 0.25) / 5)


def test_nothing_to_predict_has_zero_loss():
    y_true = np.ones((2, 4, 4, 4), np.float32)
    y_true[..., 3] = 0
    assert float(GradientDifference(outside=0.0)(y_true, np.zeros((2, 4, 4, 3), np.float32))) == 0


def test_serializes():
    copy = keras.losses.deserialize(keras.losses.serialize(GradientDifference(2, 0.5, 0.25)))
    assert (copy.norm, copy.gradient, copy.outside) == (2, 0.5, 0.25)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"norm": 3}, "norm must be 1 or 2"), ({"gradient": -1}, "gradient"), ({"outside": 1.5}, "outside")],
)  # fmt: skip
def test_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        GradientDifference(**arguments)
