"""Twenty digits, and a task with a linear encoder, so that its training can be computed by hand."""

import keras
import pytest
import tensorflow as tf

import keras_ssl as kssl


@pytest.fixture(scope="session")
def images():
    """Twenty digits, without random access."""
    return kssl.data.digits("test").take(20)


@keras.saving.register_keras_serializable(package="tests")
class Constant(kssl.PretextModel):
    """Regresses the features of every image to the constant `target`: a collapse minimizes the loss."""

    def pretext(self, batch, seed):
        return batch["image"], tf.ones((tf.shape(batch["image"])[0], 4)) * self.target

    def call(self, x, training=False):
        return self.encoder(x, training=training)

    def default_loss(self):
        return keras.losses.MeanSquaredError()

    def default_metrics(self):
        return []


def _linear_task():
    inputs = keras.Input((32, 32, 3))
    pixels = keras.layers.Rescaling(1 / 255)(inputs)
    pooled = keras.layers.AveragePooling2D(8, name="stage1")(pixels)
    features = keras.layers.Dense(4)(keras.layers.Flatten()(pooled))
    task = Constant(keras.Model(inputs, features))
    task.target = 1.0
    return task


@pytest.fixture
def make_linear_task():
    """Returns a function that creates such a task."""
    return _linear_task


@pytest.fixture
def linear_task():
    return _linear_task()
