"""Data sets of the command line: a built-in name or a folder."""

from pathlib import Path

import numpy as np

from keras_ssl.data.arrays import cifar10, digits
from keras_ssl.data.columns import subset
from keras_ssl.data.folder import from_folder
from keras_ssl.data.paired import paired
from keras_ssl.data.records import record_files
from keras_ssl.data.relative_depth import with_relative_depth
from keras_ssl.data.renderer import scenes
from keras_ssl.data.tfrecord import from_tfrecord

BUILT_IN = {"digits": digits, "cifar10": lambda part: cifar10(split=part)}
SCENES = (10_000, 2_000)  # for training and for testing
CLIP = {"frames", "motion", "flow", "visible", "moving"}  # columns of scenes with several frames


def load_dataset(
    name, size, split=False, reader=from_folder, check=True, needs=(), synthetic="scenes"
):
    """Loads the data set of that name or folder.

    Args:
        name: str, "digits", "cifar10", "scenes" or a folder. A folder of TFRecord files is read by
            `from_tfrecord`, any other by `reader`. Folders `train` and `test` in it are the two parts.
        size: int or (height, width).
        split: bool, return training and test images. If a folder has no such parts, every fifth image
            is a test image.
        reader: function of the folder and the size, such as `from_pages`.
        check: bool, as in `from_folder`.
        needs: names of columns: scenes have several frames if one of these tells of motion, `real` pairs the
            images with rendered ones, and `relative_depth` is computed for clips that do not have it.
        synthetic: the rendered images of these pairs, "scenes" or a folder of TFRecord files.

    Returns:
        (train, test): tf.data.Datasets. Without `split`, `train` has all images, or the training part if the
        data set has parts, and `test` is None.

    Raises:
        ValueError: a built-in data set does not have this size, the parts have different classes, there are
            too few images, or the reader raises it.

    Example:
        >>> train, test = load_dataset("digits", 32, split=True)
        >>> int(train.cardinality()), int(test.cardinality())
        (1437, 360)
    """
    if "real" in needs:
        parts = load_dataset(name, size, split, reader, check)
        return tuple(part and _with_rendered(part, size, synthetic) for part in parts)
    if "relative_depth" in needs:
        parts = load_dataset(name, size, split, reader, check, needs={"flow"})
        return tuple(part and _with_relative_depth(part) for part in parts)
    folder = Path(name)
    if name == "scenes" and not folder.is_dir():
        frames = 5 if "frames" in needs else 3 if CLIP & set(needs) else 1
        parts = [scenes(n, _side(size), frames, seed) for seed, n in enumerate(SCENES)]
        return parts[0], parts[1] if split else None
    if name in BUILT_IN and not folder.is_dir():
        if size not in (32, (32, 32)):
            raise ValueError(f"--data {name} has 32x32 images, got size {size}")
        return BUILT_IN[name]("train"), BUILT_IN[name]("test") if split else None

    def read(path):
        if record_files(path):
            return from_tfrecord(path, size)
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
    # Every fifth image: in a folder sorted by class that takes a fifth of each class.
    is_test = np.arange(number) % 5 == 4 if number >= 5 else np.arange(number) == number - 1
    return tuple(subset(dataset, np.flatnonzero(part)) for part in (~is_test, is_test))
