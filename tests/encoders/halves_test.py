"""Encoders whose halves see lightness and colors."""

import keras
import numpy as np
import pytest

from keras_ssl import encoders
from keras_ssl.layers import Lab
from keras_ssl.ops import lab


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
        ({"input_shape": 32}, r"input_shape must be \(height, width, 3\), RGB, got 32"),
        ({"blocks": 2}, "blocks must be positive integers, one per stage, got 2"),
        ({"input_shape": (32, 32, 1)}, r"input_shape must be \(height, width, 3\), RGB, got"),
        ({"preprocessing": "sobel"}, "preprocessing must be None, the halves convert to Lab"),
        ({"blocks": ()}, "blocks must be positive integers"),
    ],
)
def test_halves_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        encoders.color_halves(**{"input_shape": (32, 32, 3), "width": 4, **arguments})
