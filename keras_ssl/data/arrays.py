"""Readers for pictures in memory, and the two data sets that need no preparation."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_ssl.data.columns import addressable
from keras_ssl.data.folder import from_folder


def from_array(images, labels=None):
    """Dataset from an array of pictures.

    Args:
        images: (N, H, W, 3) or (N, H, W) array, uint8 or float, in 0..255; gray pictures become
            three equal channels.
        labels: optional (N,) integer array, for evaluation only.

    Returns:
        tf.data.Dataset of dicts with `image` (H, W, 3), `id` (the index) and `label` if given.

    Raises:
        ValueError: wrong shape, no pictures, values outside 0..255 or not finite, or `labels` of
            another length.

    Example:
        >>> from_array(np.zeros((5, 8, 8, 3), "uint8")).element_spec["image"].shape
        TensorShape([8, 8, 3])
    """
    images = np.asarray(images)
    if images.ndim == 3:
        images = images[..., None].repeat(3, axis=-1)
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise ValueError(
            f"images must be a (N, H, W, 3) or (N, H, W) array with N > 0, got {images.shape}"
        )
    if images.dtype != np.uint8:
        images = images.astype(np.float32)
        if not (images.min() >= 0 and images.max() <= 255):
            raise ValueError(
                f"images must be in 0..255, got {images.min()} to {images.max()}: rescale them"
            )
    columns = {"image": images, "id": np.arange(len(images), dtype=np.int64)}
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != (len(images),):
            raise ValueError(f"labels must be ({len(images)},), one per image, got {labels.shape}")
        columns["label"] = labels.astype(np.int64)
    return addressable(columns)


def to_arrays(dataset):
    """The whole dataset in memory: a dict of arrays with the image on axis 0.

    Args:
        dataset: tf.data.Dataset of dicts whose elements all have the same shape.

    Returns:
        dict of numpy arrays.

    Example:
        >>> to_arrays(digits("test"))["image"].shape
        (360, 32, 32, 3)
    """
    batches = list(dataset.batch(256).as_numpy_iterator())
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def subset(dataset, places):
    """Some elements of a dataset, in their order.

    Args:
        dataset: tf.data.Dataset of known length. Of an addressable one, as the readers make it, the others
            are not loaded, and the part is addressable too.
        places: (n,) increasing int array.

    Returns:
        tf.data.Dataset of length n, with the attribute `class_names` if `dataset` has it.

    Example:
        >>> subset(from_array(np.zeros((5, 8, 8, 3))), [1, 3]).columns["id"].numpy().tolist()
        [1, 3]
    """
    if hasattr(dataset, "columns"):
        with tf.device("CPU:0"):
            columns = {name: tf.gather(column, places) for name, column in dataset.columns.items()}
        part = addressable(columns, dataset.load_row)
    else:
        chosen = np.zeros(int(dataset.cardinality()), bool)
        chosen[places] = True
        part = dataset.enumerate().filter(lambda place, _: tf.gather(chosen, place))
        part = part.map(lambda _, element: element)
        part = part.apply(tf.data.experimental.assert_cardinality(len(places)))
    if hasattr(dataset, "class_names"):
        part.class_names = dataset.class_names
    return part


def digits(split="train"):
    """scikit-learn's real handwritten digits, enlarged from 8x8 to 32x32: needs no download.

    Args:
        split: "train" (1,437 pictures), "test" (the other 360), fixed and stratified by digit.

    Returns:
        tf.data.Dataset as from `from_array`, labelled 0 to 9.

    Raises:
        ValueError: unknown `split`.

    Reference: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    _check_split(split)
    source = load_digits()
    parts = train_test_split(
        source.images, source.target, test_size=360, stratify=source.target, random_state=0
    )
    images, _, labels, _ = parts if split == "train" else (parts[1], None, parts[3], None)
    images = tf.image.resize(images[..., None] * (255 / 16), (32, 32), "bicubic")
    images = tf.cast(tf.clip_by_value(tf.round(images), 0, 255), tf.uint8)
    return from_array(images.numpy()[..., 0], labels)


def cifar10(path=None, split="train"):
    """CIFAR-10: 50,000 training and 10,000 test pictures, 32x32, ten classes.

    Args:
        path: None for Keras' download, or a folder with `train/<class>/` and `test/<class>/`.
        split: "train" or "test".

    Returns:
        tf.data.Dataset as from `from_array`, with the attribute `class_names`; labels are in the
        alphabetical order of the classes, which is the order of the original too.

    Raises:
        ValueError: unknown `split`, or `path` has no folder of that name.
        ConnectionError: the download failed.

    Reference: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    _check_split(split)
    if path is None:
        try:
            train, test = keras.datasets.cifar10.load_data()
        except Exception as error:  # Keras raises nothing narrower when it cannot download
            raise ConnectionError(
                f"CIFAR-10 could not be downloaded ({error}): give a folder with train/<class>/ and "
                "test/<class>/ as path"
            ) from None
        images, labels = train if split == "train" else test
        return from_array(images, labels[:, 0])
    files = from_folder(Path(path) / split, size=32)
    # Read once and kept: 150 MB instead of 50,000 small files every epoch.
    dataset = from_array(**{f"{k}s": v for k, v in to_arrays(files).items() if k != "id"})
    dataset.class_names = files.class_names
    return dataset


def _check_split(split):
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", got {split!r}')
