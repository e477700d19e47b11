"""Relative depth as a column of clips from a moving camera."""

import math

import numpy as np
import tensorflow as tf

from keras_ssl.data import parallax
from keras_ssl.data.columns import check_random_access, random_access

FIELD_OF_VIEW = math.radians(60)  # of the longer side, if a camera's intrinsics are not known
EXACT, ESTIMATED = 0.01, 0.25  # pixels, standard deviations of the flow of a column and of DIS


def with_relative_depth(clips, noise=None):
    """Adds the column `relative_depth`, computed from the motion between two frames, to a dataset.

    It is the percentile of the depth of each pixel of `image`, 0 for the nearest and 1 for the farthest
    pixels, NaN where it is unknown: see `parallax.relative_depth`. It is computed when a row is loaded, from

    - `flow`, pixels from `image` to the next frame, if there is such a column. Otherwise the flow is
      estimated from frame (T - 1) // 2 of `frames`, which is `image`, to the next one, by OpenCV's DIS.
    - `motion` of the camera, if there is such a column and it is known. Otherwise it is estimated from the
      flow.
    - `intrinsics`; without them, a field of view of 60 degrees for the longer side, with the principal point
      in the center of the image. A wrong field of view mixes a part of the rotation into depth.

    Estimates cost some tenths of a second per image. `to_tfrecord` stores the result, so that they are
    computed once and not in every epoch.

    Args:
        clips: tf.data.Dataset with random access, of dicts with `image`, and `flow` or `frames`
            (T, H, W, 3) uint8 with T at least 2.
        noise: float, standard deviation of the flow in pixels; by default 0.01 for a column, which is taken
            to be exact, and 0.25 for DIS. Smaller parallax is not trusted.

    Returns:
        tf.data.Dataset with random access: the columns of `clips`, and `relative_depth` (H, W, 1) float32.

    Raises:
        ValueError: `clips` has no random access, neither `flow` nor clips of two frames or more, or has the
            column already; `noise` is not positive; while rows are loaded: intrinsics are invalid.

    Example:
        >>> import keras_ssl as kssl
        >>> clips = with_relative_depth(kssl.data.scenes(10, size=32, frames=2))
        >>> clips.element_spec["relative_depth"].shape
        TensorShape([32, 32, 1])
    """
    check_random_access("clips", clips)
    spec = clips.element_spec
    if "relative_depth" in spec:
        raise ValueError("clips have a column 'relative_depth' already")
    if "flow" not in spec and not ("frames" in spec and (spec["frames"].shape[0] or 0) >= 2):
        raise ValueError(
            "clips must have `flow` (H, W, 2), or `frames` (T, H, W, 3) of a fixed number T >= 2, got "
            f"{', '.join(spec)}: use from_rgbd(..., frames=2), or from_array(images, frames=frames)"
        )
    if noise is None:
        noise = EXACT if "flow" in spec else ESTIMATED
    elif not 0 < noise < math.inf:
        raise ValueError(f"noise must be a positive number of pixels, got {noise!r}")
    shape = (*spec["image"].shape[:2], 1)

    def load(row):
        row = row if clips.load_row is None else clips.load_row(row)
        compute = _from_flow if "flow" in row else _from_frames
        inputs = _pair(row) if compute is _from_frames else [row["flow"]]
        camera = [_intrinsics(row), _motion(row), tf.constant(noise, tf.float64)]
        found = tf.numpy_function(compute, [*inputs, *camera], tf.float32, stateful=False)
        return {**row, "relative_depth": tf.ensure_shape(found, shape)}

    made = random_access(clips.columns, load)
    if hasattr(clips, "class_names"):
        made.class_names = clips.class_names
    return made


def _from_flow(flow, intrinsics, motion, noise):
    return parallax.relative_depth(flow, intrinsics, motion, float(noise))


def _from_frames(first, second, intrinsics, motion, noise):
    return _from_flow(parallax.estimated_flow(first, second), intrinsics, motion, noise)


def _pair(row):
    frames = row["frames"]
    middle = (frames.shape[0] - 1) // 2
    return [tf.cast(frames[middle + k], tf.uint8) for k in (0, 1)]


def _intrinsics(row):
    if "intrinsics" in row:
        return tf.cast(row["intrinsics"], tf.float64)
    size = tf.cast(tf.shape(row["image"])[:2], tf.float64)
    focal = tf.reduce_max(size) / (2 * math.tan(FIELD_OF_VIEW / 2))
    return tf.stack([focal, focal, (size[1] - 1) / 2, (size[0] - 1) / 2])


def _motion(row):
    """Returns the motion (6,) to the next frame, NaN if it is not known."""
    if "motion" not in row:
        return tf.fill([6], tf.constant(np.nan, tf.float64))
    motion = row["motion"]  # (T - 1, 6): that of frame (T - 1) // 2
    return tf.cast(motion[motion.shape[0] // 2], tf.float64)
