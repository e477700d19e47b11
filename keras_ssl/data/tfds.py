"""Reader for the data sets of tensorflow-datasets, an optional dependency."""

import tensorflow as tf

from keras_ssl.data.folder import height_and_width
from keras_ssl.ops import decode, images


def from_tfds(name, split="train", *, size, data_dir=None):
    """Creates a dataset from tensorflow-datasets, which downloads a data set only if it is missing.

    Args:
        name: str, such as "oxford_flowers102" or "imagenet_resized/32x32:0.1.0".
        split: str, such as "train" or "train[:10%]".
        size: int, height and width in pixels, or (height, width); images are resized so that the shorter
            side fits, and cropped in the center.
        data_dir: folder with the prepared data sets; by default the folder of tensorflow-datasets.

    Returns:
        tf.data.Dataset of dicts with `image` (height, width, 3) uint8, `id` (int64, index in the split) and
        `label` if the data set has it; with the attribute `class_names` (list of str, or None), but
        without random access.

    Raises:
        ImportError: tensorflow-datasets is not installed.
        ValueError: there is no data set or split of that name, it has no feature `image`, or `size` is not
            positive.
        ConnectionError: the download failed.

    Reference: https://www.tensorflow.org/datasets

    Example:
        >>> flowers = from_tfds("oxford_flowers102", size=96)           # doctest: +SKIP
    """
    height, width = height_and_width(size)
    tfds, builder = _builder(name, data_dir)
    features = dict(builder.info.features)
    if not isinstance(features.get("image"), tfds.features.Image):
        raise ValueError(f"{name!r} has no images named image, it has {', '.join(features)}")
    _download(builder, name)
    try:
        number = builder.info.splits[split].num_examples
    except (KeyError, ValueError):
        raise ValueError(
            f"split must be one of {', '.join(builder.info.splits)}, or a part such as "
            f'"train[:10%]", got {split!r}'
        ) from None
    labeled = isinstance(features.get("label"), tfds.features.ClassLabel)
    rows = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(try_autocache=False),
    )

    def load(index, row):
        image = images.resize(decode.decode(row["image"]), height, width)
        label = {"label": tf.cast(row["label"], tf.int64)} if labeled else {}
        return {"image": image, "id": index, **label}

    dataset = rows.enumerate().map(load, tf.data.AUTOTUNE)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(number))
    dataset.class_names = features["label"].names if labeled else None
    return dataset


def _builder(name, data_dir):
    """Returns the module tensorflow_datasets and its builder of a data set."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ImportError(
            'from_tfds needs tensorflow-datasets: pip install "keras-ssl[tfds]"'
        ) from None
    try:
        return tfds, tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"name must be a data set of tensorflow-datasets, got {name!r}: {reason}"
        ) from None


def _download(builder, name):
    if builder.is_prepared():
        return
    try:
        builder.download_and_prepare()
    except Exception as error:  # each data set raises its own exceptions
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConnectionError(f"{name!r} could not be downloaded: {reason}") from None
