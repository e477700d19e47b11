"""Stages, maps and patches of any encoder, and what an encoder must be."""

import re

import keras
import numpy as np
import pytest

from keras_ssl import encoders


def test_stages_pool_the_named_layers(noise):
    encoder = encoders.resnet((32, 32, 3), width=4, blocks=(1, 1))
    outputs = encoders.stages(encoder)(noise[:3])
    assert {k: v.shape[1] for k, v in outputs.items()} == {"stage1": 4, "stage2": 8, "features": 8}
    maps = keras.Model(encoder.input, encoder.get_layer("stage1").output)(noise[:3])
    np.testing.assert_allclose(outputs["stage1"], np.mean(maps, (1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(outputs["features"], encoder(noise[:3]))


def test_maps_are_the_stages_before_pooling():
    encoder = encoders.resnet((32, 48, 3), width=4, blocks=(1, 1))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8)
    maps, stages = encoders.maps(encoder)(images), encoders.stages(encoder)(images)
    assert list(maps) == ["stage1", "stage2"]
    assert maps["stage2"].shape == (2, 16, 24, 8)
    for name, values in maps.items():
        np.testing.assert_allclose(np.mean(values, axis=(1, 2)), stages[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(32, 32, 1), (None, None, 3)])
def test_check_image_shape_refuses(shape):
    with pytest.raises(ValueError, match=r"encoder must take images \(H, W, 3\) of fixed size"):
        encoders.check_image_shape(encoders.resnet(shape, width=2, blocks=(1,)))


def test_check_image_shape_refuses_other_inputs():
    vector, image = keras.Input((5,)), keras.Input((8, 8, 3))
    flat = keras.layers.Flatten()(image)
    for model, shape in (
        (keras.Model(vector, vector), "(5,)"),
        (keras.Model([image, vector], [flat, vector]), "[(None, 8, 8, 3), (None, 5)]"),
        (keras.Sequential([keras.layers.Dense(2)]), "None"),
    ):
        with pytest.raises(ValueError, match=f"fixed size, got {re.escape(shape)}"):
            encoders.check_image_shape(model)


def test_on_patches_runs_the_layers_of_the_encoder():
    encoder = encoders.resnet((32, 32, 3), width=2, blocks=(1, 1))
    small = keras.models.clone_model(
        encoder,
        input_tensors=keras.Input((8, 6, 3)),
        call_function=lambda layer, *a, **k: layer(*a, **k),
    )
    small.set_weights(encoder.get_weights())
    x = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 6, 3)).astype(np.float32)
    found = encoders.on_patches(encoder, x).numpy()
    assert found.shape == (2, 5, 4)
    np.testing.assert_allclose(
        found.reshape(10, 4), small(x.reshape(10, 8, 6, 3)), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="incompatible|shape"):
        encoder(x[0])  # Keras refuses another size


def test_check_patches_refuses():
    flat = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Conv2D(2, 3),
            keras.layers.Flatten(),
            keras.layers.Dense(4),
        ]
    )
    encoder = encoders.from_keras(flat)
    with pytest.raises(ValueError, match="encoder cannot take patches of 8x8"):
        encoders.check_patches(encoder, 8, 8)
    narrow = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(2, 9)])
    with pytest.raises(ValueError, match="encoder cannot take patches of 8x8"):
        encoders.check_patches(encoders.from_keras(narrow), 8, 8)
    only = keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.Conv2D(2, 9), keras.layers.Flatten()]
    )
    with pytest.raises(ValueError, match="must end with global average pooling"):
        encoders.check_patches(encoders.from_keras(only), 16, 16)
