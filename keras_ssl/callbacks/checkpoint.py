"""Checkpoint and resume training."""

import hashlib
import json
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np

from keras_ssl.files import complete
from keras_ssl.training import configuration, distribute


class Checkpoint(keras.callbacks.Callback):
    """Saves the whole training state; `fit` resumes from it.

    Pass it to `PretextModel.fit` with a dataset of `PretextModel.dataset`. If the directory has a
    checkpoint, training resumes from the newest one, also in the middle of an epoch, and ends with the
    weights of an uninterrupted run, bit for bit on a CPU. The state consists of the weights, the
    pseudo-labels and centroids, the slots of all optimizers, and the states of random generators and
    metrics; the position in the data follows from the step.

    A checkpoint is one file, `step-<number>.npz`, which appears only when it is complete. A damaged one is
    skipped with a warning, in favor of the one before. With several workers only the chief writes, and it
    sends the others what it reads.

    Args:
        directory: folder; created if it does not exist.
        every_epochs: int, save at the end of every `every_epochs`-th epoch, or None.
        every_steps: int, also save after every `every_steps`-th step, or None.
        keep: int, number of checkpoints to keep, the newest ones.

    Raises:
        ValueError: a number is below 1, or `directory` is a file. In `fit`: the checkpoint belongs to
            another task, or one with other arguments, encoder or optimizer, or to another number of images,
            batch size, shuffling or seed.
        FloatingPointError: in `fit`, the weights are no longer finite; they are not saved.

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
        self.latest = None  # the newest valid checkpoint: (step, path)
        self.run = {}  # what a resumed run must have in common with this one

    def restore(self, task, dataset):
        """Restores a task from the newest valid checkpoint.

        Args:
            task: PretextModel, compiled.
            dataset: the training data, from `task.dataset`.

        Returns:
            int, number of steps done; 0 without a checkpoint.

        Raises:
            ValueError: the checkpoint belongs to another training run, or its step is not a multiple of
                `steps_per_execution`.
        """
        strategy = task.distribute_strategy
        with strategy.scope():
            # Creates all variables, also those of the metrics, which the first step would create.
            task._symbolic_build(data_batch=next(iter(dataset)))
        self.run = _described_run(task, dataset)
        chief = distribute.worker(strategy)[0] == 0
        variables = [*task.state(), *task.metrics_variables]
        found = self._newest() if chief else None
        problem = ""
        if found:
            step, path, arrays, meta = found
            problem = _mismatch(task, self.run, variables, path, meta)
            self.latest = (step, path)
        # Either all workers resume, or all stop.
        state = np.array([step if found else 0, bool(problem)], np.int64)
        step, refused = distribute.from_chief(strategy, [state])[0]
        if refused:
            raise ValueError(
                problem or "the chief's checkpoint belongs to another training run: see its error"
            )
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
        """Reads (step, path, arrays, meta) of the newest valid checkpoint, or None."""
        for leftover in self.directory.glob(".new-step-*"):  # of a run that was killed
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
            # After the last step of an epoch, the other callbacks see the end of the epoch first.
            if self.due and batch + 1 < self.params["steps"]:
                self.save(done)

    def on_epoch_end(self, epoch, logs=None):
        if self.due or (self.every_epochs and (epoch + 1) % self.every_epochs == 0):
            self.save((epoch + 1) * self.params["steps"])

    def save(self, step):
        """Saves a checkpoint now.

        Args:
            step: int, number of steps done.

        Raises:
            FloatingPointError: a weight is not finite.
        """
        self.due = False
        variables = [*self.model.state(), *self.model.metrics_variables]
        arrays = [
            v.numpy() for v in variables
        ]  # sums metrics over all workers, so each must call it
        if not self.chief:
            return
        for variable, array in zip(variables, arrays, strict=True):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise FloatingPointError(
                    f"the weights {variable.path} are no longer finite after step {step}: train again with a "
                    f"smaller learning rate{self.last_good()}"
                )
        meta = {
            "step": step,
            "steps_per_epoch": self.params["steps"],
            "task": type(self.model).__name__,
            **self.run,
            "variables": _described(variables),
        }
        path = self.directory / f"step-{step:09d}.npz"
        encoded = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        with complete(path) as draft:
            np.savez(draft, meta=encoded, **{f"{i:05d}": a for i, a in enumerate(arrays)})
        self.latest = (step, path)
        for old in sorted(self.directory.glob("step-*.npz"))[: -self.keep]:
            old.unlink()

    def last_good(self):
        """Names the newest valid checkpoint, for error messages."""
        return f"; the last good checkpoint is {self.latest[1]}" if self.latest else ""


def _described_run(task, dataset):
    """Returns what a resumed run must have in common with the one before, as JSON keeps it."""
    arguments = {
        name: hashlib.sha256(
            json.dumps(_without_names(keras.saving.serialize_keras_object(value))).encode()
        ).hexdigest()
        for name, value in configuration.arguments_of(task).items()
        # The layers of equal networks have different names, so their variables are compared instead.
        if name not in task.networks
    }
    return {
        "steps_per_epoch": dataset.steps_per_epoch,
        "arguments": arguments,
        "number of images": dataset.number,
        "batch_size": dataset.batch_size,
        "shuffle": bool(dataset.shuffle),
        "seed": int(dataset.seed),
    }


def _without_names(config):
    """Removes what differs between two equal layers of one process."""
    if isinstance(config, dict):
        kept = {k: v for k, v in config.items() if k not in ("name", "shared_object_id")}
        return {key: _without_names(value) for key, value in kept.items()}
    return list(map(_without_names, config)) if isinstance(config, list | tuple) else config


def _mismatch(task, run, variables, path, meta):
    """Returns why a checkpoint does not fit a training run, or an empty string."""
    name, steps_per_epoch = type(task).__name__, run["steps_per_epoch"]
    if meta["task"] != name:
        return f"{path} belongs to a training run of {meta['task']}, not of {name}: give another directory"
    saved = meta.get("arguments", run["arguments"])  # older checkpoints have none
    other = [key for key, digest in run["arguments"].items() if saved.get(key, digest) != digest]
    if other:
        return (
            f"{path} belongs to a {name} with another value of {', '.join(other)}: give the arguments of "
            "that training run, or another directory"
        )
    if meta["variables"] != _described(variables):
        return (
            f"{path} belongs to a {name} with another encoder or optimizer: give those of that training run, "
            "or another directory"
        )
    if meta["steps_per_epoch"] != steps_per_epoch:
        return (
            f"{path} belongs to a training run with {meta['steps_per_epoch']} steps per epoch, this one has "
            f"{steps_per_epoch}: give the same images and batch size, or another directory"
        )
    for key in ("number of images", "batch_size", "shuffle", "seed"):
        if meta.get(key, run[key]) != run[key]:
            return (
                f"{path} belongs to a training run with {key} {meta[key]}, this one has {run[key]}: give the "
                "same images and arguments of dataset, or another directory"
            )
    if meta["step"] % steps_per_epoch % task.steps_per_execution:
        return (
            f"{path} cannot be resumed with steps_per_execution {task.steps_per_execution}: give that of the "
            "training run before"
        )
    return ""


def _described(variables):
    return [[list(v.shape), v.dtype] for v in variables]


class Resumed(keras.callbacks.CallbackList):
    """Callbacks of a training run that is resumed in the middle of an epoch.

    Keras always counts the steps of an epoch from 0. The steps before the checkpoint are not run again, and
    the callbacks are not called for them.
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
