"""Frames of videos on disk, resized, with random access: each video is decoded once, in order."""

import atexit
import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ssl import files
from keras_ssl.data import video_files
from keras_ssl.ops import images

FORMAT = 1
AROUND = 16  # bytes of a record before and after its data
THUMBNAIL = 32  # pixels, height and width of the images that are compared to find cuts
MIN_CUT, CUT_RATIO = 10.0, 3.0  # gray levels; times the median of the neighboring differences
WINDOW = 4  # differences on each side with which a cut is compared
STILL = 0.5  # gray levels; a smaller difference is a repeated frame
FLOW_SIDE = 64  # pixels, the shorter side of the frames for which the flow is computed
TEMPORARY = "keras_ssl_frames_"


class Stored(NamedTuple):
    """The frames of a video."""

    path: str  # a TFRecord file; record k is frame k, height * width * 3 bytes
    times: np.ndarray  # (n,) float32, seconds
    joined: np.ndarray  # (n - 1,) bool, whether frames k and k + 1 follow each other in one scene
    lost: int  # frames that are missing or damaged


def store(video, size, path):
    """Decodes a video and stores its resized frames, unless they are stored already.

    Args:
        video: video_files.Video.
        size: (height, width).
        path: str, prefix of the names of the files with the frames and their index.

    Returns:
        Stored, or None if no frame can be decoded.
    """
    if not is_stored(path):
        index = _write(video, size, f"{path}.tfrecord")
        if not len(index["times"]):
            os.unlink(f"{path}.tfrecord")
            return None
        with files.complete(f"{path}.npz") as draft, open(draft, "wb") as file:
            np.savez(file, **index)
    with np.load(f"{path}.npz") as index:
        return Stored(f"{path}.tfrecord", index["times"], index["joined"], int(index["lost"]))


def is_stored(path):
    """Returns whether the files of frames and index with this prefix are complete."""
    return os.path.exists(f"{path}.npz") and os.path.exists(f"{path}.tfrecord")


def digest(video, size, name):
    """Computes a file name from everything that the stored frames depend on.

    Args:
        video: video_files.Video.
        size: (height, width).
        name: str, of the video, wherever it is; together with size and modification time it identifies the
            video.

    Returns:
        str.
    """
    found = hashlib.sha256(repr((FORMAT, tuple(size), name)).encode(errors="surrogateescape"))
    for file in video.files:
        status = os.stat(file)
        entry = (os.path.basename(file), status.st_size, status.st_mtime_ns)
        found.update(repr(entry).encode(errors="surrogateescape"))
    return found.hexdigest()[:32]


def _write(video, size, path):
    """Writes the frames, and returns the fields of their index."""
    import cv2

    resize = _resize(*size)
    times, differences, follows, lost, thumbnail, intact = [], [], [], 0, None, True
    with files.complete(path) as draft, tf.io.TFRecordWriter(draft) as writer:
        for image, value in video_files.decode(video):
            if image is None:
                lost, intact = lost + value, False
                continue
            writer.write(resize(image).numpy().tobytes())
            previous = thumbnail
            thumbnail = cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
            if times:
                differences.append(cv2.absdiff(thumbnail, previous).mean())
                follows.append(intact)
            times.append(value)
            intact = True
    joined = np.array(follows, bool) & ~cuts(np.array(differences))
    return {"times": np.float32(times), "joined": joined, "lost": lost}


@functools.cache
def _resize(height, width):
    signature = [tf.TensorSpec((None, None, 3), tf.uint8)]
    return tf.function(
        lambda image: images.resize(image, height, width),
        input_signature=signature,
        autograph=False,
    )


def cuts(differences):
    """Finds scene cuts: differences that are large, and larger than the neighboring ones.

    In a pan or a shaking scene all differences are large, and the difference of a cut stands out. Where
    frames are repeated, some differences are 0; these are ignored in the comparison. A fade is not a cut.

    Args:
        differences: (n,) float array, mean absolute difference of successive frames in gray levels.

    Returns:
        (n,) bool array.

    Example:
        >>> cuts(np.array([2.0, 0, 3, 2, 50, 3, 2, 0, 12, 13, 11, 30, 14, 12])).nonzero()[0].tolist()
        [4]
    """
    found = np.zeros(len(differences), bool)
    for k in np.flatnonzero(differences >= MIN_CUT):
        near = np.concatenate(
            [differences[max(k - WINDOW, 0) : k], differences[k + 1 : k + 1 + WINDOW]]
        )
        moving = near[near > STILL]
        found[k] = differences[k] >= CUT_RATIO * (np.median(moving) if len(moving) else 0)
    return found


def speeds(stored, size):
    """Computes how fast the content of a video moves, by OpenCV's DIS; once for stored frames.

    Args:
        stored: Stored.
        size: (height, width) of the stored frames, at least 12 pixels.

    Returns:
        (n - 1,) float32 array, mean length of the optical flow between successive frames as a fraction of the
        shorter side of the frame.

    Reference: Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016.
    """
    path = f"{stored.path.removesuffix('.tfrecord')}.npy"
    if os.path.exists(path):
        return np.load(path)
    import cv2

    solver = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    solver.setFinestScale(0)  # images are small
    scale = min(FLOW_SIDE / min(size), 1)
    small = [round(scale * side) for side in size[::-1]]
    found, previous = [], None
    for record in tf.data.TFRecordDataset(stored.path).as_numpy_iterator():
        gray = cv2.cvtColor(np.frombuffer(record, np.uint8).reshape(*size, 3), cv2.COLOR_RGB2GRAY)
        gray = cv2.resize(gray, small, interpolation=cv2.INTER_AREA)
        if previous is not None:
            flow = solver.calc(previous, gray, None)
            found.append(np.linalg.norm(flow, axis=-1).mean() / min(small))
        previous = gray
    with files.complete(path) as draft, open(draft, "wb") as file:
        np.save(file, np.float32(found))
    return np.float32(found)


def check_space(videos, size, folder):
    """Raises ValueError if the resized frames of the videos do not fit on the disk of a folder."""
    number = sum(map(video_files.number_of_frames, videos))
    needed, free = number * (size[0] * size[1] * 3 + AROUND), shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"the {number} frames need {needed / 1e9:.1f} GB, and the disk of {str(folder)!r} has "
            f"{free / 1e9:.1f} GB: give cache= a folder on a larger disk, or a smaller size"
        )


@functools.cache
def temporary_folder():
    """Creates a temporary folder for frames that are not kept, and removes folders of dead processes.

    The folder is removed when the process ends. If the process is killed, the kernel releases the lock on a
    file in the folder, so the next process knows that the folder is no longer in use.

    Returns:
        str.
    """
    for other in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*/.lock"):
        with contextlib.suppress(OSError), open(other) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other.parent, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=TEMPORARY)
    lock = os.open(os.path.join(folder, ".lock"), os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    atexit.register(_remove, folder, lock)
    return folder


def _remove(folder, lock):
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
