"""Columns of a dataset as features of tf.train.Example, and the manifest that describes them."""

import json
from pathlib import Path

import tensorflow as tf

MANIFEST = "pictures.json"
LISTS = {"int64": "int64_list", "float32": "float_list", "string": "bytes_list"}


def read_manifest(folder):
    """Reads the manifest that `to_tfrecord` wrote to a folder.

    Returns:
        dict with `pictures` (number of images), `shards`, `columns` (name: [dtype, shape]) and
        `class_names`; empty if there is no manifest.

    Raises:
        ValueError: the manifest is damaged.
    """
    file = Path(folder) / MANIFEST
    if not file.is_file():
        return {}
    try:
        manifest = json.loads(file.read_text())
        return {k: manifest[k] for k in ("pictures", "shards", "columns", "class_names")}
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"{str(file)!r} is not what to_tfrecord wrote: delete it to read the images alone"
        ) from None


def shard_names(shards):
    """Returns the names of the files of a data set."""
    return [f"pictures-{shard:05}-of-{shards:05}.tfrecord" for shard in range(shards)]


def is_png(name, dtype, shape):
    """Returns whether a column is stored as PNG files, as RGB images of uint8 are."""
    return name == "image" and dtype == "uint8" and len(shape) == 3 and shape[-1] == 3


def encode(element):
    """Converts an element of a dataset to the flat lists of a tf.train.Example, in TensorFlow."""
    return {name: _encode(name, value) for name, value in element.items()}


def _encode(name, value):
    if is_png(name, value.dtype.name, value.shape):
        value = tf.io.encode_png(value)
    elif value.dtype.name not in LISTS:
        value = tf.io.serialize_tensor(value)
    return tf.reshape(value, [-1])


def example(row):
    """Serializes a row of `encode` as a tf.train.Example, deterministically."""
    message = tf.train.Example()
    for name, value in row.items():
        kind = LISTS.get(value.dtype.name, "bytes_list")
        getattr(message.features.feature[name], kind).value.extend(value.tolist())
    return message.SerializeToString(deterministic=True)


def parse(record, columns):
    """Parses a record into its columns, in TensorFlow; images stay encoded.

    Args:
        record: () string tensor, a tf.train.Example.
        columns: dict of name: [dtype, shape], as in the manifest.

    Returns:
        dict of tensors.
    """
    features = {
        name: tf.io.FixedLenFeature(shape, dtype)
        if dtype in LISTS
        else tf.io.FixedLenFeature((), "string")
        for name, (dtype, shape) in columns.items()
    }
    return tf.io.parse_single_example(record, features)
