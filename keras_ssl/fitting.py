"""Steps of `PretextModel` before and after Keras' fit and predict: datasets, checks, callbacks, resuming."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from keras_ssl.callbacks import Checkpoint, Finite, Relabel
from keras_ssl.callbacks.resumed import Resumed
from keras_ssl.protocols import Relabels
from keras_ssl.training import distribute, pipeline


def all_epochs(images, task, batch_size, epochs, first_epoch, shuffle, seed, service):
    """Creates the dataset of all epochs that `PretextModel.dataset` returns.

    Args:
        images, batch_size, epochs, first_epoch, shuffle, seed, service: as in `PretextModel.dataset`.
        task: PretextModel.

    Returns:
        tf.data.Dataset of (x, y), of known length, with the attributes `steps_per_epoch`, `number`,
        `batch_size`, `shuffle`, `seed` and `images`, and the function `from_step`, which creates the batches
        starting from a step.
    """

    def from_step(step):
        data = pipeline.batches(images, task, batch_size, epochs, step, shuffle, seed, service)
        data.from_step = from_step
        return data

    number = int(images.cardinality())
    steps = -(-number // batch_size)
    length = tf.data.experimental.assert_cardinality(steps * (epochs - first_epoch))
    batches = from_step(first_epoch * steps).apply(length)
    batches.steps_per_epoch, batches.from_step = steps, from_step
    batches.number, batches.batch_size = number, batch_size
    batches.shuffle, batches.seed, batches.images = shuffle, seed, images
    return batches


def resolve_jit_compile(task, jit_compile):
    """Returns the argument `jit_compile` for Keras, where "auto" means no XLA on a CPU.

    Raises:
        ValueError: `jit_compile` is True under a strategy with several replicas.
    """
    replicas = task.distribute_strategy.num_replicas_in_sync
    if jit_compile is True and replicas > 1:
        raise ValueError(
            f"jit_compile=True does not work on {replicas} replicas, since XLA cannot reach another "
            'device\'s variables: use jit_compile="auto" or False, or a single device'
        )
    on_cpu = not tf.config.list_physical_devices("GPU")
    return False if jit_compile == "auto" and on_cpu else jit_compile


def per_worker(task, data):
    """Wraps this worker's dataset from `PretextModel.dataset`, so that Keras does not shard it again.

    Args:
        task: PretextModel.
        data: the data that Keras' `fit`, `evaluate` or `predict` receive.

    Returns:
        tf.distribute.DistributedDataset if there are several workers; other data are returned as they are.
    """
    if not hasattr(data, "from_step"):
        return data
    return distribute.per_worker(task.distribute_strategy, data)


def in_order(task, data, predicted):
    """Sorts predictions for a dataset of `PretextModel.dataset` into its order.

    Keras concatenates the replicas of each step, and replica k of n has the images k, k + n, ... of the step.

    Args:
        task: PretextModel.
        data: the data that Keras' `predict` received.
        predicted: structure of numpy arrays with the image on axis 0.

    Returns:
        The structure with sorted arrays; unchanged for one worker or other data.
    """
    if distribute.worker(task.distribute_strategy)[1] == 1 or not hasattr(data, "from_step"):
        return predicted
    rows = np.arange(len(tf.nest.flatten(predicted)[0]))
    epoch, image = np.divmod(rows, data.number)
    step, place = np.divmod(image, data.batch_size)
    replicas = task.distribute_strategy.num_replicas_in_sync
    order = np.argsort(np.lexsort((place, place % replicas, step, epoch)))
    return tf.nest.map_structure(lambda array: array[order], predicted)


def as_list(callbacks):
    """Returns the argument `callbacks` of `fit` as a new list; a keras CallbackList is returned as it is."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks
    return [callbacks] if isinstance(callbacks, keras.callbacks.Callback) else [*(callbacks or [])]


def complete_callbacks(task, callbacks):
    """Adds the callback that stops on a non-finite loss, and moves the checkpoint callback after the others.

    It saves the states of the other callbacks, which must have seen the end of the epoch.

    Args:
        task: PretextModel.
        callbacks: None, one callback, a list, or a keras CallbackList, as passed to `fit`.

    Returns:
        (callbacks, checkpoint): checkpoint is the `callbacks.Checkpoint` among them, or None.

    Raises:
        ValueError: the task has a method `relabel`, but no callback calls it.
    """
    callbacks = as_list(callbacks)
    if not isinstance(callbacks, list):
        return callbacks, None
    if isinstance(task, Relabels) and not any(isinstance(c, Relabel) for c in callbacks):
        raise ValueError(
            f"callbacks must contain a Relabel, or {type(task).__name__} has no labels: add "
            "callbacks=[keras_ssl.callbacks.Relabel(images)] with the images of the dataset"
        )
    checkpoint = next((c for c in callbacks if isinstance(c, Checkpoint)), None)
    if checkpoint is not None:
        callbacks.remove(checkpoint)
        checkpoint.callbacks = list(callbacks)
        callbacks.append(checkpoint)
    if not any(isinstance(c, keras.callbacks.TerminateOnNaN) for c in callbacks):
        callbacks.append(Finite(checkpoint))
    return callbacks, checkpoint


@contextlib.contextmanager
def released(checkpoint):
    """Releases the folder of a `callbacks.Checkpoint`, or None, when `fit` ends in any way."""
    try:
        yield
    finally:
        if checkpoint is not None:
            checkpoint.release()


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
