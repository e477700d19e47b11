"""Samples for any task: images with the columns that readers return, and the arguments that a task requires.

Tests and tools that go through all rows of `TASKS` use them.
"""

import functools
import inspect

import numpy as np

import keras_ssl as kssl

FRAMES = 5  # of a clip


def make_frames(images):
    return np.stack([np.roll(images, 2 * t, axis=2) for t in range(FRAMES)], axis=1)


def make_depth(images):
    depth = 1 + images[..., :1].astype(np.float32) / 100
    depth[:, :2] = np.nan  # unknown
    return depth


def make_normals(images):
    x, y = (np.diff(images[..., 0] / 255.0, axis=axis, append=0) for axis in (2, 1))
    normals = np.stack([x, y, np.full_like(x, -1)], axis=-1).astype(np.float32)
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


def make_motion(images):
    number = len(images) * (FRAMES - 1) * 6
    return np.linspace(0, 1, number, dtype=np.float32).reshape(-1, FRAMES - 1, 6)


def make_relative_depth(images):
    depth = images[..., 1:2].astype(np.float32) / 255
    depth[:, :, -3:], depth[1] = np.nan, np.nan  # unknown; of one image, everywhere
    return depth


def make_moving(images):
    moving = (images[..., :1] > 128).astype(np.float32)
    moving[:, :2], moving[1], moving[2] = np.nan, np.nan, 0  # uncertain, or nothing moves
    return moving


# The columns that readers return, derived from digits. A task lists in `needs` those that it reads.
COLUMNS = {
    "image": lambda images: images,
    "frames": make_frames,
    "depth": make_depth,
    "normals": make_normals,
    "contours": lambda images: (images[..., :1] > 128).astype(np.float32),
    "real": lambda images: images[::-1, :, ::-1].copy(),
    "flow": lambda images: np.full((*images.shape[:3], 2), 2, np.float32),
    "motion": make_motion,
    "moving": make_moving,
    "relative_depth": make_relative_depth,
}


@functools.cache  # requested once per task
def _digits():
    return kssl.data.to_arrays(kssl.data.digits("test"))


def sample(needs=("image",), number=21):
    """Returns `number` digits with `image`, `label`, `id` and the columns that a task needs."""
    digits = _digits()
    images, labels = (
        np.resize(digits[k], (number, *digits[k].shape[1:])) for k in ("image", "label")
    )
    others = {k: make(images) for k, make in COLUMNS.items() if k in needs and k != "image"}
    return kssl.data.from_array(images, labels, **others)


def required(task, encoder, number=21):
    """Returns a dict of the arguments of a task class that have no default, except the encoder."""
    known = {
        "num_images": number,
        "teacher": encoder,
    }  # of the same architecture; the task copies it
    return {k: v for k, v in known.items() if k in inspect.signature(task).parameters}
