"""The data sets of the command line: by name, or a folder."""

from pathlib import Path

import numpy as np

from keras_ssl.data.arrays import cifar10, digits
from keras_ssl.data.columns import subset
from keras_ssl.data.folder import from_folder
from keras_ssl.data.records import record_files
from keras_ssl.data.tfrecord import from_tfrecord


def named(name, size, split=False, reader=from_folder, check=True):
    """The dataset of that name or folder; (train, test) where `split`, else (training part, None).

    A folder of TFRecord files is read as such, any other by `reader`; `check` is `from_folder`'s.
    """

    def read(folder):
        if record_files(folder):
            return from_tfrecord(folder, size)
        return reader(folder, size, check=check) if reader is from_folder else reader(folder, size)

    builtin = {"digits": digits, "cifar10": lambda part: cifar10(split=part)}
    folder = Path(name)
    if name in builtin and not folder.is_dir():
        if size not in (32, (32, 32)):
            raise ValueError(f"--data {name} has 32x32 pictures, got size {size}")
        return builtin[name]("train"), builtin[name]("test") if split else None
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        train = read(folder / "train")
        if not split:
            return train, None
        test = read(folder / "test")
        if train.class_names != test.class_names:  # labels are places in these lists
            raise ValueError(
                f"--data: train/ and test/ of {name!r} must have the same class folders"
            )
        return train, test
    dataset = read(folder)
    if not split:
        return dataset, None
    number = int(dataset.cardinality())
    if number < 2:
        raise ValueError(
            f"--data must hold at least two pictures to evaluate, {name!r} has {number}"
        )
    # Every fifth picture judges: within a folder sorted by class that takes a fifth of each class.
    is_test = np.arange(number) % 5 == 4 if number >= 5 else np.arange(number) == number - 1
    return tuple(subset(dataset, np.flatnonzero(part)) for part in (~is_test, is_test))
