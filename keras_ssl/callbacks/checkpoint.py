"""Trainings that may be killed at any moment."""

import json
import os
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np

from keras_ssl.training import distribute


class Checkpoint(keras.callbacks.Callback):
    """Saves the whole state of a training, and lets `fit` go on where it was saved.

    Give it to `PretextModel.fit` with a dataset made by `PretextModel.dataset`: where the directory has a
    checkpoint, the training goes on from the newest, in the middle of an epoch if need be, and ends with
    the weights that the uninterrupted one would have had, bit for bit on a CPU. Saved are the weights,
    the pseudo-labels and centroids, the slots of all optimisers, the states of random generators and
    metrics; the place in the data follows from the step.

    A checkpoint is one file, `step-<number>.npz`, that appears only when it is complete. A damaged one is
    passed over for the one before, with a warning. With several workers only the chief writes, and tells
    the others what it has read.

    Args:
        directory: folder; made where there is none.
        every_epochs: int, save at the end of every so many epochs, or None.
        every_steps: int, save after every so many steps as well, or None.
        keep: int, how many of the newest checkpoints stay.

    Raises:
        ValueError: a number below 1; `directory` is a file. In `fit`: the checkpoint is of another task,
            encoder, optimiser or number of steps an epoch.
        FloatingPointError: in `fit`, weights that are no longer finite; they are not saved.

    Example:
        >>> saved = Checkpoint("checkpoints", every_steps=500)                  # doctest: +SKIP
        >>> task.fit(task.dataset(images, 64, epochs=50), epochs=50, callbacks=[saved])  # doctest: +SKIP
    """

    def __init__(self, directory, every_epochs=1, every_steps=None, keep=3):
        super().__init__()
        for name, value in (
            ("every_epochs", every_epochs), ("every_steps", every_steps), ("keep", keep)
        ):  # fmt: skip
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} must be a positive whole number, got {value!r}")
        self.directory = Path(directory)
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"directory must be a folder, {str(directory)!r} is a file")
        self.every_epochs, self.every_steps, self.keep = every_epochs, every_steps, keep
        self.latest = None  # the newest good checkpoint: (step, path)

    def restore(self, task, dataset):
        """Gives a task the state of the newest good checkpoint.

        Args:
            task: PretextModel, compiled.
            dataset: what it is to be fitted on, made by `task.dataset`.

        Returns:
            int, the steps that were done; 0 without a checkpoint.

        Raises:
            ValueError: the checkpoint is of another task, encoder, optimiser or number of steps an epoch,
                or of steps that are no multiple of `steps_per_execution`.
        """
        strategy, steps_per_epoch = task.distribute_strategy, dataset.steps_per_epoch
        with strategy.scope():
            # All variables, those of the metrics too, before the first step makes them.
            task._symbolic_build(data_batch=next(iter(dataset)))
        chief = distribute.worker(strategy)[0] == 0
        variables = [*task.state(), *task.metrics_variables]
        found = self._newest() if chief else None
        problem = ""
        if found:
            step, path, arrays, meta = found
            if meta["variables"] != _described(variables):
                problem = (
                    f"{path} is of another {meta['task']}, encoder or optimiser than this "
                    f"{type(task).__name__}: give the arguments of that training, or another directory"
                )
            elif meta["steps_per_epoch"] != steps_per_epoch:
                problem = (
                    f"{path} is of a training with {meta['steps_per_epoch']} steps an epoch, this one has "
                    f"{steps_per_epoch}: give the same images and batch size, or another directory"
                )
            elif step % steps_per_epoch % task.steps_per_execution:
                problem = (
                    f"{path} cannot go on with steps_per_execution {task.steps_per_execution}: give that of "
                    "the training before"
                )
            self.latest = (step, path)
        # All workers go on alike, or stop alike.
        state = np.array([step if found else 0, bool(problem)], np.int64)
        step, refused = distribute.from_chief(strategy, [state])[0]
        if refused:
            raise ValueError(problem or "the chief has a checkpoint of another training: see there")
        if not step:
            return 0
        if not found:
            arrays = [np.zeros(v.shape, np.dtype(v.dtype)) for v in variables]
        arrays = distribute.from_chief(strategy, arrays)
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)
        # `fit` resets the metrics before the rest of the epoch.
        of_metrics = {id(v) for v in task.metrics_variables}
        self._metrics = [
            (v, a) for v, a in zip(variables, arrays, strict=True) if id(v) in of_metrics
        ]
        return int(step)

    def _newest(self):
        """(step, path, arrays, meta) of the newest checkpoint that is whole, or None."""
        for leftover in self.directory.glob(".step-*"):
            leftover.unlink()
        for path in sorted(self.directory.glob("step-*.npz"), reverse=True):
            try:
                with zipfile.ZipFile(path) as file:
                    if file.testzip() is not None:
                        raise zipfile.BadZipFile("a checksum is wrong")
                with np.load(path) as file:
                    meta = json.loads(file["meta"].tobytes())
                    arrays = [file[f"{i:05d}"] for i in range(len(meta["variables"]))]
                return meta["step"], path, arrays, meta
            except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
                warnings.warn(
                    f"checkpoint {path} is damaged ({error}): going back to the one before",
                    stacklevel=2,
                )
        return None

    def on_train_begin(self, logs=None):
        self.epoch, self.due = None, False
        self.chief = distribute.worker(self.model.distribute_strategy)[0] == 0
        if self.chief:
            self.directory.mkdir(parents=True, exist_ok=True)

    def on_epoch_begin(self, epoch, logs=None):
        if self.epoch is None:
            for variable, array in getattr(self, "_metrics", []):
                variable.assign(array)
            self._metrics = []
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.every_steps:
            done = self.epoch * self.params["steps"] + batch + 1
            last = done - self.model.steps_per_execution
            self.due = done // self.every_steps > last // self.every_steps
            # The last step of an epoch is saved once the other callbacks have seen the epoch's end.
            if self.due and batch + 1 < self.params["steps"]:
                self.save(done)

    def on_epoch_end(self, epoch, logs=None):
        if self.due or (self.every_epochs and (epoch + 1) % self.every_epochs == 0):
            self.save((epoch + 1) * self.params["steps"])

    def save(self, step):
        """Saves now.

        Args:
            step: int, the steps that have been done.

        Raises:
            FloatingPointError: a weight is not finite.
        """
        self.due = False
        variables = [*self.model.state(), *self.model.metrics_variables]
        arrays = [v.numpy() for v in variables]  # sums the metrics of all workers: each must ask
        if not self.chief:
            return
        for variable, array in zip(variables, arrays, strict=True):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise FloatingPointError(
                    f"the weights {variable.path} are no longer finite after step {step}: train anew with a "
                    f"smaller learning rate{self.last_good()}"
                )
        meta = {
            "step": step,
            "steps_per_epoch": self.params["steps"],
            "task": type(self.model).__name__,
            "variables": _described(variables),
        }
        path = self.directory / f"step-{step:09d}.npz"
        hidden = self.directory / f".{path.name}"
        with open(hidden, "wb") as file:
            encoded = np.frombuffer(json.dumps(meta).encode(), np.uint8)
            np.savez(file, meta=encoded, **{f"{i:05d}": a for i, a in enumerate(arrays)})
            file.flush()
            os.fsync(file.fileno())
        os.replace(hidden, path)
        self.latest = (step, path)
        for old in sorted(self.directory.glob("step-*.npz"))[: -self.keep]:
            old.unlink()

    def last_good(self):
        """For error messages: where the newest good checkpoint is."""
        return f"; the last good checkpoint is {self.latest[1]}" if self.latest else ""


def _described(variables):
    return [[list(v.shape), v.dtype] for v in variables]


class Resumed(keras.callbacks.CallbackList):
    """The callbacks of a training that goes on in the middle of an epoch.

    Keras always counts the steps of an epoch from 0. The ones that were done before are not run again, and
    the callbacks do not hear of them.
    """

    def __init__(self, task, callbacks, step, epochs, steps, verbose):
        super().__init__(
            callbacks, add_history=True, add_progbar=verbose != 0, model=task, verbose=verbose,
            epochs=epochs, steps=steps,
        )  # fmt: skip
        self.first_epoch, self.first = divmod(step, steps)
        task.make_train_function()
        function, left = task.train_function, self.first // task.steps_per_execution

        def train_function(iterator):
            nonlocal left
            if left:
                left -= 1
                return {}
            task.train_function = function
            return function(iterator)

        task.train_function = train_function

    def on_epoch_begin(self, epoch, logs=None):
        self.done = self.first if epoch == self.first_epoch else 0
        super().on_epoch_begin(epoch, logs)

    def on_train_batch_begin(self, batch, logs=None):
        if batch >= self.done:
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        if batch >= self.done:
            super().on_train_batch_end(batch, logs)
