"""Extraction of features keeps the order and the columns."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_ssl as kssl
from keras_ssl import evaluation
from keras_ssl.evaluation.extract import map_batches


def test_extract_keeps_order_and_stages(task, noise):
    columns, others = evaluation.extract(task.encoder, kssl.data.from_array(noise, range(40)), 16)
    np.testing.assert_allclose(columns["features"], task.features(noise), rtol=1e-4, atol=1e-5)
    assert {k: v.shape for k, v in columns.items()} == {
        "stage1": (40, 4), "stage2": (40, 8), "features": (40, 8),
    }  # fmt: skip
    assert others["id"].tolist() == others["label"].tolist() == list(range(40))


def test_columns_in_pixels_are_not_collected(task, noise):
    images = kssl.data.from_array(noise[:9], frames=noise[:9, None], motion=np.ones((9, 6)))
    _, others = evaluation.extract(task.encoder, images)
    assert {k: v.shape for k, v in others.items()} == {"id": (9,), "motion": (9, 6)}


def test_batches_of_a_dataset_and_of_a_list(capfd):
    numbers = np.arange(7.0)
    batches = tf.data.Dataset.from_tensor_slices(numbers).batch(3)
    found = map_batches(lambda x: {"half": x / 2, "same": x}, batches, verbose=1)
    assert "3/3" in capfd.readouterr().out
    np.testing.assert_array_equal(found["half"], numbers / 2)
    np.testing.assert_array_equal(map_batches(tf.square, [numbers[:4], numbers[4:]]), numbers**2)


def test_traces_the_encoder_once_for_batches_of_all_sizes(noise):
    calls = []

    class Counted(layers.Layer):
        def call(self, inputs):
            calls.append(inputs.shape)
            return inputs

    inputs = keras.Input((32, 32, 3))
    maps = layers.Conv2D(2, 3, name="stage1")(Counted()(inputs))
    encoder = keras.Model(inputs, layers.GlobalAveragePooling2D()(maps))
    before = len(calls)
    images = kssl.data.from_array(noise)
    features, others = kssl.evaluation.extract(encoder, images, batch_size=16)
    assert len(calls) - before == 1  # batches of 16, 16 and 8
    np.testing.assert_allclose(features["features"], encoder(noise), rtol=1e-5, atol=1e-5)
    assert others["id"].tolist() == list(range(40))
