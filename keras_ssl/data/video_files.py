"""Video files and folders of numbered frames: lists them, and decodes their frames in order."""

import collections
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ssl.data.folder import walk
from keras_ssl.ops import decode as images

SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".gif")
COUNTED = (
    ".mp4",
    ".mov",
    ".avi",
)  # the header has the number of frames; in other formats it is an estimate
FRAME_SUFFIXES = tuple(suffix for suffix in images.SUFFIXES if suffix not in SUFFIXES)
MAX_FAILURES = 1000  # successive undecodable packets after which the file counts as ended


class Video(NamedTuple):
    """A video file, or a folder of numbered frames."""

    path: str  # of the file or the folder
    files: tuple  # the file; or the files of the frames, in order
    numbers: tuple  # the numbers of the frames, or () for a video file


def find(folder):
    """Lists the videos in a folder and its subfolders: video files, and image files with numbered names.

    Numbered images in the same folder whose names differ only in the number at their end are a video.

    Args:
        folder: str or pathlib.Path.

    Returns:
        (videos, skipped): list of Video, sorted by path; list of str, names that are not regular files, are
        folders without read permission, or lead to a folder a second time.

    Raises:
        ValueError: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"folder must be a folder of videos, there is no folder {str(folder)!r}")
    names, skipped = walk(Path(folder), (*SUFFIXES, *FRAME_SUFFIXES))
    videos, sequences = [], collections.defaultdict(dict)
    for name in names:
        if name.lower().endswith(SUFFIXES):
            videos.append(Video(name, (name,), ()))
        elif numbered := re.fullmatch(r"(.*?)(\d+)", os.path.splitext(name)[0], re.DOTALL):
            sequences[numbered[1]][int(numbered[2])] = name
    sequences = {start: frames for start, frames in sequences.items() if len(frames) > 1}
    parents = collections.Counter(os.path.dirname(start) for start in sequences)
    for start, frames in sequences.items():
        alone = parents[os.path.dirname(start)] == 1
        numbers = tuple(sorted(frames))
        files = tuple(frames[number] for number in numbers)
        videos.append(Video(os.path.dirname(start) if alone else start, files, numbers))
    return sorted(videos), skipped


def holds_videos(folder):
    """Returns whether a folder has at least as many video files as images; GIFs do not count.

    A folder of photos may have some videos, and a folder of videos may have an image of each.
    """
    names, _ = walk(Path(folder), (*SUFFIXES, *FRAME_SUFFIXES))
    images_found = sum(name.lower().endswith(FRAME_SUFFIXES) for name in names)
    gifs = sum(name.lower().endswith(".gif") for name in names)
    return len(names) - images_found - gifs >= max(images_found, 1)


def number_of_frames(video):
    """Returns the number of frames that the header of a video declares, 0 if it cannot be opened."""
    if video.numbers:
        return len(video.files)
    import cv2

    capture = _open(video.path)
    return 0 if capture is None else max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)


def decode(video):
    """Decodes the frames of a video, one after another.

    There is no seeking: each frame is the one that follows the previous frame, even with B-frames and a
    variable frame rate. After a packet that FFmpeg cannot decode, the frames up to the next key frame would
    be predicted from a missing frame, so they count as damaged, too.

    Args:
        video: Video.

    Yields:
        (image, time): (H, W, 3) uint8 RGB and its time stamp, a float in seconds, or for numbered frames
        their number; or, in place of missing or damaged frames, (None, how many there are).
    """
    return _decode_frames(video) if video.numbers else _decode_file(video.path)


def _decode_frames(video):
    distances = np.diff(video.numbers).tolist()
    step = min(distances)  # every fifth frame may have been kept
    for file, number, distance in zip(video.files, video.numbers, [step, *distances], strict=True):
        if distance > step:
            yield None, -(-distance // step) - 1
        try:
            yield images.decode(tf.io.read_file(file)).numpy(), float(number)
        except tf.errors.OpError:
            yield None, 1


def _decode_file(path):
    import cv2

    capture = _open(path)
    if capture is None:
        return
    declared = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    read, failures, synchronized = 0, 0, True
    while failures < MAX_FAILURES:
        if not capture.grab():
            failures += 1
            if read >= declared:
                break
            continue
        if failures:  # in the middle of the file, since a frame follows
            yield None, failures
            read, failures, synchronized = read + failures, 0, False
        read += 1
        synchronized |= chr(int(capture.get(cv2.CAP_PROP_FRAME_TYPE))) not in "PB"
        image = _retrieved(capture) if synchronized else None
        yield (None, 1) if image is None else (image, capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    if path.lower().endswith(COUNTED) and read < declared:
        yield None, declared - read


def _open(path):
    """Returns the cv2.VideoCapture of a file, or None if it is not a video or its frames are too large."""
    import cv2

    # Prevents protocols such as "concat:", which FFmpeg would recognize at the start of a name.
    capture = cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG)
    pixels = capture.get(cv2.CAP_PROP_FRAME_WIDTH) * capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    return capture if capture.isOpened() and pixels <= images.MAX_PIXELS else None


def _retrieved(capture):
    """Returns the frame that was grabbed, in RGB, or None if it cannot be converted."""
    import cv2

    try:
        done, image = capture.retrieve()
    except cv2.error:
        return None
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if done else None
