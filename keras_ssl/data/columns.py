"""Datasets with random access: any row can be loaded by its index."""

import hashlib
import os

import numpy as np
import tensorflow as tf

FINGERPRINT_ROWS = 100


def random_access(columns, load=None):
    """Creates a dataset with random access from columns in memory.

    The columns contain the images themselves, or the data that is needed to load them, such as paths.
    `PretextModel.dataset` shuffles the row indices of such a dataset instead of its images. So an epoch is a
    permutation of all images without a shuffle buffer, each worker loads its own images only, and training
    resumes in the middle of an epoch without reading the previous images.

    `take`, `map` and other methods of tf.data.Dataset return datasets without random access:
    `keras_ssl.data.subset` selects rows and keeps random access.

    Args:
        columns: dict of arrays with the image on axis 0, including `id` (int64).
        load: function, in TensorFlow, from one row (a dict of tensors) to an element of the dataset; None
            if the rows are the elements.

    Returns:
        tf.data.Dataset of dicts, in the order of the rows, with the attributes `columns` (dict of tensors
        on the CPU) and `load_row`.

    Example:
        >>> rows = {"id": tf.range(3, dtype=tf.int64), "path": ["a.png", "b.png", "c.png"]}
        >>> random_access(rows).cardinality().numpy().item()
        3
    """
    with tf.device("CPU:0"):
        columns = {name: tf.convert_to_tensor(column) for name, column in columns.items()}
        dataset = tf.data.Dataset.from_tensor_slices(columns)
    if load is not None:
        dataset = dataset.map(load, tf.data.AUTOTUNE)
    dataset.columns, dataset.load_row = columns, load
    return dataset


def extended(dataset, compute):
    """Adds columns that are computed when a row is loaded to a dataset with random access.

    Args:
        dataset: tf.data.Dataset with random access.
        compute: function, in TensorFlow, from an element of `dataset` to a dict of the new columns.

    Returns:
        tf.data.Dataset with random access, and with those attributes of its reader that `dataset` has.

    Example:
        >>> rows = random_access({"id": tf.range(3, dtype=tf.int64)})
        >>> double = extended(rows, lambda row: {"double": 2 * row["id"]})
        >>> [int(row["double"]) for row in double]
        [0, 2, 4]
    """

    def load(row):
        row = row if dataset.load_row is None else dataset.load_row(row)
        return {**row, **compute(row)}

    made = random_access(dataset.columns, load)
    for attribute in ("class_names", "paths", "span"):
        if hasattr(dataset, attribute):
            setattr(made, attribute, getattr(dataset, attribute))
    return made


def check_random_access(name, dataset):
    """Raises ValueError, which names the argument, unless a dataset has random access."""
    if not hasattr(dataset, "columns"):
        raise ValueError(
            f"{name} must have random access, as the readers of keras_ssl.data make it; take, map and "
            "the like lose it, keras_ssl.data.subset does not"
        )


def subset(dataset, rows):
    """Selects rows of a dataset, and keeps its random access if it has any.

    Args:
        dataset: tf.data.Dataset of known length. With random access, which almost all readers
            provide, the other rows are not loaded.
        rows: (n,) int array, indices of the rows, which must increase if there is no random access; or (N,)
            bool array, whether to select each row.

    Returns:
        tf.data.Dataset of length n, with the attribute `class_names` if `dataset` has it.

    Raises:
        ValueError: `rows` is not such an array.

    Example:
        >>> rows = random_access({"id": tf.range(5, dtype=tf.int64)})
        >>> subset(rows, [1, 3]).columns["id"].numpy().tolist()
        [1, 3]
    """
    known, number = hasattr(dataset, "columns"), int(dataset.cardinality())
    rows = _indices(rows, number, increasing=not known)
    if known:
        with tf.device("CPU:0"):
            columns = {name: tf.gather(column, rows) for name, column in dataset.columns.items()}
        part = random_access(columns, dataset.load_row)
    else:
        selected = np.zeros(number, bool)
        selected[rows] = True
        part = dataset.enumerate().filter(lambda row, _: tf.gather(selected, row))
        part = part.map(lambda _, element: element)
        part = part.apply(tf.data.experimental.assert_cardinality(len(rows)))
    if hasattr(dataset, "class_names"):
        part.class_names = dataset.class_names
    return part


def fingerprint(dataset):
    """Computes a digest of a sample of a dataset, to detect another dataset of the same length.

    It covers the columns from which the images are loaded, except the label: pixels, or the names and sizes
    of files, which may be in another folder.

    Args:
        dataset: tf.data.Dataset of known length.

    Returns:
        str; None without random access.

    Example:
        >>> fingerprint(random_access({"id": tf.range(3, dtype=tf.int64)}))
        'sha256:b6c54085'
    """
    if not hasattr(dataset, "columns"):
        return None
    number = int(dataset.cardinality())
    rows = np.unique(np.linspace(0, number - 1, FINGERPRINT_ROWS).astype(np.int64))
    digest = hashlib.sha256()
    for name, column in sorted(dataset.columns.items()):
        # Computed floats, such as descriptors, may differ between machines.
        if name == "label" or (column.dtype.is_floating and name != "image"):
            continue
        values = tf.gather(column, rows).numpy()
        if name.endswith(("path", "paths")):
            named = [b"%s %d" % (os.path.basename(p), _size(p)) for p in values.ravel()]
            values = np.array(named, object)
        digest.update(name.encode())
        strings = values.dtype == object
        digest.update(b"\0".join(values.ravel()) if strings else values.tobytes())
    return f"sha256:{digest.hexdigest()[:8]}"


def _size(path):
    """Returns the size of a file in bytes, or -1 if it cannot be read."""
    try:
        return tf.io.gfile.stat(path).length
    except tf.errors.OpError:
        return -1


def _indices(rows, number, increasing):
    """Returns the `rows` of `subset` as an int64 array, and validates them."""
    given, rows = rows, np.asarray(rows)
    if rows.dtype == bool and rows.shape == (number,):
        rows = np.flatnonzero(rows)
    valid = rows.ndim == 1 and (rows.dtype.kind in "iu" or not len(rows))
    if not valid or ((rows < 0) | (rows >= number)).any():
        raise ValueError(
            f"rows must be indices in 0..{number - 1}, or {number} bools, one per row, got {given!r}"
        )
    if increasing and (np.diff(rows) <= 0).any():
        raise ValueError(f"rows must increase in a dataset without random access, got {given!r}")
    return rows.astype(np.int64)
