"""Optical flow as a column of clips."""

import tensorflow as tf

from keras_ssl.data import camera_motion
from keras_ssl.data.columns import check_random_access, extended


def with_flow(clips):
    """Adds the column `flow`, computed by OpenCV's DIS when a row is loaded, to a dataset of clips.

    It is the flow from frame (T - 1) // 2 of `frames`, which is `image`, to the next frame. It is NaN where
    the backward flow does not lead back to its start: where a point is hidden in the next frame, and where
    there is no texture.

    Args:
        clips: tf.data.Dataset with random access, of dicts with `frames` (T, H, W, 3) uint8, T at least 2, H
            and W at least 12.

    Returns:
        tf.data.Dataset with random access: the columns of `clips`, and `flow` (H, W, 2) float32, pixels (x,
        y).

    Raises:
        ValueError: `clips` has no random access or no such frames, or has the column already.

    Reference: Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016.

    Example:
        >>> import keras_ssl as kssl
        >>> clips = with_flow(kssl.data.moving_digits("test", pairs=1))
        >>> clips.element_spec["flow"].shape
        TensorShape([32, 32, 2])
    """
    return with_computed(clips, "flow", 2, middle_flow)


def with_computed(clips, name, channels, compute):
    """Adds a column that is computed from `frames` when a row is loaded to a dataset of clips.

    Args:
        clips: as in `with_flow`.
        name: str, of the column.
        channels: int C, channels of the column.
        compute: function, in NumPy, from (T, H, W, 3) uint8 to (H, W, C) float32.

    Returns:
        tf.data.Dataset with random access.

    Raises:
        ValueError: as in `with_flow`.

    Example:
        >>> import keras_ssl as kssl
        >>> clips = kssl.data.moving_digits("test", pairs=1)
        >>> first = with_computed(clips, "first", 3, lambda frames: frames[0].astype("float32"))
        >>> first.element_spec["first"].shape
        TensorShape([32, 32, 3])
    """
    check_random_access("clips", clips)
    spec = clips.element_spec
    if name in spec:
        raise ValueError(f"clips have a column {name!r} already")
    shape = spec["frames"].shape if "frames" in spec else tf.TensorShape(None)
    if shape.rank != 4 or (shape[0] or 0) < 2 or min(side or 0 for side in shape[1:3]) < 12:
        raise ValueError(
            "clips must have `frames` (T, H, W, 3) of a fixed number T >= 2 of at least 12x12 pixels, got "
            f"{shape if 'frames' in spec else ', '.join(spec)}: use from_videos(folder, frames=2, ...)"
        )

    def column(row):
        frames = tf.cast(row["frames"], tf.uint8)
        found = tf.numpy_function(compute, [frames], tf.float32, stateful=False)
        return {name: tf.ensure_shape(found, (*shape[1:3], channels))}

    return extended(clips, column)


def middle_flow(frames):
    """Estimates the flow (H, W, 2) from frame (T - 1) // 2 of a clip (T, H, W, 3) uint8 to the next one."""
    middle = (len(frames) - 1) // 2
    return camera_motion.estimated_flow(frames[middle], frames[middle + 1])
