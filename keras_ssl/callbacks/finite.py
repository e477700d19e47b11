"""Stops training on a non-finite loss."""

import math

import keras


class Finite(keras.callbacks.Callback):
    """Stops training when the loss or a metric is NaN or infinite, with an error that names the step.

    `PretextModel.fit` adds this callback unless it is given a `keras.callbacks.TerminateOnNaN`.

    Args:
        checkpoint: callbacks.Checkpoint whose last good checkpoint the error names, or None.

    Raises:
        FloatingPointError: in `fit`, on a non-finite value; the weights are then useless.

    Example:
        >>> Finite().on_train_batch_end(4, {"loss": 0.5})
    """

    async_safe = True  # training does not wait for it
    epoch = 0

    def __init__(self, checkpoint=None):
        super().__init__()
        self.checkpoint = checkpoint

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        for name, value in (logs or {}).items():
            if not math.isfinite(value):
                last_good = self.checkpoint.last_good() if self.checkpoint else ""
                raise FloatingPointError(
                    f"{name} became {value} in step {batch + 1} of epoch {self.epoch + 1}: train "
                    "again with a smaller learning rate, or look for images that are not in "
                    f"0..255{last_good}"
                )
