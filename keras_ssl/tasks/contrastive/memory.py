"""Shared code of tasks with a memory bank: checks of image ids, and the accuracy."""

import keras
import tensorflow as tf

from keras_ssl import metrics


def check_number(num_images, images):
    """Checks that a dataset has no more images than a bank has rows.

    Args:
        num_images: int.
        images: tf.data.Dataset of known length.

    Raises:
        ValueError: there are more images.
    """
    if int(images.cardinality()) > num_images:
        raise ValueError(
            f"images are {int(images.cardinality())}, more than the num_images={num_images} of the task's "
            "memory bank: create the task for all of them"
        )


def known_ids(batch, num_images):
    """Returns the ids of a batch, checked to be rows of the bank.

    Args:
        batch: dict with `id` (B,) int64.
        num_images: int, rows of the bank.

    Returns:
        (B,) int64 tensor.

    Raises:
        tf.errors.InvalidArgumentError: an id is not in 0..num_images - 1.

    Example:
        >>> known_ids({"id": tf.constant([1, 4], tf.int64)}, 5).numpy().tolist()
        [1, 4]
    """
    ids = tf.cast(batch["id"], tf.int64)
    message = f"the ids of the images must be in 0..{num_images - 1}, the rows of the memory bank"
    checks = [
        tf.debugging.assert_non_negative(ids, message),
        tf.debugging.assert_less(ids, tf.constant(num_images, tf.int64), message),
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):
        return tf.identity(ids)


@keras.saving.register_keras_serializable(package="keras_ssl")
class BankContrast(metrics.Contrast):
    """`metrics.Contrast` of predictions by a memory bank, whose similarities are log-odds.

    Shapes:
        y_true: not used. y_pred: (B, Q, 1 + m) log-odds of `layers.MemoryBank`.

    Example:
        >>> metric = BankContrast()
        >>> metric.update_state([0, 0], tf.constant([[[1.0, 0.5]], [[0.0, 2.0]]]))
        >>> float(metric.result())
        0.5
    """

    def largest(self, y_true, y_pred):
        return y_pred[..., 0], tf.reduce_max(y_pred[..., 1:], axis=-1)
