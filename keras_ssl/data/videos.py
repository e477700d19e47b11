"""Reader for videos: clips of frames with random access."""

import collections
import itertools
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ssl import files
from keras_ssl.arguments import check_integers, check_not_negative
from keras_ssl.data import frame_store, records, video_files
from keras_ssl.data.columns import random_access
from keras_ssl.data.folder import height_and_width

MIN_FLOW_SIDE = 12  # pixels; OpenCV's DIS takes no smaller images


def from_videos(folder, frames, stride, size, step=1, min_motion=0.0, cache=None):
    """Creates a dataset of clips from a folder of videos.

    Videos are files (MP4, MOV, AVI, MKV, WebM, GIF), decoded by OpenCV's FFmpeg, and numbered images such as
    `walk/0001.jpg`, in the folder and its subfolders. A clip is T frames of a video, `stride` frames apart.
    It crosses neither a scene cut nor a damaged frame.

    Each video is decoded once at the start, from the first to the last frame, and its resized frames are
    written to the disk: 12 kB each for 64x64 pixels, 1.1 GB for an hour. So the clips of an epoch can be read
    in random order without decoding a video or seeking in it, frames are exact even with B-frames and a
    variable frame rate, and memory does not grow with the length of the videos. `cache` keeps these frames;
    otherwise they are in the folder for temporary files (`TMPDIR`) until the process ends.

    Frames are resized so that the shorter side fits, and cropped in the center.

    Args:
        folder: folder of videos. If all of them are in subfolders, the first subfolder is the class; labels
            number the classes in alphabetical order.
        frames: int T, frames of a clip.
        stride: int, 1 for consecutive frames, 2 for every second one.
        size: int, height and width in pixels, or (height, width).
        step: int, frames between the beginnings of two clips; by default a clip begins with each frame.
            `frames * stride` gives clips that do not overlap.
        min_motion: float, drops clips with less motion. Motion is the mean length of the optical flow
            (OpenCV's DIS) between successive frames of the video, as a fraction of the frame's shorter side;
            0.01 is one percent per frame. The motion of the camera counts, too.
        cache: folder to keep the resized frames and the index in, created if it does not exist, for the next
            runs and for other processes and machines, such as the workers of a tf.data service. Frames of
            changed videos, and frames of another size, are added to it. None keeps nothing.

    Returns:
        tf.data.Dataset of dicts, with random access and the attributes `paths` (list of str, indexed by id:
        the video of each clip), `class_names` (list of str, or None) and `span` (int, number of frames of the
        video from the first to the last frame of a clip):

        - `image` (height, width, 3) uint8, frame (T - 1) // 2 of the clip, so that tasks on images train on
          videos.
        - `frames` (T, height, width, 3) uint8, if T is at least 2.
        - `id` int64, the number of the row: clips are sorted by video and time.
        - `time` float32, when `image` is shown, in seconds from the start; for numbered images, the number.
        - `label` int64, if there are classes.

    Raises:
        ValueError: there is no such folder, no clip in it, too little space for the frames, or an argument is
            invalid.

    Warns:
        UserWarning: how many videos were skipped, and why, and how many frames are damaged or missing. Damage
            that FFmpeg conceals without reporting an error is not detected.

    Reference: Misra, Zitnick & Hebert, "Shuffle and Learn", ECCV 2016, for windows of high motion.

    Example:
        >>> clips = from_videos("videos/", frames=4, stride=2, size=64)           # doctest: +SKIP
    """
    height, width = height_and_width(size)
    check_integers(1, frames=frames, stride=stride, step=step)
    check_not_negative("min_motion", min_motion)
    if min_motion and min(height, width) < MIN_FLOW_SIDE:
        raise ValueError(
            f"min_motion needs a size of at least {MIN_FLOW_SIDE} pixels, got size={size!r}"
        )
    clip = Clip(frames, stride, step, min_motion)
    videos, irregular = video_files.find(folder)
    if not videos:
        raise ValueError(
            f"folder {str(folder)!r} has no videos: expected files ending in "
            f"{', '.join(video_files.SUFFIXES)}, or folders of numbered images"
        )
    skipped = collections.defaultdict(collections.Counter)  # reason: path: number
    if irregular:
        skipped["no regular file, no permission to read, or read already"].update(irregular)
    found = _index(videos, (height, width), clip, folder, cache, skipped)
    if not found:
        raise ValueError(
            f"folder {str(folder)!r} has no clip of {frames} frames with stride {stride}: "
            f"{_reasons(skipped, folder)}"
        )
    if skipped:
        warnings.warn(
            f"skipped parts of {str(folder)!r}: {_reasons(skipped, folder)}", stacklevel=2
        )
    columns, class_names = _columns(found, clip, folder)
    load = _loader([stored.path for _, stored, _ in found], (height, width), clip)
    dataset = random_access(columns, load)
    dataset.paths = [video.path for video, _, starts in found for _ in starts]
    dataset.class_names, dataset.span = class_names, clip.span
    return dataset


class Clip(NamedTuple):
    """The frames that form a clip."""

    frames: int
    stride: int
    step: int
    min_motion: float

    @property
    def span(self):
        """The number of frames from the first to the last one."""
        return (self.frames - 1) * self.stride + 1

    @property
    def middle(self):
        """The distance of `image` from the first frame."""
        return (self.frames - 1) // 2 * self.stride


def starts_of(joined, clip):
    """Returns the first frames of the clips of a video, which do not cross a gap or a cut.

    Args:
        joined: (n - 1,) bool array, whether frames k and k + 1 follow each other in one scene.
        clip: Clip.

    Returns:
        (m,) int64 array. In each scene the first clip begins with its first frame.

    Example:
        >>> starts_of(np.array([1, 1, 1, 0, 1, 1], bool), Clip(2, 2, 1, 0.0)).tolist()
        [0, 1, 4]
    """
    edges = np.concatenate([[0], np.flatnonzero(~joined) + 1, [len(joined) + 1]])
    return np.concatenate(
        [
            np.arange(start, end - clip.span + 1, clip.step, dtype=np.int64)
            for start, end in itertools.pairwise(edges)
        ]
    )


def _index(videos, size, clip, folder, cache, skipped):
    """Stores the frames of all videos, and returns the videos with a clip: (video, stored, starts)."""
    if cache is None:
        store = frame_store.temporary_folder()
    else:
        store = os.fspath(cache)
        if os.path.exists(store) and not os.path.isdir(store):
            raise ValueError(f"cache must be a folder, {store!r} is a file")
        files.make_folder(store)
    paths = [
        os.path.join(store, frame_store.digest(video, size, os.path.relpath(video.path, folder)))
        for video in videos
    ]
    new = [
        video for video, path in zip(videos, paths, strict=True) if not frame_store.is_stored(path)
    ]
    frame_store.check_space(new, size, store)

    def examine(video, path):
        stored = frame_store.store(video, size, path)
        if stored is None:
            return video, None, "unreadable"
        starts = starts_of(stored.joined, clip)
        if not len(starts):
            return video, stored, "shorter than a clip"
        if clip.min_motion:
            total = np.concatenate(
                [[0], np.cumsum(frame_store.speeds(stored, size), dtype=np.float64)]
            )
            moved = (total[starts + clip.span - 1] - total[starts]) / max(clip.span - 1, 1)
            starts = starts[moved >= clip.min_motion]
        return video, stored, starts if len(starts) else "without enough motion"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        examined = list(pool.map(examine, videos, paths))
    for video, stored, starts in examined:
        if isinstance(starts, str):
            skipped[starts][video.path] += 1
        if stored is not None and stored.lost:
            skipped["damaged or missing frames"][video.path] += stored.lost
    return [row for row in examined if not isinstance(row[2], str)]


def _columns(found, clip, folder):
    """Returns the columns from which rows are loaded, and the names of the classes."""
    numbers = [len(starts) for _, _, starts in found]
    columns = {
        # A file, since `fingerprint` compares its size.
        "path": np.repeat(np.array([video.files[0] for video, _, _ in found], object), numbers),
        "video": np.repeat(np.arange(len(found), dtype=np.int32), numbers),
        "first": np.concatenate([starts for _, _, starts in found]),
        "time": np.concatenate([stored.times[starts + clip.middle] for _, stored, starts in found]),
        "id": np.arange(sum(numbers), dtype=np.int64),
    }
    inside = [os.path.relpath(video.path, folder).split(os.sep) for video, _, _ in found]
    if min(map(len, inside)) == 1:
        return columns, None
    class_names, labels = np.unique([parts[0] for parts in inside], return_inverse=True)
    columns["label"] = np.repeat(labels.astype(np.int64), numbers)
    return columns, class_names.tolist()


def _loader(paths, size, clip):
    """Returns the function that loads a row."""
    length = size[0] * size[1] * 3
    paths = tf.constant(paths)

    def load(row):
        path = tf.gather(paths, row["video"])

        def frame(k):
            offset = (row["first"] + k * clip.stride) * (length + frame_store.AROUND)
            data = records.read(path, offset, tf.constant(length, tf.int64))
            return tf.reshape(tf.io.decode_raw(data, tf.uint8), (*size, 3))

        loaded = {name: row[name] for name in ("id", "time", "label") if name in row}
        if clip.frames == 1:
            return {"image": frame(0), **loaded}
        frames = tf.stack([frame(k) for k in range(clip.frames)])
        return {"image": frames[(clip.frames - 1) // 2], "frames": frames, **loaded}

    return load


def _reasons(skipped, folder):
    parts = []
    for reason, numbers in skipped.items():
        # If the folder itself is the video, with numbered images, its relative path is ".".
        inside = [os.path.relpath(name, folder) for name in numbers]
        parts.append(f"{reason} ({numbers.total()}: {files.listed(inside)})")
    return ", ".join(parts)
