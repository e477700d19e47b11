import keras
import numpy as np
from keras import layers

import keras_ssl as kssl


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
