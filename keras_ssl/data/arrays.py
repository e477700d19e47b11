"""Reader for images in memory, and two data sets that need no preparation."""

import warnings
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_ssl.data.columns import random_access
from keras_ssl.data.folder import from_folder

# fmt: off
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)
# fmt: on


def from_array(images, labels=None, **columns):
    """Creates a dataset from an array of images.

    Args:
        images: (N, H, W, 3) or (N, H, W) array, uint8 or float, in 0..255; grayscale images become
            three equal channels.
        labels: (N,) array of integers, for evaluation only, or None.
        **columns: further arrays with one row per image, such as `frames` (N, T, H, W, 3) uint8,
            `depth` (N, H, W, 1) float in meters with NaN where unknown, or `motion` (N, T - 1, 6) float.
            Floats become float32.

    Returns:
        tf.data.Dataset of dicts with `image` (H, W, 3), `id` (the index), `label` if there are labels, and
        the further columns.

    Raises:
        ValueError: wrong shape, no images, values outside 0..255 or not finite, labels that are not integers,
            or `labels` or a column that does not have one row per image.

    Warns:
        UserWarning: all pixels are floats of at most 1, so `images` seem to be in 0..1.

    Example:
        >>> frames = np.zeros((5, 3, 8, 8, 3), "uint8")
        >>> from_array(frames[:, 1], frames=frames).element_spec["image"].shape
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
        if 0 < images.max() <= 1:
            warnings.warn(
                f"images must be in 0..255, and have a maximum of {images.max()}: if they are in 0..1, "
                "multiply them by 255",
                stacklevel=2,
            )
    rows = {"image": images, "id": np.arange(len(images), dtype=np.int64)}
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != (len(images),):
            raise ValueError(f"labels must be ({len(images)},), one per image, got {labels.shape}")
        rows["label"] = _integers(labels)
    return random_access({**rows, **_further_columns(columns, len(images))})


def _integers(labels):
    if labels.dtype.kind not in "biuf":
        raise ValueError(f"labels must be integers, got dtype {labels.dtype}: number the classes")
    wrong = labels[~np.isfinite(labels) | (labels != np.round(labels))]
    if len(wrong):
        raise ValueError(
            f"labels must be integers, got {wrong[0]}: leave out images without a label"
        )
    return labels.astype(np.int64)


def _further_columns(columns, number):
    arrays = {name: np.asarray(column) for name, column in columns.items()}
    for name, array in arrays.items():
        if name in ("image", "id", "label"):
            raise ValueError(f"{name} is a column of its own: give images and labels")
        if array.shape[:1] != (number,):
            raise ValueError(
                f"{name} must have {number} rows, one per image, got shape {array.shape}"
            )
    return {k: a.astype(np.float32) if a.dtype.kind == "f" else a for k, a in arrays.items()}


def to_arrays(dataset):
    """Loads a whole dataset into memory.

    Args:
        dataset: tf.data.Dataset of dicts whose elements all have the same shape.

    Returns:
        dict of numpy arrays with the image on axis 0, one for each column.

    Example:
        >>> to_arrays(digits("test"))["image"].shape
        (360, 32, 32, 3)
    """
    batches = list(dataset.batch(256).as_numpy_iterator())
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def digits(split="train"):
    """Loads scikit-learn's handwritten digits, enlarged from 8x8 to 32x32; needs no download.

    Args:
        split: "train" (1,437 images) or "test" (the other 360), fixed and stratified by digit.

    Returns:
        tf.data.Dataset as from `from_array`, labeled 0 to 9.

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
    """Loads CIFAR-10: 50,000 training and 10,000 test images, 32x32, ten classes.

    Args:
        path: folder with `train/<class>/` and `test/<class>/`, or None to let Keras download it.
        split: "train" or "test".

    Returns:
        tf.data.Dataset as from `from_array`, with the attribute `class_names`; the labels are in the
        alphabetical order of the classes, which is also the original one.

    Raises:
        ValueError: unknown `split`, or `path` has no folder of that name.
        ConnectionError: the download failed.

    Reference: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    _check_split(split)
    if path is None:
        try:
            train, test = keras.datasets.cifar10.load_data()
        except Exception as error:  # Keras raises no more specific exception if a download fails
            raise ConnectionError(
                f"CIFAR-10 could not be downloaded ({error}): give a folder with train/<class>/ and "
                "test/<class>/ as path"
            ) from None
        images, labels = train if split == "train" else test
        dataset = from_array(images, labels[:, 0])
        dataset.class_names = list(CIFAR10_CLASSES)
        return dataset
    files = from_folder(Path(path) / split, size=32)
    # Read once and kept in memory: 150 MB instead of 50,000 small files per epoch.
    arrays = to_arrays(files)
    dataset = from_array(arrays["image"], arrays.get("label"))
    dataset.class_names = files.class_names
    return dataset


def _check_split(split):
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", got {split!r}')
