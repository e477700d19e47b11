"""Trains the models of the zoo for a number of views, and records that for their cards."""

import math
import os
import platform
from pathlib import Path

import keras
import tensorflow as tf
from budget import StepClock

import keras_ssl as kssl
from keras_ssl.protocols import Describes, Relabels


def views_per_image(task, x):
    """Returns how many views of 32x32 pixels an image of an epoch costs, given a batch of `pretext`."""
    # In addition to the images there may be codes, ids or random numbers.
    parts = [part.shape[1:-1] for part in tf.nest.flatten(x) if len(part.shape) > 3]
    views = sum(math.prod(shape) for shape in parts) / 32**2
    # A query, a key, and the key of each image to be clustered.
    if isinstance(task, kssl.tasks.PCL):
        return views * 2 / 3 + 1 / 3
    if isinstance(task, Relabels) and not isinstance(task, Describes):
        return views + 1 / 3
    if isinstance(task, kssl.tasks.BYOL):  # the targets of both views
        return views * 4 / 3
    if isinstance(task, kssl.tasks.MoCo):  # one view is a query, the other a key
        return views * (4 / 3 if task.symmetric else 2 / 3)
    return views


def train_views(make, images, batch_size, options):
    """Trains a task for a number of views; returns it in float32, and the card's entries about the training.

    Args:
        make: function of a dtype policy that returns the task.
        images: dataset, as in `task.dataset`.
        batch_size: int.
        options: with the attributes `views` and `precision`.
    """
    keras.utils.clear_session()
    task, number = make(options.precision), int(images.cardinality())
    cost = views_per_image(task, next(iter(task.dataset(images, batch_size)))[0])
    epochs = max(1, round(options.views / cost / number))
    data, clock = task.dataset(images, batch_size, epochs=epochs), StepClock()
    task.compile(task.default_optimizer(epochs * data.steps_per_epoch))
    callbacks = [*task.default_callbacks(images), clock]
    history = task.fit(data, epochs=epochs, verbose=2, callbacks=callbacks).history
    plain = make("float32")
    copy_weights(task, plain)
    record = training_record(history, clock, cost, number, epochs, batch_size)
    return plain, {**record, "precision": options.precision}


def training_record(history, clock, cost, number, epochs, batch_size):
    """Returns the card's entries about a training run, a dict.

    Args:
        history: dict of the logs of all epochs.
        clock: budget.StepClock.
        cost: float, views per image, see `views_per_image`.
        number: int, images.
        epochs, batch_size: int.
    """
    views, per_second = cost * number * epochs, cost * batch_size / clock.seconds_per_step()
    return {
        "training": {key: values[-1] for key, values in history.items()},
        "views_per_second": round(per_second), "minutes": round(views / per_second / 60, 1),
        "views": round(views), "epochs": epochs, "batch_size": batch_size, "machine": machine(),
    }  # fmt: skip


def copy_weights(task, plain):
    """Copies all weights of a task to a task of another precision, which need not be built."""
    plain.build_from_config(task.get_build_config())
    plain.set_weights(task.get_weights())


def machine():
    """Describes the processor: its kind, number of cores and widest instruction set."""
    flags = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    sets = ("avx512_bf16", "avx512f", "avx2")
    return f"{os.cpu_count()} cores, {next((s for s in sets if s in flags), platform.machine())}"
