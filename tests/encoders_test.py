import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl import data, encoders
from keras_ssl.layers import Lab
from keras_ssl.ops import lab


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


def test_stages_pool_the_named_layers(noise):
    encoder = encoders.resnet((32, 32, 3), width=4, blocks=(1, 1))
    outputs = encoders.stages(encoder)(noise[:3])
    assert {k: v.shape[1] for k, v in outputs.items()} == {"stage1": 4, "stage2": 8, "features": 8}
    maps = keras.Model(encoder.input, encoder.get_layer("stage1").output)(noise[:3])
    np.testing.assert_allclose(outputs["stage1"], np.mean(maps, (1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(outputs["features"], encoder(noise[:3]))


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


def test_maps_are_the_stages_before_pooling():
    encoder = encoders.resnet((32, 48, 3), width=4, blocks=(1, 1))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8)
    maps, stages = encoders.maps(encoder)(images), encoders.stages(encoder)(images)
    assert list(maps) == ["stage1", "stage2"]
    assert maps["stage2"].shape == (2, 16, 24, 8)
    for name, values in maps.items():
        np.testing.assert_allclose(np.mean(values, axis=(1, 2)), stages[name], rtol=1e-4, atol=1e-5)


def test_halves_see_lightness_and_colors_only(noise):
    encoder = encoders.color_halves((32, 32, 3), width=4, blocks=(1, 1))
    colors = lab.rgb_to_lab(noise[:2]).numpy() * [0.4, 0.25, 0.25] + [30, 0, 0]  # so that all exist
    darker, gray = colors - [10, 0, 0], colors * [1, 0, 0]
    found = [np.split(encoder(lab.lab_to_rgb(x)), 2, axis=1) for x in (colors, darker, gray)]
    assert found[0][0].shape == (2, 4)
    np.testing.assert_allclose(found[1][1], found[0][1], atol=1e-3)  # colors ignore lightness
    np.testing.assert_allclose(found[2][0], found[0][0], atol=1e-3)  # and lightness colors
    assert np.abs(found[1][0] - found[0][0]).max() > 1e-2
    assert np.abs(found[2][1] - found[0][1]).max() > 1e-2


def test_halves_have_the_stages_of_a_residual_network(noise, tmp_path):
    encoder = encoders.color_halves((32, 32, 3), width=4, blocks=(2, 1, 1), stem="imagenet")
    whole = encoders.resnet((32, 32, 3), width=4, blocks=(2, 1, 1), stem="imagenet")
    maps = encoders.maps(encoder).output
    assert {k: v.shape for k, v in maps.items()} == {
        k: v.shape for k, v in encoders.maps(whole).output.items()
    }
    assert encoder.output_shape == whole.output_shape
    first, _ = np.split(encoders.stages(encoder)(noise)["stage3"], 2, axis=1)
    np.testing.assert_allclose(first, encoder(noise)[:, :8], atol=1e-5)
    encoder.save(tmp_path / "encoder.keras")
    copy = keras.models.load_model(tmp_path / "encoder.keras")
    np.testing.assert_allclose(copy(noise), encoder(noise), atol=1e-6)
    halves = [
        encoders.resnet((32, 32, 3), 2, (2, 1, 1), "imagenet", preprocessing=Lab(c))
        for c in ("L", "ab")
    ]
    assert encoder.count_params() == sum(half.count_params() for half in halves)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 5}, "width must be an even integer, half of it for each half, got 5"),
        ({"width": 0}, "width must be an even integer"),
        ({"input_shape": (32, 32, 1)}, r"input_shape must be \(height, width, 3\), RGB, got"),
        ({"preprocessing": "sobel"}, "preprocessing must be None, the halves convert to Lab"),
        ({"blocks": ()}, "blocks must be positive integers"),
    ],
)
def test_halves_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        encoders.color_halves(**{"input_shape": (32, 32, 3), "width": 4, **arguments})


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


def calibratable(axis=-1):
    """Batch normalization of two channels, a 1x1 convolution to three, and batch normalization."""
    inputs = keras.Input((3, 4, 2))
    x = keras.layers.BatchNormalization(name="first")(inputs)
    x = keras.layers.Conv2D(3, 1, name="stage1")(x)
    x = keras.layers.BatchNormalization(name="second", axis=axis)(x)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


def test_calibrate_has_the_exact_statistics_of_the_population():
    encoder, rng = calibratable(), np.random.default_rng(0)
    weights = [rng.uniform(0.5, 2, w.shape).astype("float32") for w in encoder.get_weights()]
    encoder.set_weights(weights)
    # Large means, which lose the variance if squares are averaged in float32; parts that differ.
    pixels = rng.normal(size=(23, 3, 4, 2)) * [1, 3] + [1000, -2000]
    pixels[:9] += 7
    pixels = pixels.astype("float32")
    images = tf.data.Dataset.from_tensor_slices({"image": pixels})
    found = encoders.calibrate(encoder, images, batch_size=5)

    x = pixels.astype("float64")
    first = x.mean((0, 1, 2)), x.var((0, 1, 2))
    gamma, beta = (np.float64(w) for w in weights[:2])
    x = gamma * (x - first[0]) / np.sqrt(first[1] + 1e-3) + beta
    kernel, bias = (np.float64(w) for w in encoder.get_layer("stage1").get_weights())
    # In closed form: the normalized channels have mean beta, so the second mean needs no images.
    np.testing.assert_allclose(
        (x @ kernel[0, 0] + bias).mean((0, 1, 2)), beta @ kernel[0, 0] + bias
    )
    covariance = np.cov(x.reshape(-1, 2).T, bias=True)
    second = (
        beta @ kernel[0, 0] + bias,
        np.einsum("ik,ij,jk->k", kernel[0, 0], covariance, kernel[0, 0]),
    )
    for name, (mean, variance) in (("first", first), ("second", second)):
        layer = found.get_layer(name)
        np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-3)
        for weight in ("gamma", "beta"):
            expected = getattr(encoder.get_layer(name), weight)
            np.testing.assert_array_equal(getattr(layer, weight), expected)
    for before, after in zip(weights, encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_calibrate_over_another_axis_and_whole_networks(noise):
    found = encoders.calibrate(
        calibratable(axis=1), tf.data.Dataset.from_tensor_slices({"image": noise[:, :3, :4, :2]})
    )
    assert found.get_layer("second").moving_mean.shape == (3,)
    images = data.from_array(noise)
    encoder = encoders.resnet((32, 32, 3), width=2, blocks=(1,))
    a, b = (encoders.calibrate(encoder, images, size) for size in (40, 7))
    for left, right in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)
    # In training mode the batch of all images is normalized by the same statistics.
    np.testing.assert_allclose(a(noise), encoder(noise, training=True), rtol=1e-4, atol=1e-4)


def test_calibrate_refuses_what_it_cannot_reach(noise):
    inner = calibratable()
    outer = keras.Sequential([keras.Input((3, 4, 2)), inner])
    images = tf.data.Dataset.from_tensors({"image": np.zeros((3, 4, 2), "float32")})
    with pytest.raises(ValueError, match="must contain its layer '.*' directly"):
        encoders.calibrate(outer, images)
    with pytest.raises(ValueError, match="at least one image"):
        encoders.calibrate(inner, images.take(0))
