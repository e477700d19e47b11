"""Residual networks, with batch and with layer normalization."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl import encoders


def test_resnet18_has_the_number_of_parameters_of_the_paper():
    # He et al. 2016: 11.69 M parameters with the 1000-way classifier. Without it (513,000), and
    # with BatchNormalization's moving statistics counted (9,600) that is 11,186,112.
    encoder = encoders.resnet((None, None, 3), stem="imagenet")
    assert encoder.count_params() == 11_689_512 - 513_000 + 9_600
    assert encoder.output_shape == (None, 512)


@pytest.mark.parametrize(("stem", "first"), [("small", 32), ("imagenet", 8)])
def test_stages_are_named_and_halve_the_resolution(stem, first):
    encoder = encoders.resnet((32, 32, 3), width=4, blocks=(1, 2, 1), stem=stem)
    for i, channels in enumerate((4, 8, 16)):
        side = first // 2**i
        assert encoder.get_layer(f"stage{i + 1}").output.shape == (None, side, side, channels)


def test_uint8_and_float_pixels_give_equal_features(noise):
    encoder = encoders.resnet((32, 32, 3), width=4, blocks=(1,))
    np.testing.assert_array_equal(encoder(noise[:2]), encoder(noise[:2].astype("float32")))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"input_shape": (32, 32)}, "input_shape"), ({"width": 0}, "width"), ({"blocks": ()}, "blocks"),
     ({"blocks": (1, 0)}, "blocks"), ({"stem": "large"}, "stem"),
     ({"normalization": "group"}, 'normalization must be "batch" or "layer", got \'group\'')],
)  # fmt: skip
def test_resnet_refuses(arguments, name):
    with pytest.raises(ValueError, match=name):
        encoders.resnet(**{"input_shape": (32, 32, 3), **arguments})


@pytest.fixture(scope="module")
def layer_normalized():
    keras.utils.set_random_seed(0)
    return encoders.resnet(
        (32, 32, 3), width=4, blocks=(1, 1), synchronized=True, normalization="layer"
    )


def test_layer_normalization_has_the_layers_of_batch_normalization(layer_normalized):
    batch = encoders.resnet((32, 32, 3), width=4, blocks=(1, 1))
    shapes = [[w.shape for w in e.trainable_weights] for e in (layer_normalized, batch)]
    assert shapes[0] == shapes[1]
    assert layer_normalized.non_trainable_weights == []
    assert not [v for v in layer_normalized.layers if "batch" in type(v).__name__.lower()]


def test_layer_normalized_features_do_not_depend_on_the_batch(layer_normalized, noise):
    together = layer_normalized(noise[:6], training=True)
    others = np.concatenate([noise[:3], 255 - noise[3:9] // 4])
    np.testing.assert_allclose(
        layer_normalized(others, training=True)[:3], together[:3], rtol=1e-6, atol=1e-6
    )
    np.testing.assert_array_equal(layer_normalized(noise[:6]), together)
    # With batch normalization they do.
    batch = encoders.resnet((32, 32, 3), width=4, blocks=(1,))
    differences = batch(others, training=True)[:3] - batch(noise[:6], training=True)[:3]
    assert np.abs(differences).max() > 0.1


def test_layer_normalization_is_that_of_a_map_over_channels_and_positions(layer_normalized, noise):
    first = next(v for v in layer_normalized.layers if "Group" in type(v).__name__)
    first.gamma.assign([1, 2, 3, 4])
    first.beta.assign([0, 1, -1, 5])
    before, after = keras.Model(layer_normalized.input, [first.input, first.output])(noise[:3])
    for x, y in zip(before.numpy().astype("float64"), after.numpy(), strict=True):
        expected = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * [1, 2, 3, 4] + [0, 1, -1, 5]
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    first.gamma.assign([1] * 4)
    first.beta.assign([0] * 4)


def test_layer_normalization_takes_patches_of_other_sizes(layer_normalized, noise):
    patches = noise[:2, None, 3:10, 5:12]
    found = encoders.on_patches(layer_normalized, patches, training=True)
    small = encoders.resnet((7, 7, 3), width=4, blocks=(1, 1), normalization="layer")
    small.set_weights(layer_normalized.get_weights())
    np.testing.assert_allclose(found[:, 0], small(patches[:, 0]), rtol=1e-4, atol=1e-5)


def test_layer_normalized_encoder_is_exported_and_loaded(layer_normalized, noise, tmp_path):
    task = kssl.tasks.Rotation(layer_normalized)
    found = kssl.load(kssl.export(task, tmp_path / "rotation_noise"))
    np.testing.assert_allclose(found(noise[:3]), layer_normalized(noise[:3]), rtol=1e-5, atol=1e-5)


def test_layer_normalization_in_xla_and_mixed_precision(layer_normalized, noise):
    expected = layer_normalized(noise[:3]).numpy()
    compiled = tf.function(layer_normalized, jit_compile=True)(noise[:3].astype("float32"))
    np.testing.assert_allclose(compiled, expected, rtol=1e-4, atol=1e-5)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = encoders.resnet((32, 32, 3), width=4, blocks=(1, 1), normalization="layer")
    finally:
        keras.config.set_dtype_policy("float32")
    half.set_weights(layer_normalized.get_weights())
    np.testing.assert_allclose(half(noise[:3]), expected, rtol=2e-2, atol=2e-3)
    # The squares of these numbers overflow float16.
    large = next(v for v in half.layers if "Group" in type(v).__name__)
    x = np.float16([[[[6e4, -6e4, 3e4, 0.0]]]])
    found = large(x)
    assert found.dtype == tf.float16
    wide = x.astype("float64")
    np.testing.assert_allclose(found, (wide - wide.mean()) / wide.std(), rtol=2e-3)
