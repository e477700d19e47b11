"""Reader for images with depth and camera poses: TUM RGB-D, NYU Depth, KITTI odometry."""

import os
import warnings

import numpy as np
import tensorflow as tf

from keras_ssl import files
from keras_ssl.arguments import check_integer, is_number
from keras_ssl.data import rgbd_layouts
from keras_ssl.data.columns import random_access
from keras_ssl.data.folder import height_and_width
from keras_ssl.ops import decode, images, poses


def from_rgbd(folder, size, frames=1, intrinsics=None):
    """Creates a dataset from a recording of a depth camera or of a car, with depth, motion and intrinsics.

    The layout is recognized by the content of the folder:

    - TUM RGB-D: `rgb.txt` and `depth.txt` list time stamps and files, and `groundtruth.txt` lists time
      stamps, positions and quaternions. Entries that are nearest in time, within 0.02 s, belong together. A
      depth of 5000 is 1 m.
    - Pairs, as in NYU Depth: folders `rgb` (or `image`) and `depth` with the same file names; depth in
      millimeters.
    - KITTI odometry: numbered images in `image_2`, optionally `depth` with the same names (256 is 1 m),
      `poses.txt` or `../../poses/<name of the folder>.txt` with a 3x4 matrix per line, and `calib.txt`.

    Depth files are grayscale PNGs of 16 bits, 0 where nothing was measured. All files are decoded once at the
    start, and frames that are damaged or incomplete are left out. Images are resized so that the shorter
    side fits, and cropped in the center. Depth follows them by the nearest pixel, since the mean over an
    edge would be the depth of neither side.

    Args:
        folder: folder of one recording.
        size: int, height and width in pixels, or (height, width).
        frames: int T, frames per clip. With 2 or more, all T consecutive frames are a clip.
        intrinsics: fx, fy, cx, cy of the images before they are resized, in pixels, with (0, 0) at the center
            of the top left pixel. By default they are read from `calib.txt`, are (525, 525, 319.5, 239.5) for
            TUM RGB-D of 640x480 pixels, as its authors recommend, and are otherwise unknown.

    Returns:
        tf.data.Dataset of dicts, with random access and the attribute `paths` (list of str, indexed by id):

        - `image` (height, width, 3) uint8; for a clip, the frame (T - 1) // 2.
        - `id` int64, the number of the row.
        - `depth` (height, width, 1) float32, if the recording has depth: meters, NaN where unknown.
        - `frames` (T, height, width, 3) uint8, if T is at least 2.
        - `motion` (T - 1, 6) float32, if T is at least 2: the pose of camera t + 1 in the coordinates of
          camera t, translation in meters (x right, y down, z forward) and rotation vector in radians; NaN
          where the pose is unknown.
        - `intrinsics` (4,) float32, if they are known, for the resized image.

    Raises:
        ValueError: there is no such folder, it has none of the layouts or no complete frame, there are no
            poses, there are fewer than T consecutive frames, or `size`, `frames` or `intrinsics` are invalid.

    Warns:
        UserWarning: how many frames were skipped and why, and how many poses are unknown.

    Reference: Sturm et al., "A Benchmark for the Evaluation of RGB-D SLAM Systems", IROS 2012; Silberman et
    al., "Indoor Segmentation and Support Inference from RGBD Images", ECCV 2012; Geiger, Lenz & Urtasun,
    "Are We Ready for Autonomous Driving?", CVPR 2012.

    Example:
        >>> clips = from_rgbd("rgbd_dataset_freiburg1_desk/", size=96, frames=8)   # doctest: +SKIP
    """
    height, width = height_and_width(size)
    check_integer("frames", frames, minimum=1)
    _check_intrinsics(intrinsics)
    recording = rgbd_layouts.read(folder)
    if frames > 1 and recording.poses is None:
        raise ValueError(
            f"frames={frames} need poses, and {str(folder)!r} has none (groundtruth.txt or poses.txt): add "
            "them, or leave out frames"
        )
    total = len(recording.images) + sum(
        len(names) for reason, names in recording.skipped.items() if "line" not in reason
    )
    recording = _readable(recording)
    if not recording.images:
        raise ValueError(
            f"folder {str(folder)!r} has no complete frame: {_reasons(recording.skipped, folder)}"
        )
    if intrinsics is None:
        intrinsics = recording.intrinsics
    starts = _starts(recording.numbers, frames)
    if not len(starts):
        raise ValueError(
            f"frames must be at most the number of consecutive frames in {str(folder)!r}, got {frames}"
            f"{_reasons(recording.skipped, folder, '; skipped ')}"
        )
    _warn(recording, folder, total, frames)
    columns = _columns(recording, starts, frames)
    load = _loader((height, width), recording.values_per_meter, intrinsics)
    dataset = random_access(columns, load)
    dataset.paths, dataset.class_names = columns["path"], None
    return dataset


def _check_intrinsics(intrinsics):
    if intrinsics is None:
        return
    values = np.ravel(np.asarray(intrinsics, object)).tolist()
    valid = len(values) == 4 and all(is_number(v) and np.isfinite(v) for v in values)
    if not valid or min(values[:2]) <= 0:
        raise ValueError(
            f"intrinsics must be fx, fy, cx, cy in pixels, the first two positive, got {intrinsics!r}"
        )


def _readable(recording):
    """Decodes all files, and returns the recording without frames that have a damaged or missing file."""
    skipped = {reason: list(names) for reason, names in recording.skipped.items()}
    depths, number = recording.depths, len(recording.images)
    # Reading a file that is not regular, such as a FIFO, could wait forever.
    exists = [
        os.path.isfile(name) and (depths is None or os.path.isfile(depths[i]))
        for i, name in enumerate(recording.images)
    ]

    def examine(index, image, depth):
        size, measured, equal = tf.shape(decode.decode(tf.io.read_file(image)))[:2], True, True
        if depths is not None:
            values = decode.decode_16_bits(tf.io.read_file(depth))
            measured = tf.reduce_any(values > 0)
            equal = tf.reduce_all(tf.shape(values)[:2] == size)
        return index, size, measured, equal

    status, sizes = ["unreadable image or depth"] * number, set()
    rows = np.flatnonzero(exists)
    chosen = (
        rows,
        [recording.images[i] for i in rows],
        ["" if depths is None else depths[i] for i in rows],
    )
    if len(rows):
        data = tf.data.Dataset.from_tensor_slices(chosen).map(examine, tf.data.AUTOTUNE)
        for index, size, measured, equal in data.ignore_errors().as_numpy_iterator():
            status[index] = (
                "depth of another size"
                if not equal
                else ""
                if measured
                else "depth without a measurement"
            )
            sizes.add(tuple(size.tolist()))
    for i, name in enumerate(recording.images):
        if not exists[i]:
            status[i] = "missing image or depth"
        if status[i]:
            skipped.setdefault(status[i], []).append(name)
    good = [i for i in range(number) if not status[i]]
    fits = recording.size is None or sizes == {recording.size}
    return recording._replace(
        images=[recording.images[i] for i in good],
        depths=None if depths is None else [depths[i] for i in good],
        numbers=recording.numbers[good],
        poses=None if recording.poses is None else recording.poses[good],
        intrinsics=recording.intrinsics if fits else None,
        skipped=skipped,
    )


def _starts(numbers, frames):
    """Returns the indices of the frames that start a clip of consecutive frames."""
    first = np.arange(len(numbers) - frames + 1)
    return first[numbers[first + frames - 1] - numbers[first] == frames - 1]


def _columns(recording, starts, frames):
    middle = starts + (frames - 1) // 2
    columns = {
        "path": [recording.images[i] for i in middle],
        "id": np.arange(len(starts), dtype=np.int64),
    }
    if recording.depths is not None:
        columns["depth_path"] = [recording.depths[i] for i in middle]
    if frames > 1:
        clips = starts[:, None] + np.arange(frames)
        columns["clip_paths"] = [[recording.images[i] for i in clip] for clip in clips]
        motion = poses.relative(recording.poses[:-1], recording.poses[1:]).numpy()
        columns["motion"] = motion[clips[:, :-1]].astype(np.float32)
    return columns


def _loader(size, values_per_meter, intrinsics):
    """Returns the function that loads a row."""

    def load(row):
        names = tf.unstack(row["clip_paths"]) if "clip_paths" in row else [row["path"]]
        decoded = [decode.decode(tf.io.read_file(name)) for name in names]
        resized = [images.resize(image, *size) for image in decoded]
        middle = (len(names) - 1) // 2
        loaded = {"image": resized[middle], "id": row["id"]}
        if len(names) > 1:
            loaded |= {"frames": tf.stack(resized), "motion": row["motion"]}
        if "depth_path" in row:
            values = decode.decode_16_bits(tf.io.read_file(row["depth_path"]))
            values = tf.cast(images.resize_nearest(values, *size), tf.float32)
            nothing = tf.constant(np.nan, tf.float32)
            loaded["depth"] = tf.where(values > 0, values / values_per_meter, nothing)
        if intrinsics is not None:
            before = tf.shape(decoded[middle])[:2]
            loaded["intrinsics"] = images.resize_intrinsics(intrinsics, before, *size)
        return loaded

    return load


def _warn(recording, folder, total, frames):
    """Issues one warning about skipped frames and unknown poses."""
    parts, number = [], total - len(recording.images)
    if recording.skipped:
        reasons = _reasons(recording.skipped, folder)
        parts.append(f"skipped {number} of {total} frames in {str(folder)!r}: {reasons}")
    if frames > 1:
        unknown = np.flatnonzero(np.isnan(recording.poses).any(axis=(1, 2)))
        if len(unknown):
            names = [os.path.relpath(recording.images[i], folder) for i in unknown]
            parts.append(
                f"the pose of {len(unknown)} frames is unknown, and so the motion to and from them is NaN: "
                f"{files.listed(names)}"
            )
    if parts:
        warnings.warn("; ".join(parts), stacklevel=3)


def _reasons(skipped, folder, start=""):
    parts = []
    for reason, names in skipped.items():
        inside = [name.removeprefix(os.path.join(folder, "")) for name in names]
        parts.append(f"{reason} ({len(names)}: {files.listed(inside)})")
    return start + ", ".join(parts) if parts else ""
