import keras
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from keras_ssl.metrics import PSNR, AbsRel, MaskIoU, abs_rel, psnr


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


def test_relative_error_of_depth_equals_a_slow_loop():
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.5, 20, (4, 3, 5, 1)).astype(np.float32)
    depth[0, 1, 2], depth[0, 0, 0], depth[1, 2, 4] = np.nan, 0, np.inf
    depth[3] = np.nan
    predicted = rng.uniform(0.5, 20, depth.shape).astype(np.float32)
    expected = []
    for y, p in zip(depth[:3], predicted, strict=False):
        errors = [
            abs(float(p[i]) - float(y[i])) / float(y[i])
            for i in np.ndindex(y.shape)
            if np.isfinite(y[i]) and y[i] > 0
        ]
        expected.append(sum(errors) / len(errors))
    found = abs_rel(depth, predicted).numpy()
    np.testing.assert_allclose(found[:3], expected, rtol=1e-5)
    assert np.isnan(found[3])
    # The metric gets the logarithm, and leaves out the image of which nothing is known.
    metric = AbsRel()
    metric.update_state(depth[:1], np.log(predicted[:1]))
    metric.update_state(depth[1:], np.log(predicted[1:]))
    assert float(metric.result()) == pytest.approx(np.mean(expected), rel=1e-5)
    metric.reset_state()
    metric.update_state(depth[3:], np.log(predicted[3:]))
    assert float(metric.result()) == 0
    metric.update_state(depth[:3], np.log(predicted[:3]), sample_weight=[0, 3, 1])
    assert float(metric.result()) == pytest.approx((3 * expected[1] + expected[2]) / 4, rel=1e-5)
    # A prediction that is not finite is no unknown depth.
    metric.update_state(depth[:1], np.full_like(depth[:1], np.nan))
    assert np.isnan(metric.result())


def test_relative_error_has_no_unit():
    depth = np.float32([[[[1.0], [4.0]]]])
    assert float(abs_rel(depth, 2.0)[0]) == pytest.approx(float(abs_rel(100 * depth, 200.0)[0]))
    copy = keras.metrics.deserialize(keras.metrics.serialize(AbsRel(name="relative")))
    assert isinstance(copy, AbsRel)
    assert copy.name == "relative"


def test_iou_is_the_mean_over_the_images_in_which_something_moves():
    rng = np.random.default_rng(0)
    mask = rng.choice(np.float32([0, 0, 1, np.nan]), (5, 4, 6, 1))
    mask[1], mask[3] = np.nan, 0
    logits = rng.normal(size=mask.shape).astype(np.float32)
    expected = []
    for y, z in zip(mask, logits, strict=True):
        wanted, found = ({i for i, a in enumerate(p.flat) if a} for p in (y == 1, z > 0))
        certain = set(np.flatnonzero(np.isfinite(y)))
        if wanted:
            expected.append(len(wanted & found) / len((wanted | found) & certain))
    metric = MaskIoU()
    metric.update_state(mask[:2], logits[:2])
    metric.update_state(mask[2:], logits[2:])
    assert len(expected) == 3
    assert float(metric.result()) == pytest.approx(np.mean(expected))
    metric.reset_state()
    metric.update_state(mask, logits, sample_weight=[1, 1, 0, 1, 0])
    assert float(metric.result()) == pytest.approx(expected[0])
    metric.reset_state()
    metric.update_state(mask[1:2], logits[1:2])
    assert float(metric.result()) == 0
