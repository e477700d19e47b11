"""The data sets of the command line: by name, or a folder."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_ssl.data.arrays import cifar10, digits
from keras_ssl.data.folder import from_folder


def named(name, size, split=False, reader=from_folder):
    """The dataset of that name or folder; (train, test) where `split`, else (training part, None)."""
    builtin = {"digits": digits, "cifar10": lambda part: cifar10(split=part)}
    folder = Path(name)
    if name in builtin and not folder.is_dir():
        if size not in (32, (32, 32)):
            raise ValueError(f"--data {name} has 32x32 pictures, got size {size}")
        return builtin[name]("train"), builtin[name]("test") if split else None
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        train = reader(folder / "train", size)
        if not split:
            return train, None
        test = reader(folder / "test", size)
        if train.class_names != test.class_names:  # labels are places in these lists
            raise ValueError(
                f"--data: train/ and test/ of {name!r} must have the same class folders"
            )
        return train, test
    dataset = reader(folder, size)
    if not split:
        return dataset, None
    number = len(dataset.paths)
    if number < 2:
        raise ValueError(
            f"--data must hold at least two pictures to evaluate, {name!r} has {number}"
        )
    # Every fifth picture judges: within a folder sorted by class that takes a fifth of each class.
    is_test = np.arange(number) % 5 == 4 if number >= 5 else np.arange(number) == number - 1
    return tuple(
        dataset.filter(lambda e, part=part: tf.gather(part, e["id"])).apply(
            tf.data.experimental.assert_cardinality(int(part.sum()))
        )
        for part in (~is_test, is_test)
    )
