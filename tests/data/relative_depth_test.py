import cv2
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.data.camera_motion import estimated_flow
from keras_ssl.data.named import load_dataset
from keras_ssl.data.relative_depth import depth_percentile, with_relative_depth

SIZE = 32


@pytest.fixture(scope="module")
def scenes():
    return kssl.data.scenes(6, SIZE, frames=3, seed=3)


@pytest.fixture(scope="module")
def columns(scenes):
    return kssl.data.to_arrays(scenes)


def clips_of(columns, *names):
    return kssl.data.from_array(columns["image"], **{name: columns[name] for name in names})


def test_column_is_the_percentile_of_the_flow_of_the_middle_frame(scenes, columns):
    labeled = with_relative_depth(scenes)
    found = kssl.data.to_arrays(labeled)
    assert set(found) == {*columns, "relative_depth"}
    assert labeled.class_names == scenes.class_names
    assert labeled.element_spec["relative_depth"] == tf.TensorSpec((SIZE, SIZE, 1), tf.float32)
    for k in range(6):
        expected = depth_percentile(
            columns["flow"][k], columns["intrinsics"][k], columns["motion"][k, 1], 0.01
        )
        np.testing.assert_array_equal(found["relative_depth"][k], expected)
        np.testing.assert_array_equal(found["image"][k], columns["image"][k])
    part = kssl.data.to_arrays(kssl.data.subset(labeled, [4]))
    np.testing.assert_array_equal(part["relative_depth"][0], found["relative_depth"][4])


def test_motion_that_is_unknown_or_missing_is_estimated(columns):
    unknown = {**columns, "motion": np.full_like(columns["motion"], np.nan)}
    first = with_relative_depth(clips_of(unknown, "flow", "intrinsics", "motion"))
    second = with_relative_depth(clips_of(columns, "flow", "intrinsics"))
    first, second = (kssl.data.to_arrays(part)["relative_depth"] for part in (first, second))
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(first).any((1, 2, 3)).mean() > 0.5
    expected = depth_percentile(columns["flow"][0], columns["intrinsics"][0])
    np.testing.assert_array_equal(first[0], expected)


@pytest.fixture(scope="module")
def walking():
    """Four frames of a wall at 3.5 m before one at 14 m; the camera moves to the right, 0.5 m per frame."""
    rng = np.random.default_rng(0)
    far, near = (
        cv2.normalize(
            cv2.GaussianBlur(rng.integers(0, 256, (64, 200, 3), np.uint8), (0, 0), 2),
            None, 0, 255, cv2.NORM_MINMAX,
        )
        for _ in range(2)
    )  # fmt: skip
    frames = []
    for t in range(4):
        frame = far[:, 2 * t + 20 : 2 * t + 84].copy()
        frame[40:] = near[40:, 8 * t + 20 : 8 * t + 84]
        frames.append(frame)
    return np.stack(frames)[None]


def test_flow_is_estimated_from_the_middle_frame_to_the_next_one(walking):
    """By DIS, with the default intrinsics: 64 px of 60 degrees have a focal length of 55.4 px."""
    motion = np.zeros((1, 3, 6), np.float32)
    motion[0, :, 0] = 0.5
    clips = kssl.data.from_array(walking[:, 1], frames=walking, motion=motion)
    found = kssl.data.to_arrays(with_relative_depth(clips))["relative_depth"][0, ..., 0]
    camera = (32 / np.tan(np.pi / 6),) * 2 + (31.5, 31.5)
    flow = estimated_flow(walking[0, 1], walking[0, 2])
    expected = depth_percentile(flow, camera, motion[0, 1], 0.25)[..., 0]
    np.testing.assert_array_equal(found, expected)
    assert np.nanmax(found[42:]) < np.nanmedian(found[:36])
    coarse = kssl.data.to_arrays(with_relative_depth(clips, noise=5))["relative_depth"]
    assert np.isnan(coarse).all()  # no parallax is so large


def test_what_has_no_motion_is_named(columns):
    still = kssl.data.from_array(columns["image"])
    with pytest.raises(ValueError, match="clips must have `flow` .* got image, id"):
        with_relative_depth(still)
    with pytest.raises(ValueError, match="frames` .* of a fixed number T >= 2"):
        with_relative_depth(kssl.data.from_array(columns["image"], frames=columns["frames"][:, :1]))
    with pytest.raises(ValueError, match="clips must have random access"):
        with_relative_depth(still.take(2))
    moving = clips_of(columns, "flow")
    with pytest.raises(ValueError, match="have a column 'relative_depth' already"):
        with_relative_depth(with_relative_depth(moving))
    for noise in (0, -1, float("inf")):
        with pytest.raises(ValueError, match="noise must be a positive number of pixels, got"):
            with_relative_depth(moving, noise)


def test_the_command_adds_the_column_to_what_has_none(columns, tmp_path):
    train, test = load_dataset("scenes", 16, split=True, needs=("image", "relative_depth"))
    assert {"image", "relative_depth", "flow"} <= set(train.element_spec)
    assert "relative_depth" in test.element_spec
    assert load_dataset("scenes", 16, needs=("image", "relative_depth"))[1] is None
    assert (
        "relative_depth" not in load_dataset("scenes", 16, needs=("image", "flow"))[0].element_spec
    )
    (tmp_path / "clips").mkdir()
    clips = clips_of(columns, "flow", "motion")
    read, _ = load_dataset(
        str(tmp_path / "clips"), SIZE, reader=lambda *_: clips, needs=("image", "relative_depth")
    )
    assert {"flow", "motion", "relative_depth"} <= set(read.element_spec)
    few = kssl.data.subset(train, range(3))
    kssl.data.to_tfrecord(few, tmp_path)
    stored, _ = load_dataset(str(tmp_path), 16, needs=("image", "relative_depth"))
    np.testing.assert_array_equal(
        kssl.data.to_arrays(stored)["relative_depth"], kssl.data.to_arrays(few)["relative_depth"]
    )
