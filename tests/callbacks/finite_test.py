"""Training stops at the step in which the loss becomes NaN."""

import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl


def test_a_non_finite_loss_names_the_step(images):
    """The inputs of the network become infinite in the second epoch."""
    encoder = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,))
    task = kssl.tasks.Rotation(encoder)
    task.compile("sgd")
    x, y = next(iter(task.dataset(images, 8)))
    data = tf.data.Dataset.from_tensor_slices([1.0, 1.0, 1.0, np.inf, 1.0])
    data = data.map(lambda factor: (tf.cast(x, tf.float32) * factor, y))
    with pytest.raises(
        FloatingPointError, match="loss became nan in step 2 of epoch 2: train again"
    ):
        task.fit(data.repeat(), epochs=4, steps_per_epoch=2, verbose=0)
