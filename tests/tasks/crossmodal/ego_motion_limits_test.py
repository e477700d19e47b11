"""The limits of the bins of EgoMotion are measured, once."""

import numpy as np
import pytest

import keras_ssl as kssl
from keras_ssl.tasks.crossmodal import ego_motion


def translations(number=40, seed=0):
    """A dataset of clips of two frames with translations only, and these."""
    motion = np.zeros((number, 1, 6), np.float32)
    motion[:, 0, :3] = np.random.default_rng(seed).normal(size=(number, 3)) * [1, 5, 0.1]
    frames = np.zeros((number, 2, 16, 16, 3), np.uint8)
    return kssl.data.from_array(frames[:, 0], frames=frames, motion=motion), motion


def test_limits_are_measured_once(make):
    images, motion = translations()
    motion = np.abs(motion[:, 0, :3])
    task = make(axes=("x", "y", "z"))
    task.dataset(images, 8)
    np.testing.assert_allclose(task.scale, np.quantile(motion, 0.95, axis=0), rtol=1e-5)
    task.dataset(translations(seed=1)[0], 8)
    np.testing.assert_allclose(task.scale, np.quantile(motion, 0.95, axis=0), rtol=1e-5)
    given = make(axes=("x", "y", "z"), limits=(1, 2, 3))
    given.dataset(images, 8)
    assert given.scale.numpy().tolist() == [1, 2, 3]


def test_measuring_loads_no_image_where_motion_is_a_column(make, monkeypatch):
    images, _ = translations(30)
    columns, motions = images.columns, []

    def load(row):
        raise AssertionError("loaded")

    images.load_row = load
    monkeypatch.setattr(ego_motion, "MEASURED_CLIPS", 10)
    for dataset in (images, images.take(30)):  # with and without columns
        task = make(axes=("y",))
        task.measure(dataset)
        motions.append(float(task.scale[0]))
    every = np.abs(columns["motion"].numpy()[::3, 0, 1])
    np.testing.assert_allclose(motions, np.quantile(every, 0.95), rtol=1e-5)


def test_an_axis_without_motion_cannot_be_measured(make):
    images, motion = translations(10)
    with pytest.raises(ValueError, match="no motion along 'roll' that could be measured"):
        make(axes=("x", "roll")).dataset(images, 5)
    unknown = kssl.data.random_access({**images.columns, "motion": np.full_like(motion, np.nan)})
    with pytest.raises(ValueError, match="no motion along 'x' that could be measured"):
        make(axes=("x",)).dataset(unknown, 5)
