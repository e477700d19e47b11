import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl


@pytest.fixture
def encoder():
    return kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,))


@pytest.fixture(scope="session")
def seeds():
    """Function from a number to the seeds of as many images, (number, 2) int64."""

    def of(number):
        return tf.stack([tf.fill(number, np.int64(3)), tf.range(number, dtype=tf.int64)], 1)

    return of


@pytest.fixture
def batch(noise):
    return {"image": noise[:6], "id": np.arange(6), "label": np.array([4, 0, 4, 1, 0, 2])}
