"""Checkpoint and resume training."""

import contextlib
import errno
import json
import re
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np

from keras_ssl import files
from keras_ssl.callbacks import resumed, run_description
from keras_ssl.training import distribute


class Checkpoint(keras.callbacks.Callback):
    """Saves the whole training state; `fit` resumes from it.

    Pass it to `PretextModel.fit` with a dataset of `PretextModel.dataset`. If the directory has a checkpoint,
    training resumes from the newest one, even in the middle of an epoch, and ends with the weights of an
    uninterrupted run, bit for bit on a CPU. The state consists of the weights, the pseudo-labels and
    centroids, the slots of all optimizers, and the states of random generators, metrics and callbacks that
    compare epochs (`Collapse`, `Relabel`, Keras' `EarlyStopping`, `ReduceLROnPlateau` and `ModelCheckpoint`,
    and any callback whose attribute `checkpointed` lists the names of attributes that JSON can store). The
    position in the data follows from the step. `fit` calls this callback after all others.

    A checkpoint is one file, `step-<number>.npz`, which appears only when it is complete. A damaged
    checkpoint is skipped with a warning, and the one before is used. When training saves the next one, the
    damaged file is renamed to `step-<number>.npz.damaged`. While `fit` runs, no other process can use the
    folder. With several workers, only the chief reads, writes and locks it, and it sends the checkpoint to
    the others.

    Args:
        directory: folder; created if it does not exist.
        every_epochs: int, save at the end of every `every_epochs`-th epoch, or None.
        every_steps: int, also save after every `every_steps`-th step, or None.
        keep: int, number of checkpoints to keep, the newest ones.
        override: names of arguments that may differ from the earlier training run, which then continues with
            the new value: arguments of the task and the optimizer, such as "learning_rate", "seed", "shuffle"
            and "images".

    Raises:
        ValueError: a number is below 1, or `directory` is a file. In `fit`: another process uses the folder,
            or the checkpoint belongs to another task, to other arguments, another encoder or another
            optimizer, or to other images or another batch size, shuffling or seed. Schedules of the learning
            rate may differ in length, so that a run can be continued for more epochs.
        OSError, MemoryError: in `fit`, a checkpoint cannot be read, but may be intact.
        FloatingPointError: in `fit`, the weights are no longer finite; they are not saved.

    Example:
        >>> saved = Checkpoint("checkpoints", every_steps=500)                  # doctest: +SKIP
        >>> task.fit(task.dataset(images, 64, epochs=50), epochs=50, callbacks=[saved])  # doctest: +SKIP
    """

    def __init__(self, directory, every_epochs=1, every_steps=None, keep=3, override=()):
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
        self.override = (override,) if isinstance(override, str) else tuple(override)
        self.callbacks = []  # those of this `fit`; their states are saved
        self.latest = None  # the newest valid checkpoint: (step, path)
        self.run = {}  # what a resumed run must have in common with this one
        self._lock, self._locked = contextlib.ExitStack(), False
        self._metrics, self._states = [], {}  # to restore when the first epoch begins
        self._damaged = []  # paths of files that `restore` has skipped

    def restore(self, task, dataset):
        """Restores a task from the newest valid checkpoint, and locks the directory until `release`.

        Args:
            task: PretextModel, compiled.
            dataset: the training data, from `task.dataset`.

        Returns:
            int, number of steps done; 0 without a checkpoint.

        Raises:
            ValueError: another process uses the directory, the checkpoint belongs to another training run, or
                its step is not a multiple of `steps_per_execution`.
            OSError, MemoryError: a checkpoint cannot be read, but may be intact.
        """
        strategy = task.distribute_strategy
        with strategy.scope():
            # Creates all variables, including those of the metrics, which the first step would create.
            task._symbolic_build(data_batch=next(iter(dataset)))
        variables = [*task.state(), *task.metrics_variables]
        found, problem, states = None, None, b""
        if distribute.worker(strategy)[0] == 0:
            try:
                self._hold()
                self.run = run_description.described(task, dataset, self.override)
                found = self._newest()
                if found:
                    step, path, arrays, meta = found
                    self._check(task, dataset.steps_per_epoch, variables, path, meta)
                    self.latest = (step, path)
                    states = json.dumps(meta.get("callbacks", {})).encode()
            except Exception as error:
                problem = error
        # Either all workers resume, or all stop.
        state = np.array([step if found else 0, bool(problem), len(states)], np.int64)
        step, refused, length = distribute.from_chief(strategy, [state])[0]
        if refused:
            raise problem or ValueError("the chief cannot use the checkpoints: see its error")
        if not step:
            return 0
        if not found:
            arrays = [np.zeros(v.shape, np.dtype(v.dtype)) for v in variables]
            states = bytes(length)
        *arrays, states = distribute.from_chief(
            strategy, [*arrays, np.frombuffer(states, np.uint8)]
        )
        self._states = json.loads(states.tobytes())
        # `fit` resets the metrics before the rest of the epoch; a new epoch starts without metrics of the
        # last.
        rest = step % dataset.steps_per_epoch
        of_metrics = {id(v) for v in task.metrics_variables} if rest else ()
        restored = list(zip(variables, arrays, strict=True))
        self._metrics = [(v, array) for v, array in restored if id(v) in of_metrics]
        for variable, array in restored:
            if variable.name not in self.override:  # the learning rate, unless it has a schedule
                variable.assign(array)
        return int(step)

    def _check(self, task, steps_per_epoch, variables, path, meta):
        """Raises ValueError if a checkpoint does not fit the task and its data."""
        name = type(task).__name__
        if meta["task"] != name:
            raise ValueError(
                f"{path} belongs to a training run of {meta['task']}, not of {name}: give another directory"
            )
        self.run = run_description.check(self.run, meta, path, self.override)
        if meta["variables"] != _shapes(variables):
            raise ValueError(
                f"{path} belongs to a {name} with another encoder or optimizer: give those of that training "
                "run, or another directory"
            )
        if meta["steps_per_epoch"] != steps_per_epoch:
            raise ValueError(
                f"{path} belongs to a training run with {meta['steps_per_epoch']} steps per epoch, this one "
                f"has {steps_per_epoch}: give the same images and batch size, or another directory"
            )
        if meta["step"] % steps_per_epoch % task.steps_per_execution:
            raise ValueError(
                f"{path} cannot be resumed with steps_per_execution {task.steps_per_execution}: give that of "
                "the training run before"
            )

    def _hold(self):
        """Creates and locks the directory."""
        if not self._locked:
            files.make_folder(self.directory)
            subject = f"directory {str(self.directory)!r}"
            self._lock.enter_context(files.locked(self.directory / ".lock", subject))
            self._locked = True

    def release(self):
        """Lets other processes use the directory; `fit` calls it at its end."""
        self._lock.close()
        self._locked = False

    def _newest(self):
        """Reads (step, path, arrays, meta) of the newest valid checkpoint, or None."""
        for leftover in self.directory.glob(".new-step-*"):  # of a run that was killed
            leftover.unlink()
        self._damaged = []
        for _, path in reversed(saved_in(self.directory)):
            try:
                with zipfile.ZipFile(path) as file:
                    if file.testzip() is not None:
                        raise zipfile.BadZipFile("a checksum is wrong")
                with np.load(path) as file:
                    meta = json.loads(file["meta"].tobytes())
                    arrays = [file[f"{i:05d}"] for i in range(len(meta["variables"]))]
                return meta["step"], path, arrays, meta
            except MemoryError as error:
                raise MemoryError(_unread(path, "out of memory")) from error
            except Exception as error:  # its class depends on which byte is wrong
                # A wrong position in the file raises EINVAL; the content of a file causes no other error of
                # the system.
                if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                    raise OSError(_unread(path, error.strerror)) from error
                self._damaged.append(path)
                reason = str(error) or type(error).__name__
                warnings.warn(
                    f"checkpoint {path} is damaged ({reason}): going back to the one before",
                    stacklevel=2,
                )
        return None

    def on_train_begin(self, logs=None):
        self.epoch, self.due = None, False
        self.chief = distribute.worker(self.model.distribute_strategy)[0] == 0
        if self.chief:
            self._hold()

    def on_epoch_begin(self, epoch, logs=None):
        if self.epoch is None:
            for variable, array in self._metrics:
                variable.assign(array)
            resumed.set_states(self.callbacks, self._states)
            self._metrics, self._states = [], {}
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
            **self.run,
            "step": step,
            "steps_per_epoch": self.params["steps"],
            "task": type(self.model).__name__,
            "variables": _shapes(variables),
            "callbacks": resumed.states(self.callbacks),
        }
        path = self.directory / f"step-{step:09d}.npz"
        # Some states of callbacks are NumPy numbers.
        encoded = np.frombuffer(json.dumps(meta, default=lambda v: v.item()).encode(), np.uint8)
        while self._damaged:  # not earlier: `restore` may refuse this run
            damaged = self._damaged.pop()
            damaged.rename(f"{damaged}.damaged")
        with files.complete(path) as draft:
            np.savez(draft, meta=encoded, **{f"{i:05d}": a for i, a in enumerate(arrays)})
        self.latest = (step, path)
        for _, old in saved_in(self.directory)[: -self.keep]:
            old.unlink()

    def last_good(self):
        """Names the newest valid checkpoint, for error messages."""
        return f"; the last good checkpoint is {self.latest[1]}" if self.latest else ""


def _unread(path, reason):
    return (
        f"checkpoint {path} cannot be read ({reason}), but may be whole: try again, or move it to another "
        "folder to resume from the one before"
    )


def _shapes(variables):
    return [[list(v.shape), v.dtype] for v in variables]


def saved_in(directory):
    """Lists the checkpoints in a folder.

    Args:
        directory: str or pathlib.Path of the folder, which need not exist.

    Returns:
        sorted list of (step, pathlib.Path).

    Example:
        >>> saved_in("no_such_folder")
        []
    """
    found = ((re.fullmatch(r"step-(\d+)\.npz", p.name), p) for p in Path(directory).glob("step-*"))
    return sorted((int(match[1]), path) for match, path in found if match)
