"""Progress bar with throughput and remaining time."""

import shutil
import sys
import time

import keras
import numpy as np

BAR_WIDTH = 20  # characters of Keras' bar; less if the line would not fit


class Progress(keras.callbacks.ProgbarLogger):
    """Adds images/s and the remaining time of the whole training run to Keras' progress bar.

    Replaces the default bar of `fit`; `fit(verbose=...)` keeps its meaning. The two numbers are displayed but
    not added to the logs. Put this callback last, so that it shows the metrics that the others add to the
    logs.

    The throughput is measured from the first step of an epoch to the last, without relabeling and
    checkpoints between epochs; the remaining time includes them. Both exclude the first step of the run,
    in which TensorFlow traces the network. On a narrow terminal, images/s appears only at the end of the
    epoch, since a bar that wraps would fill the screen.

    Args:
        images_per_epoch: int, images in the data set.

    Raises:
        ValueError: `images_per_epoch` is below 1.

    Example:
        >>> bar = Progress(images_per_epoch=50_000)
        >>> task.fit(dataset, epochs=90, callbacks=[bar])                       # doctest: +SKIP
    """

    async_safe = True  # training does not wait for it

    def __init__(self, images_per_epoch):
        super().__init__()
        if images_per_epoch < 1:
            raise ValueError(f"images_per_epoch must be at least 1, got {images_per_epoch!r}")
        self.images_per_epoch = images_per_epoch

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        # (steps since epoch 0, time): after the first step of this run, before the first step of this
        # epoch, after the latest step.
        self.first = self.start = self.latest = None

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self.epoch, self.start = epoch, None

    def on_train_batch_begin(self, batch, logs=None):
        if self.first and self.start is None:
            self.start = self._now(batch)

    def on_train_batch_end(self, batch, logs=None):
        if self.target is not None:  # None in the first epoch of a dataset of unknown length
            self.latest = self._now(batch + 1)
            if self.first is None:
                self.first = self.start = self.latest
            self._show(logs, last=False)
        super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self._show(logs, last=True)
        super().on_epoch_end(epoch, logs)

    def _now(self, batch):
        return self.epoch * self.target + batch, time.monotonic()

    def _show(self, logs, last):
        parts = self._measurements() if self.latest else []
        if self.verbose == 1 and not last and sys.stdout.isatty():
            used = 2 * len(str(self.target)) + len("/  0:00:00 000ms/step")
            for name, value in (logs or {}).items():
                value = np.mean(value)
                used += len(
                    f" - {name}: {value:.4f}" if abs(value) > 1e-3 else f" - {name}: {value:.4e}"
                )
            room = shutil.get_terminal_size().columns - 1 - used
            while parts and len("".join(parts)) + BAR_WIDTH // 2 > room:
                parts.pop(0)
            self.progbar.width = max(1, min(BAR_WIDTH, room - len("".join(parts))))
        # Progbar writes its unit last, unchanged: "12ms/step - 812 images/s".
        self.progbar.unit_name = "step" + "".join(parts)

    def _measurements(self):
        """Returns throughput and remaining time as a list of str, each of them only if it is known."""
        parts = []
        steps, seconds = (b - a for a, b in zip(self.start, self.latest, strict=True))
        if steps > 0 and seconds > 0:
            speed = steps * self.images_per_epoch / self.target / seconds
            parts.append(f" - {speed:.0f} images/s" if speed >= 10 else f" - {speed:.2g} images/s")
        steps, seconds = (b - a for a, b in zip(self.first, self.latest, strict=True))
        remaining = self.epochs * self.target - self.latest[0]
        if steps > 0 and remaining > 0:
            left = round(seconds / steps * remaining)
            hours, minutes = divmod(left // 60, 60)
            text = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
            parts.append(f" - {text}:{left % 60:02d} left")
        return parts
