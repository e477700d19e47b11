"""Datasets whose pictures can be asked for by their place."""

import tensorflow as tf


def addressable(columns, load=None):
    """Dataset from columns that are in memory: the pictures themselves, or what it takes to load them.

    `PretextModel.dataset` draws places instead of pictures where it is given such a dataset. So the order
    of an epoch is a permutation of all pictures without a buffer that holds them, each worker loads its own
    pictures only, and a resumed training starts in the middle of an epoch without reading what came
    before.

    Args:
        columns: dict of arrays with the picture on axis 0, among them `id` (int64).
        load: function from one row, a dict of tensors, to the element of the dataset, in TensorFlow; None
            where the row is the element.

    Returns:
        tf.data.Dataset of dicts, in the order of the rows, with the attributes `columns` (dict of tensors
        on the CPU) and `load_row`.

    Example:
        >>> rows = {"id": tf.range(3, dtype=tf.int64), "path": ["a.png", "b.png", "c.png"]}
        >>> addressable(rows).cardinality().numpy().item()
        3
    """
    with tf.device("CPU:0"):
        columns = {name: tf.convert_to_tensor(column) for name, column in columns.items()}
        dataset = tf.data.Dataset.from_tensor_slices(columns)
    if load is not None:
        dataset = dataset.map(load, tf.data.AUTOTUNE)
    dataset.columns, dataset.load_row = columns, load
    return dataset
