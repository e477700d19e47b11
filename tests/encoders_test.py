import keras
import numpy as np
import pytest

from keras_ssl import encoders


def test_resnet18_has_the_papers_size():
    # He et al. 2016: 11.69 M parameters with the 1000-way classifier; without it (513,000) and
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


def test_uint8_and_float_pixels_give_the_same(noise):
    encoder = encoders.resnet((32, 32, 3), width=4, blocks=(1,))
    np.testing.assert_array_equal(encoder(noise[:2]), encoder(noise[:2].astype("float32")))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"input_shape": (32, 32)}, "input_shape"), ({"width": 0}, "width"), ({"blocks": ()}, "blocks"),
     ({"blocks": (1, 0)}, "blocks"), ({"stem": "large"}, "stem")],
)  # fmt: skip
def test_resnet_refuses(arguments, name):
    with pytest.raises(ValueError, match=name):
        encoders.resnet(**{"input_shape": (32, 32, 3), **arguments})


def test_wraps_resnet50(noise):
    model = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(32, 32, 3))
    encoder = encoders.from_keras(model)
    maps = model(noise[:2] / np.float32(127.5) - 1)
    np.testing.assert_allclose(encoder(noise[:2]), np.mean(maps, (1, 2)), rtol=1e-5, atol=1e-6)
    shapes = {k: v.shape[1] for k, v in encoders.stages(encoder).output.items()}
    expected = {"stage1": 64, "stage2": 256, "stage3": 512, "stage4": 1024, "stage5": 2048}
    assert shapes == {**expected, "features": 2048}
    assert encoder.get_layer("stage3").output.shape == (None, 4, 4, 512)


def test_wraps_any_functional_model_with_chosen_stages_and_preprocessing(noise):
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


def test_squeeze_and_excitation_is_no_stage():
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
    with pytest.raises(ValueError, match="fixed size"):
        encoders.from_keras(encoders.resnet((None, None, 3), width=2, blocks=(1,)))
    with pytest.raises(ValueError, match="stages.*nope"):
        encoders.from_keras(functional, stages=["nope"])
    with pytest.raises(ValueError, match="stage1"):
        encoders.stages(functional)


def test_maps_are_the_stages_before_the_mean():
    encoder = encoders.resnet((32, 48, 3), width=4, blocks=(1, 1))
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8)
    maps, stages = encoders.maps(encoder)(pictures), encoders.stages(encoder)(pictures)
    assert list(maps) == ["stage1", "stage2"]
    assert maps["stage2"].shape == (2, 16, 24, 8)
    for name, values in maps.items():
        np.testing.assert_allclose(np.mean(values, axis=(1, 2)), stages[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(32, 32, 1), (None, None, 3)])
def test_check_pictures_refuses(shape):
    with pytest.raises(ValueError, match=r"encoder must take pictures \(H, W, 3\) of fixed size"):
        encoders.check_pictures(encoders.resnet(shape, width=2, blocks=(1,)))
