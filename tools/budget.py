"""Duration of training steps, and random subsets: shared by the tools that train."""

import time

import keras
import numpy as np

import keras_ssl as kssl
from keras_ssl.data.columns import random_access

TRIAL_STEPS = 60  # to measure the duration of a step


class StepClock(keras.callbacks.Callback):
    """Measures the duration of the training steps."""

    def on_train_begin(self, logs=None):
        self.times = []

    def on_train_batch_end(self, batch, logs=None):
        self.times.append(time.perf_counter())

    def seconds_per_step(self, skip=10):
        """Returns the median duration of a step, without the first ones, in which TensorFlow traces."""
        return float(np.median(np.diff(self.times[skip:])))


def epochs_within(minutes, seconds_per_epoch):
    """Returns the number of epochs that fit into a budget."""
    # 5 % less, since a run that other load slows down later must not exceed the budget.
    return max(1, int(0.95 * minutes * 60 / seconds_per_epoch))


def random_subset(images, number, seed=0):
    """Selects random images of all classes, at most `number` of them, with ids from 0 on.

    The first images of a folder with one subfolder per class would belong to few classes.
    """
    rows = np.random.default_rng(seed).permutation(int(images.cardinality()))[:number]
    part = kssl.data.subset(images, np.sort(rows))
    columns = {**part.columns, "id": np.arange(len(rows), dtype=np.int64)}
    return random_access(columns, part.load_row)
