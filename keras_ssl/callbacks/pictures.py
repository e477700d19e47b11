"""Draws inputs, labels and predictions of a task for TensorBoard."""

import io

import keras
import numpy as np
import tensorflow as tf


class Pictures(keras.callbacks.Callback):
    """Writes a figure of inputs, labels and predictions for TensorBoard after each epoch.

    Args:
        log_dir: directory of the logs, as in `keras.callbacks.TensorBoard`; the figures go to its
            subdirectory `pictures`.
        images: tf.data.Dataset of dicts with `image` and `id`, from which the same images are drawn after
            every epoch.
        number: int, images to draw.

    Raises:
        ValueError: `number` is below 1.

    Example:
        >>> pictures_of_digits = Pictures("logs", images=[])                    # doctest: +SKIP
        >>> task.fit(dataset, callbacks=[pictures_of_digits])                   # doctest: +SKIP
    """

    def __init__(self, log_dir, images, number=6):
        super().__init__()
        if number < 1:
            raise ValueError(f"number must be at least 1, got {number!r}")
        self.log_dir, self.images, self.number = log_dir, images, number

    def on_train_begin(self, logs=None):
        replicas = self.model.distribute_strategy.num_replicas_in_sync
        number = replicas * -(-self.number // replicas)
        self.x, self.y = next(iter(self.model.dataset(self.images, number)))
        self.writer = tf.summary.create_file_writer(f"{self.log_dir}/pictures")

    def on_epoch_end(self, epoch, logs=None):
        from keras_ssl import plotting  # imports matplotlib

        figure = plotting.grid(predicted(self.model, self.x, self.y))
        encoded = io.BytesIO()
        figure.savefig(encoded, format="png")
        with self.writer.as_default():
            pixels = tf.io.decode_png(encoded.getvalue(), channels=3)
            tf.summary.image("predictions", pixels[None], step=epoch)
        self.writer.flush()

    def on_train_end(self, logs=None):
        self.writer.close()


def predicted(task, x, y):
    """Computes the rows of `task.preview`, with the predictions of the task.

    Args:
        task: PretextModel.
        x, y: a batch from its `pretext`.

    Returns:
        list of lists of (pixels, caption), for `plotting.grid`.
    """
    arrays = tf.nest.map_structure(np.asarray, (x, y, task(x, training=False)))
    return task.preview(*arrays)
