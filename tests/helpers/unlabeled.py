"""A training step on images without any label."""

import keras
import numpy as np


def check_learns_nothing(task, x, y):
    """Checks that a step with a batch of `pretext` has loss 0 and changes no trainable weight."""
    task.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    task(x)
    before = [v.numpy() for v in task.trainable_variables]
    logs = task.train_on_batch(x, y, return_dict=True)
    assert float(logs["loss"]) == 0
    for v, old in zip(task.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(v, old)
