"""Features of a whole dataset, of every stage of an encoder."""

import keras
import numpy as np
import tensorflow as tf

from keras_ssl import encoders


def extract(encoder, images, batch_size=256, verbose=0):
    """Runs an encoder over a dataset.

    Args:
        encoder: functional keras.Model with named stages, as `keras_ssl.encoders` makes them.
        images: tf.data.Dataset of dicts with `image`, `id` and perhaps `label`.
        batch_size: int, pictures at a time.
        verbose: 1 shows a progress bar, 0 does not.

    Returns:
        (features, others): `features` a dict `stage1`, ..., `features` of (N, c) float32 arrays,
        each stage averaged over the picture; `others` a dict of the (N,) arrays `id` and `label`.

    Example:
        >>> from keras_ssl import data
        >>> features, others = extract(encoders.resnet((32, 32, 3), width=8), data.digits("test"))
        >>> features["stage1"].shape, others["label"].shape
        ((360, 8), (360,))
    """
    model = encoders.stages(encoder)
    columns, others = {}, {}
    batches = images.batch(batch_size).prefetch(2)
    # One trace for batches of all sizes, where predict_on_batch would trace the last one again.
    signature = [batches.element_spec["image"]]
    features_of = tf.function(lambda x: model(x, training=False), input_signature=signature)
    bar = keras.utils.Progbar(int(batches.cardinality()), verbose=verbose, unit_name="batch")
    for batch in batches:
        for name, value in features_of(batch.pop("image")).items():
            columns.setdefault(name, []).append(np.asarray(value, np.float32))
        for name, value in batch.items():
            others.setdefault(name, []).append(value.numpy())
        bar.add(1)
    return tuple({k: np.concatenate(v) for k, v in d.items()} for d in (columns, others))
