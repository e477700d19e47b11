"""Digits before and after a known motion of the camera."""

import numpy as np
import pytest

from keras_ssl import data
from keras_ssl.data import moving


@pytest.fixture(scope="module")
def arrays():
    return data.to_arrays(data.moving_digits("test", pairs=3))


def test_columns(arrays):
    assert {name: column.shape for name, column in arrays.items()} == {
        "image": (1080, 32, 32, 3), "id": (1080,), "label": (1080,),
        "frames": (1080, 2, 32, 32, 3), "motion": (1080, 1, 6),
    }  # fmt: skip
    np.testing.assert_array_equal(arrays["image"], arrays["frames"][:, 0])
    labels = data.to_arrays(data.digits("test"))["label"]
    np.testing.assert_array_equal(arrays["label"], labels.repeat(3))


def test_motions_have_whole_pixels_and_exact_bins(arrays):
    motion = arrays["motion"][:, 0]
    assert not motion[:, 2:5].any()  # in the plane of the image
    for axis in (0, 1):
        assert set(motion[:, axis]) == set(range(-3, 4))
    counts, _ = np.histogram(motion[:, 5], 20, (-np.pi / 6, np.pi / 6))
    assert counts.sum() == 1080
    assert counts.min() > 25  # of 54 on average


def test_motion_is_that_between_the_images(arrays):
    """The center of mass of the digit: X_1 = R X_2 + translation, x right and y down."""
    mass = arrays["frames"][..., 0].astype(np.float64)
    y, x = np.mgrid[:32, :32] - 15.5
    total = mass.sum(axis=(2, 3))
    place = np.stack([(mass * x).sum((2, 3)), (mass * y).sum((2, 3))], axis=-1) / total[..., None]
    errors = []
    for (first, second), (right, down, *_, turn) in zip(place, arrays["motion"][:, 0], strict=True):
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        errors.append(np.abs(first - matrix @ second - (right, down)).max())
    # Some digits are cut off at the border.
    assert np.median(errors) < 0.1
    moved = np.abs(place[:, 0] - place[:, 1]).max(axis=1)
    assert np.median(moved) > 1


def test_both_images_are_interpolated(arrays):
    """Otherwise the sharper one would be the first, and the blur would reveal the angle."""
    sharpness = np.abs(np.diff(arrays["frames"][..., 0].astype(int), axis=3)).mean(axis=(0, 2, 3))
    assert sharpness[0] == pytest.approx(sharpness[1], rel=0.02)


def test_seeds(arrays):
    again = data.to_arrays(data.moving_digits("test", pairs=3))
    other = data.to_arrays(data.moving_digits("test", pairs=3, seed=1))
    for name, column in arrays.items():
        np.testing.assert_array_equal(again[name], column)
    assert (other["motion"] != arrays["motion"]).any(axis=(1, 2)).mean() > 0.99


def test_a_camera_that_does_not_move_sees_a_smaller_digit():
    still = np.zeros((1, 32, 32, 1), np.float32)
    still[0, :, 16:] = 200
    seen = moving._seen(still, np.zeros((1, 2)), np.zeros(1))[0, 16]
    assert (
        seen[:, 0].tolist() == [0] * 16 + [200] * 12 + [175] + [0] * 3
    )  # 16 columns / 1.25 = 12.8


@pytest.mark.parametrize(
    "arguments", [{"split": "all"}, {"pairs": 0}, {"pairs": 1.5}, {"seed": -1}, {"seed": None}]
)
def test_refuses(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        data.moving_digits(**arguments)
