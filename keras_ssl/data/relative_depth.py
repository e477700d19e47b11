"""Relative depth from the motion between two frames, as a column of clips from a moving camera."""

import math

import numpy as np
import tensorflow as tf

from keras_ssl.data import camera_motion, parallax
from keras_ssl.data.columns import check_random_access, extended
from keras_ssl.data.flow import middle_flow

FIELD_OF_VIEW = math.radians(60)  # of the longer side, if a camera's intrinsics are not known
MIN_KNOWN = 0.2  # smallest fraction of an image's pixels with a depth
EXACT, ESTIMATED = 0.01, 0.25  # pixels, standard deviations of flow from a column and from DIS


def with_relative_depth(clips, noise=None):
    """Adds the column `relative_depth`, computed from the motion between two frames, to a dataset.

    It is the percentile of the depth of each pixel of `image`, 0 for the nearest and 1 for the farthest
    pixels, NaN where it is unknown: see `depth_percentile`. When a row is loaded, it is computed from

    - `flow`, pixels from `image` to the next frame, if there is such a column. Otherwise the flow is
      estimated from frame (T - 1) // 2 of `frames`, which is `image`, to the next frame, by OpenCV's DIS.
    - `motion` of the camera, if there is such a column and it is known. Otherwise it is estimated from the
      flow.
    - `intrinsics`; without them, a field of view of 60 degrees for the longer side, with the principal point
      in the center of the image. A wrong field of view mixes a part of the rotation into depth.

    Estimates cost some tenths of a second per image. `to_tfrecord` stores the result, so that they are
    computed once and not in every epoch.

    Args:
        clips: tf.data.Dataset with random access, of dicts with `image`, and `flow` or `frames`
            (T, H, W, 3) uint8 with T at least 2.
        noise: float, standard deviation of the flow in pixels; by default 0.01 for a column, which is assumed
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

    def column(row):
        compute = _from_flow if "flow" in row else _from_frames
        seen = row["flow"] if "flow" in row else tf.cast(row["frames"], tf.uint8)
        camera = [_intrinsics(row), _motion(row), tf.constant(noise, tf.float64)]
        found = tf.numpy_function(compute, [seen, *camera], tf.float32, stateful=False)
        return {"relative_depth": tf.ensure_shape(found, shape)}

    return extended(clips, column)


def depth_percentile(flow, intrinsics, motion=None, noise=0.01):
    """Computes the percentile of the depth of each pixel from the flow to the next frame.

    These pixels are unknown (NaN):

    - pixels whose flow does not fit the camera's motion: moving objects and wrong flow. (An object that moves
      along the epipolar line, such as a car ahead, only looks nearer or farther, unless that places it behind
      the camera.)
    - pixels around the focus of expansion, where even a point at the mean inverse depth would not have a
      parallax of three times `noise`.

    Anywhere else, no parallax means far away: such pixels, for example those of the sky, are the farthest. If
    less than a fifth of the pixels remains, as after a rotation without translation or without any motion,
    all are NaN.

    Args:
        flow: (H, W, 2) float array, pixels (x, y) to the next frame; NaN where unknown.
        intrinsics: (4,) floats fx, fy, cx, cy in pixels; the top left pixel's center is (0, 0).
        motion: (6,) floats, pose of the next camera in the coordinates of this one, translation in any unit,
            then rotation vector in radians; None or NaN to estimate it.
        noise: float, standard deviation of the flow in pixels.

    Returns:
        (H, W, 1) float32 array, 0 for the nearest pixel of the image and 1 for the farthest one.

    Raises:
        ValueError: an argument has another shape, `intrinsics` are not finite with positive focal lengths, or
            `noise` is not positive.

    Reference: Jiang et al., "Self-Supervised Relative Depth Learning for Urban Scene Understanding", ECCV
    2018, section 3.

    Example:
        >>> flow = np.zeros((8, 8, 2)); flow[..., 0] = -1; flow[4:, :, 0] = -2    # the camera moves right
        >>> depth = depth_percentile(flow, (8, 8, 3.5, 3.5), motion=(1, 0, 0, 0, 0, 0))[..., 0]
        >>> round(float(depth[0, 0]), 2), round(float(depth[7, 0]), 2)
        (0.75, 0.25)
    """
    flow, intrinsics = parallax.checked(flow, intrinsics)
    if not 0 < noise < np.inf:
        raise ValueError(f"noise must be a positive number of pixels, got {noise!r}")
    unknown = np.full((*flow.shape[:2], 1), np.nan, np.float32)
    if motion is None or not np.isfinite(motion).all():
        motion = camera_motion.camera_motion(flow, intrinsics, noise)
    if not np.isfinite(motion).all() or not np.any(motion[:3]):
        return unknown
    seen, least = parallax.parallax(flow, motion, intrinsics), camera_motion.OUTLIER * noise
    with np.errstate(invalid="ignore"):
        inverse, measured = seen.inverse_depth, seen.reach * seen.inverse_depth
        known = (seen.off_line <= least) & (measured >= -least)
        typical = _mean_inverse_depth(seen, known)
        known &= seen.reach * typical > least
        inverse = np.where(measured < noise, 0, inverse)
    if known.mean() < MIN_KNOWN:
        return unknown
    return percentile(np.where(known, -inverse, np.nan)).astype(np.float32)[..., None]


def percentile(values):
    """Computes the rank of each value as a fraction: 0 for the smallest known value, 1 for the largest.

    Equal values have their mean rank, so only the order of the values counts.

    Args:
        values: float array, NaN where unknown.

    Returns:
        float64 array of the same shape, NaN where unknown; 0.5 for a single known value.

    Example:
        >>> percentile(np.array([3.0, np.nan, 7.0, 5.0, 7.0])).round(3).tolist()
        [0.0, nan, 0.833, 0.333, 0.833]
    """
    values = np.asarray(values, np.float64)
    known = ~np.isnan(values)
    found = np.full(values.shape, np.nan)
    _, group, number = np.unique(values[known], return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(number) - (number + 1) / 2
    if known.any():
        found[known] = mean_rank[group] / (known.sum() - 1) if known.sum() > 1 else 0.5
    return found


def _from_flow(flow, intrinsics, motion, noise):
    return depth_percentile(flow, intrinsics, motion, float(noise))


def _from_frames(frames, intrinsics, motion, noise):
    return _from_flow(middle_flow(frames), intrinsics, motion, noise)


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
    motion = row["motion"]  # (T - 1, 6); the motion of frame (T - 1) // 2 is needed
    return tf.cast(motion[motion.shape[0] // 2], tf.float64)


def _mean_inverse_depth(seen, where):
    """Returns the inverse depth of the best-fitting plane, in which noise and far points average out."""
    weight = np.where(where, seen.reach, 0) ** 2
    return (weight * np.nan_to_num(seen.inverse_depth)).sum() / max(weight.sum(), 1e-300)
