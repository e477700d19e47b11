"""Data sets of the command line: a built-in name or a folder of images, videos or TFRecords."""

from pathlib import Path

import numpy as np

from keras_ssl.data.arrays import cifar10, digits
from keras_ssl.data.columns import subset
from keras_ssl.data.flow import with_flow
from keras_ssl.data.folder import from_folder
from keras_ssl.data.motion_masks import with_motion_masks
from keras_ssl.data.paired import paired
from keras_ssl.data.records import record_files
from keras_ssl.data.relative_depth import with_relative_depth
from keras_ssl.data.renderer import scenes
from keras_ssl.data.tfrecord import from_tfrecord
from keras_ssl.data.video_files import holds_videos
from keras_ssl.data.videos import from_videos

BUILT_IN = {"digits": digits, "cifar10": lambda part: cifar10(split=part)}
SCENES = (10_000, 2_000)  # for training and for testing
CLIP = {"frames", "motion", "flow", "visible", "moving"}  # columns of scenes with several frames
FRAMES, STRIDE = 5, 3  # of a clip; the stride is for clips from videos


def load_dataset(
    name, size, split=False, reader=from_folder, check=True, needs=(), synthetic="scenes", **clip
):
    """Loads the data set with a given name, or in a given folder.

    Args:
        name: str, "digits", "cifar10", "scenes" or a folder. A folder of TFRecord files is read by
            `from_tfrecord`, a folder of videos by `from_videos`, any other folder by `reader`. Subfolders
            `train` and `test` are the two parts.
        size: int or (height, width).
        split: bool, whether to return training and test images. If a folder has no such parts, every fifth
            image is a test image. For videos it is every fifth video, or the last fifth of each if there are
            fewer than five.
        reader: function of the folder and the size, such as `from_pages`.
        check: bool, as in `from_folder`.
        needs: names of columns: scenes have several frames if one of these columns describes motion, `real`
            pairs the images with rendered ones, and `relative_depth` is computed for clips that do not have
            it.
        synthetic: the rendered images for these pairs: "scenes" or a folder of TFRecord files.
        **clip: `frames`, `stride`, `cache` and `min_motion` of `from_videos`, None for the defaults: 5
            frames, or 1 if no column of clips is needed, with stride 3.

    Returns:
        (train, test): tf.data.Datasets. Without `split`, `train` has all images, or the training part if the
        data set has parts, and `test` is None.

    Raises:
        ValueError: a built-in data set does not have this size, the parts have different classes, there are
            too few images, `clip` is given without videos, or the reader raises it.

    Example:
        >>> train, test = load_dataset("digits", 32, split=True)
        >>> int(train.cardinality()), int(test.cardinality())
        (1437, 360)
    """
    if "real" in needs:
        parts = load_dataset(name, size, split, reader, check, **clip)
        return tuple(part and _with_rendered(part, size, synthetic) for part in parts)
    if "relative_depth" in needs:
        # Scenes of few frames have exact flow and motion; for other clips, both are estimated.
        parts = load_dataset(name, size, split, reader, check, needs={"motion"}, **clip)
        return tuple(part and _with_relative_depth(part) for part in parts)
    folder = Path(name)
    videos = folder.is_dir() and not record_files(folder) and _reads_videos(folder, reader, needs)
    if any(clip.values()) and not videos:
        raise ValueError(
            f"--frames, --stride, --cache and --min-motion are for a folder of videos, got {name!r}"
        )
    if name == "scenes" and not folder.is_dir():
        frames = FRAMES if "frames" in needs else 3 if CLIP & set(needs) else 1
        parts = [scenes(n, _side(size), frames, seed) for seed, n in enumerate(SCENES)]
        return parts[0], parts[1] if split else None
    if name in BUILT_IN and not folder.is_dir():
        if size not in (32, (32, 32)):
            raise ValueError(f"--data {name} has 32x32 images, got size {size}")
        return BUILT_IN[name]("train"), BUILT_IN[name]("test") if split else None

    def read(path):
        if record_files(path):
            return from_tfrecord(path, size)
        if videos:
            return _clips(path, size, needs, **clip)
        return reader(path, size, check=check) if reader is from_folder else reader(path, size)

    if (folder / "train").is_dir() and (folder / "test").is_dir():
        train = read(folder / "train")
        if not split:
            return train, None
        test = read(folder / "test")
        if train.class_names != test.class_names:  # labels index these lists
            raise ValueError(
                f"--data: train/ and test/ of {name!r} must have the same class folders"
            )
        return train, test
    dataset = read(folder)
    return _split(dataset, name) if split else (dataset, None)


def _reads_videos(folder, reader, needs):
    """Returns whether `from_videos` reads a folder: it has videos, or a task needs its images as a video."""
    if reader is not from_folder:
        return bool(CLIP & set(needs)) and holds_videos(folder)
    return "frames" in needs or holds_videos(folder)


def _clips(path, size, needs, frames=None, stride=None, cache=None, min_motion=None):
    moving = bool(CLIP & set(needs))
    frames = frames or (FRAMES if moving else 1)
    clips = from_videos(
        path, frames, stride or STRIDE, size, min_motion=min_motion or 0.0, cache=cache
    )
    if "moving" in needs:
        clips = with_motion_masks(clips)
    return with_flow(clips) if "flow" in needs else clips


def _with_rendered(images, size, synthetic):
    if synthetic == "scenes":
        rendered = scenes(int(images.cardinality()), _side(size))
    else:
        rendered = from_tfrecord(synthetic, size)
    return paired(rendered, real=images)


def _with_relative_depth(clips):
    return clips if "relative_depth" in clips.element_spec else with_relative_depth(clips)


def _side(size):
    height, width = size if isinstance(size, tuple) else (size, size)
    if height != width:
        raise ValueError(f"--data scenes has square images, got size {size}")
    return height


def _split(dataset, name):
    number = int(dataset.cardinality())
    if number < 2:
        raise ValueError(f"--data must hold at least two images to evaluate, {name!r} has {number}")
    if "video" in getattr(dataset, "columns", {}):
        parts = _split_videos(dataset)
    else:
        # Every fifth image: in a folder that is sorted by class, this is a fifth of each class.
        is_test = np.arange(number) % 5 == 4 if number >= 5 else np.arange(number) == number - 1
        parts = ~is_test, is_test
    if not all(part.any() for part in parts):
        raise ValueError(
            f"--data must hold clips for training and for testing, {name!r} has too few"
        )
    return tuple(subset(dataset, np.flatnonzero(part)) for part in parts)


def _split_videos(dataset):
    """Selects training and test clips without common frames: two (N,) bool arrays."""
    video, first = (dataset.columns[name].numpy() for name in ("video", "first"))
    if video[-1] >= 4:
        is_test = video % 5 == 4
        return ~is_test, is_test
    is_train, is_test = np.ones(len(video), bool), np.zeros(len(video), bool)
    for number in range(video[-1] + 1):
        rows = np.flatnonzero(video == number)
        start = first[rows[-max(len(rows) // 5, 1)]] if len(rows) > 1 else first[rows[0]] + 1
        is_test[rows] = first[rows] >= start
        is_train[rows] = first[rows] + dataset.span <= start
    return is_train, is_test
