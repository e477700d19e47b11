"""Optical flow as a column of clips."""

import tensorflow as tf

from keras_ssl.data import camera_motion
from keras_ssl.data.columns import check_random_access, random_access


def with_flow(clips):
    """Adds the column `flow`, computed by OpenCV's DIS when a row is loaded, to a dataset of clips.

    It is the flow from frame (T - 1) // 2 of `frames`, which is `image`, to the next one. Where the flow back
    does not return to its start, it is NaN: what is hidden in the next frame, and what has no texture.

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
    check_random_access("clips", clips)
    spec = clips.element_spec
    if "flow" in spec:
        raise ValueError("clips have a column 'flow' already")
    shape = spec["frames"].shape if "frames" in spec else tf.TensorShape(None)
    if shape.rank != 4 or (shape[0] or 0) < 2 or min(side or 0 for side in shape[1:3]) < 12:
        raise ValueError(
            "clips must have `frames` (T, H, W, 3) of a fixed number T >= 2 of at least 12x12 pixels, got "
            f"{shape if 'frames' in spec else ', '.join(spec)}: use from_videos(folder, frames=2, ...)"
        )

    def load(row):
        row = row if clips.load_row is None else clips.load_row(row)
        pair = middle_pair(row["frames"])
        flow = tf.numpy_function(camera_motion.estimated_flow, pair, tf.float32, stateful=False)
        return {**row, "flow": tf.ensure_shape(flow, (*shape[1:3], 2))}

    made = random_access(clips.columns, load)
    for name in ("paths", "class_names"):
        if hasattr(clips, name):
            setattr(made, name, getattr(clips, name))
    return made


def middle_pair(frames):
    """Returns the frame of a clip (T, H, W, 3) that is `image`, and the next one, as uint8."""
    middle = (frames.shape[0] - 1) // 2
    return [tf.cast(frames[middle + k], tf.uint8) for k in (0, 1)]
