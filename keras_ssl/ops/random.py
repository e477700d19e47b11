"""Random numbers that follow from one seed per image, whatever batch the image is in."""

import tensorflow as tf


def uniform(seed, number):
    """Random numbers that depend on each image's own seed, whatever batch it is in.

    Args:
        seed: (B, 2) int64 tensor, one seed per image.
        number: int, numbers per image.

    Returns:
        (B, number) float32 tensor in [0, 1).

    Example:
        >>> uniform(tf.constant([[0, 1], [0, 2]], tf.int64), 3).shape
        TensorShape([2, 3])
    """
    return tf.map_fn(
        lambda one: tf.random.stateless_uniform((number,), one),
        seed,
        fn_output_signature=tf.TensorSpec((number,), tf.float32),
    )
