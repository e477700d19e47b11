"""Labels of the whole data set, looked up by image id."""

import tensorflow as tf


def lookup(labels, ids):
    """Looks up the labels of a batch.

    Args:
        labels: keras.Variable, (..., N) int32, one label per image id.
        ids: (B,) tensor of image ids; integers, or floats while Keras builds a model under a strategy
            from averaged ids.

    Returns:
        (..., B) int32 tensor.

    Example:
        >>> lookup(tf.Variable([7, 5, 3]), tf.constant([2, 0])).numpy().tolist()
        [3, 7]
    """
    return tf.gather(tf.convert_to_tensor(labels), tf.cast(ids, tf.int64), axis=-1)
