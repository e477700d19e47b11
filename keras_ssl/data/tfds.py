"""Reader for the data sets of tensorflow-datasets, an optional dependency."""

import tensorflow as tf

from keras_ssl.ops import decode, images


def from_tfds(name, split="train", *, size, data_dir=None):
    """Dataset from one of tensorflow-datasets, downloaded only if it is not there.

    Args:
        name: str, such as "oxford_flowers102" or "imagenet_resized/32x32:0.1.0".
        split: str, such as "train" or "train[:10%]".
        size: int, height and width in pixels, or (height, width); pictures are resized so that the shorter
            side fits, and cropped in the middle.
        data_dir: folder with the prepared data sets, tensorflow-datasets' own by default.

    Returns:
        tf.data.Dataset of dicts with `image` (height, width, 3) uint8, `id` (int64, place in the split) and
        `label` where the data set has it; with the attribute `class_names` (list of str, or None).

    Raises:
        ImportError: tensorflow-datasets is not installed.
        ValueError: no data set or split of that name, no feature `image` in it, or a `size` that is not
            positive.
        ConnectionError: the download failed.

    Reference: https://www.tensorflow.org/datasets

    Example:
        >>> flowers = from_tfds("oxford_flowers102", size=96)           # doctest: +SKIP
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size!r}")
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ImportError(
            'from_tfds needs tensorflow-datasets: pip install "keras-ssl[tfds]"'
        ) from None
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"name must be a data set of tensorflow-datasets, got {name!r}: {reason}"
        ) from None
    features = dict(builder.info.features)
    if not isinstance(features.get("image"), tfds.features.Image):
        raise ValueError(f"{name!r} has no pictures named image, it has {', '.join(features)}")
    if not builder.is_prepared():
        try:
            builder.download_and_prepare()
        except Exception as error:  # each data set fails to download in its own way
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConnectionError(f"{name!r} could not be downloaded: {reason}") from None
    try:
        number = builder.info.splits[split].num_examples
    except (KeyError, ValueError):
        raise ValueError(
            f"split must be one of {', '.join(builder.info.splits)}, or a part such as "
            f'"train[:10%]", got {split!r}'
        ) from None
    labelled = isinstance(features.get("label"), tfds.features.ClassLabel)
    rows = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(try_autocache=False),
    )

    def load(place, row):
        image = images.resize(decode.decode(row["image"]), height, width)
        label = {"label": tf.cast(row["label"], tf.int64)} if labelled else {}
        return {"image": image, "id": place, **label}

    dataset = rows.enumerate().map(load, tf.data.AUTOTUNE)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(number))
    dataset.class_names = features["label"].names if labelled else None
    return dataset
