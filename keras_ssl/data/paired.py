"""Pairs of images of several datasets, such as rendered and real ones."""

import tensorflow as tf

from keras_ssl.data.columns import check_random_access, random_access


def paired(images, **others):
    """Adds the images of other datasets to a dataset, as columns.

    Row k gets the image of row k of the other dataset; a shorter dataset is repeated from its start.

    Args:
        images: tf.data.Dataset with random access, as returned by the readers in `keras_ssl.data`.
        **others: tf.data.Datasets with random access, by the name of the new column, such as `real`.

    Returns:
        tf.data.Dataset of dicts with random access: the columns of `images`, and the new columns.

    Raises:
        ValueError: a dataset has no random access, or `images` already has a column with a new name.

    Example:
        >>> import keras_ssl as kssl
        >>> pairs = kssl.data.paired(kssl.data.scenes(100, size=32), real=kssl.data.digits())
        >>> sorted(set(pairs.element_spec) & {"depth", "image", "real"})
        ['depth', 'image', 'real']
    """
    for name, dataset in {"images": images, **others}.items():
        check_random_access(name, dataset)
    for name in others:
        if name in images.element_spec:
            raise ValueError(f"images has a column {name!r} already: give another name")
    number = int(images.cardinality())
    columns = dict(images.columns)
    for name, dataset in others.items():
        with tf.device("CPU:0"):
            rows = tf.range(number) % int(dataset.cardinality())
            columns |= {f"{name}/{k}": tf.gather(c, rows) for k, c in dataset.columns.items()}

    def load(row):
        def part(dataset, prefix):
            own = {k: row[prefix + k] for k in dataset.columns}
            return own if dataset.load_row is None else dataset.load_row(own)

        added = {name: part(dataset, f"{name}/")["image"] for name, dataset in others.items()}
        return {**part(images, ""), **added}

    made = random_access(columns, load)
    if hasattr(images, "class_names"):
        made.class_names = images.class_names
    return made
