"""Preparation of `PretextModel.fit`: checks its arguments, completes callbacks, resumes checkpoints."""

import keras

from keras_ssl.callbacks import Checkpoint, Finite, Relabel
from keras_ssl.callbacks.checkpoint import Resumed
from keras_ssl.protocols import Relabels


def complete_callbacks(task, callbacks):
    """Adds the callback that stops on a non-finite loss, and finds the checkpoint callback.

    Args:
        task: PretextModel.
        callbacks: None, a list, or a keras CallbackList, as passed to `fit`.

    Returns:
        (callbacks, checkpoint): checkpoint is the `callbacks.Checkpoint` among them, or None.

    Raises:
        ValueError: the task has a method `relabel`, but no callback calls it.
    """
    if callbacks is not None and not isinstance(callbacks, list | tuple):
        return callbacks, None
    callbacks = list(callbacks or [])
    if isinstance(task, Relabels) and not any(isinstance(c, Relabel) for c in callbacks):
        raise ValueError(
            f"callbacks must contain a Relabel, or {type(task).__name__} has no labels: add "
            "callbacks=[keras_ssl.callbacks.Relabel(images)] with the images of the dataset"
        )
    checkpoint = next((c for c in callbacks if isinstance(c, Checkpoint)), None)
    if not any(isinstance(c, keras.callbacks.TerminateOnNaN) for c in callbacks):
        callbacks.append(Finite(checkpoint))
    return callbacks, checkpoint


def check_epochs(dataset, epochs, initial_epoch, steps_per_execution):
    """Validates that a dataset of `PretextModel.dataset` fits the arguments of `fit`.

    Args:
        dataset: tf.data.Dataset with the attribute `steps_per_epoch`.
        epochs, initial_epoch: int, as in Keras.
        steps_per_execution: int, as in Keras.

    Raises:
        ValueError: the dataset has another number of epochs, or `steps_per_execution` does not divide the
            steps of an epoch.
    """
    steps = dataset.steps_per_epoch
    held, asked = int(dataset.cardinality()) // steps, epochs - initial_epoch
    if held != asked:
        raise ValueError(
            f"fit(epochs={epochs}, initial_epoch={initial_epoch}) runs {asked} epochs, but "
            f"the dataset holds {held}: give dataset() and fit() the same epochs"
        )
    if steps % steps_per_execution:
        raise ValueError(
            f"steps_per_execution {steps_per_execution} must divide the {steps} steps of an epoch"
        )


def resume(task, dataset, callbacks, checkpoint, epochs, initial_epoch, verbose):
    """Restores the newest checkpoint, and lets the dataset start at the step after it.

    Args:
        task: PretextModel, compiled.
        dataset: tf.data.Dataset of `PretextModel.dataset`.
        callbacks: list of keras.callbacks.Callback.
        checkpoint: callbacks.Checkpoint.
        epochs, initial_epoch, verbose: as in Keras.

    Returns:
        (dataset, callbacks, initial_epoch) for Keras' `fit`; initial_epoch is `epochs` if training is
        complete.

    Raises:
        ValueError: the checkpoint does not fit the task.
    """
    steps = dataset.steps_per_epoch
    step = max(checkpoint.restore(task, dataset), initial_epoch * steps)
    if initial_epoch * steps < step < epochs * steps:
        callbacks = Resumed(task, callbacks, step, epochs, steps, verbose)
        dataset = dataset.from_step(step)
    return dataset, callbacks, step // steps
