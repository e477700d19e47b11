"""Encoders from Keras models: stages, and convolutions that oneDNN miscomputes."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssl import encoders


def test_from_keras_with_resnet50(noise):
    model = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(32, 32, 3))
    encoder = encoders.from_keras(model)
    maps = model(noise[:2] / np.float32(127.5) - 1)
    np.testing.assert_allclose(encoder(noise[:2]), np.mean(maps, (1, 2)), rtol=1e-5, atol=1e-6)
    shapes = {k: v.shape[1] for k, v in encoders.stages(encoder).output.items()}
    expected = {"stage1": 64, "stage2": 256, "stage3": 512, "stage4": 1024, "stage5": 2048}
    assert shapes == {**expected, "features": 2048}
    assert encoder.get_layer("stage3").output.shape == (None, 4, 4, 512)


def test_from_keras_with_chosen_stages_and_preprocessing(noise):
    model = keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.Conv2D(2, 3, name="a"),
         keras.layers.Conv2D(3, 3, strides=2, name="b"), keras.layers.Flatten()]
    )  # fmt: skip
    encoder = encoders.from_keras(model, ["b"], keras.layers.Rescaling(1 / 255))
    np.testing.assert_allclose(encoder(noise[:2]), model(noise[:2] / np.float32(255)), atol=1e-6)
    assert encoder.get_layer("stage1").output.shape == (None, 14, 14, 3)
    copy = keras.models.model_from_json(encoder.to_json())
    copy.set_weights(encoder.get_weights())
    np.testing.assert_array_equal(copy(noise[:2]), encoder(noise[:2]))


def test_squeeze_and_excitation_is_not_a_stage():
    model = keras.applications.EfficientNetB0(
        weights=None, include_top=False, input_shape=(64, 64, 3)
    )
    encoder = encoders.from_keras(model)
    sides = [encoder.get_layer(f"stage{i}").output.shape[1] for i in range(1, 6)]
    assert sides == [32, 16, 8, 4, 2]


def test_from_keras_refuses(noise):
    functional = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3, name="a")])
    with pytest.raises(ValueError, match="functional"):
        encoders.from_keras(keras.layers.Dense(3))
    with pytest.raises(ValueError, match="model must have one output, got .*'a', 'a'"):
        encoders.from_keras(keras.Model(functional.inputs, functional.outputs * 2))
    with pytest.raises(ValueError, match="fixed size"):
        encoders.from_keras(encoders.resnet((None, None, 3), width=2, blocks=(1,)))
    with pytest.raises(ValueError, match="stages.*nope"):
        encoders.from_keras(functional, stages=["nope"])
    with pytest.raises(ValueError, match="stage1"):
        encoders.stages(functional)


def branches(dtype, inputs=4, padding="same", size=15):
    """A model with strided 1x1 convolutions, whose gradients oneDNN miscomputes."""
    kwargs = {"padding": padding, "dtype": dtype}
    x = entry = keras.Input((size, size, inputs), dtype=dtype)
    long = keras.layers.Conv2D(5, 3, 3, **{**kwargs, "padding": "same"})(x)
    long = keras.layers.Conv2D(6, 1, name="long", **kwargs)(long)
    short = keras.layers.Conv2D(6, 1, 3, name="short", activation="relu", **kwargs)(x)
    x = keras.layers.Add(dtype=dtype)([short, long])
    x = keras.layers.Conv2D(6, 1, (1, 2), name="wide", **kwargs)(x)
    x = keras.layers.DepthwiseConv2D(1, 2, name="each", **kwargs)(x)
    return keras.Model(entry, keras.layers.Flatten(dtype=dtype)(x))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [15, 16])
def test_strided_1x1_convolutions_are_replaced_equivalently(padding, size):
    # In float64, which oneDNN does not compute, so the original is correct.
    model = branches("float64", padding=padding, size=size)
    encoder = encoders.from_keras(
        model, ["short", "each"], keras.layers.Rescaling(1, dtype="float64")
    )
    x = np.random.default_rng(0).normal(size=(5, size, size, 4)).astype("float32")
    x = tf.constant(x, "float64")  # the encoder's input is float32
    results = []
    for network in (model, encoder):
        kernels = {w.path.replace("stage1", "short").replace("stage2", "each"): w.value
                   for w in network.trainable_variables}  # fmt: skip
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = network(x)
            loss = tf.reduce_sum(y * y)
        results.append((y, *tape.gradient(loss, [x, *(kernels[k] for k in sorted(kernels))])))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    layers = {layer.name: getattr(layer, "strides", None) for layer in encoder.layers}
    assert layers["stage1"] == (1, 1)
    assert layers["stage1_subsampling"] == (3, 3)
    assert layers["wide_subsampling"] == (1, 2)
    assert layers["stage2_subsampling"] == (2, 2)
    assert encoder.get_layer("stage1").output.shape == model.get_layer("short").output.shape


@pytest.mark.parametrize(("inputs", "replaced"), [(15, True), (16, False)])
def test_only_convolutions_with_few_channels_are_replaced(inputs, replaced):
    encoder = encoders.from_keras(branches("float32", inputs), ["short"])
    names = {layer.name for layer in encoder.layers}
    assert ("stage1_subsampling" in names) == replaced


def test_training_with_odd_batches_does_not_crash():
    keras.utils.set_random_seed(0)
    gradients = []
    x = np.random.default_rng(0).normal(size=(5, 33, 33, 4))
    for dtype in ("float64", "float32"):
        model = branches(dtype, size=33)
        model.set_weights([np.full(w.shape, 0.1) for w in model.weights])
        encoder = encoders.from_keras(model, ["short"], keras.layers.Rescaling(1, dtype=dtype))
        kernel = encoder.get_layer("stage1").kernel.value
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(encoder(tf.constant(x, dtype)) ** 2)
        gradients.append(tape.gradient(loss, kernel))
    np.testing.assert_allclose(*gradients, rtol=1e-4)
    task = keras.Sequential([encoder, keras.layers.Dense(3)])
    task.compile("sgd", "mse")
    for _ in range(30):
        task.train_on_batch(x, np.zeros((5, 3)))


def sequential(*layers, name):
    return keras.Sequential([keras.Input((16, 16, 3)), *layers], name=name)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (lambda: keras.layers.Conv2D(4, 1, 2, name="inner"), "'inner' in 'outer' .* MaxPooling2D"),
        (
            lambda: sequential(keras.layers.Conv2D(4, 1, 2, name="inner"), name="nested"),
            "'inner' in 'nested' .* MaxPooling2D",
        ),
        (
            lambda: keras.layers.Conv2DTranspose(4, 1, 2, name="inner"),
            "'inner' in 'outer' .* a kernel as large as its strides",
        ),
    ],
)
def test_a_task_warns_once_of_miscomputed_convolutions(layer, words):
    pool = keras.layers.GlobalAveragePooling2D()
    encoder = sequential(layer(), pool, name="outer")
    with pytest.warns(UserWarning, match=words) as found:
        encoders.check_encoder(encoder)
    encoders.check_encoder(encoder)
    assert len(found) == 1
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        encoders.check_encoder(encoders.from_keras(encoder, [encoder.layers[0].name]))
    # from_keras replaces it only in the model itself.
    assert len(found) == ("'outer' .* MaxPooling2D" not in words)


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.SeparableConv2D(4, 1, 2),
        keras.layers.Conv2DTranspose(4, 2, 2),
        keras.layers.Conv2DTranspose(16, 1, 2),
    ],
)
def test_no_warning_of_other_convolutions(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoders.check_encoder(
            sequential(layer, keras.layers.GlobalAveragePooling2D(), name="outer")
        )
