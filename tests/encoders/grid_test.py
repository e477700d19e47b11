"""Encoders that compute the mean features of patches."""

import keras
import numpy as np
import pytest

from keras_ssl import encoders


@pytest.fixture(scope="module")
def encoder():
    """For 6x7 patches of 4 pixels that overlap, of images of 20x24; the last row and the last two columns
    of pixels are left out."""
    keras.utils.set_random_seed(0)
    made = encoders.patch_grid((20, 24, 3), width=4, blocks=(2, 1), stride=3)
    rng = np.random.default_rng(0)
    made.set_weights([w + 0.2 * rng.normal(size=w.shape) for w in made.get_weights()])
    return made


def test_features_are_the_mean_of_those_of_the_patches(encoder, noise):
    images = noise[:2, :20, :24]
    grid = encoders.grid_of(encoder)
    assert (grid.patch, grid.stride, grid.grid((2, 20, 24, 3))) == (4, 3, (6, 7))
    patches = [images[:, i : i + 4, j : j + 4] for i in range(0, 17, 3) for j in range(0, 21, 3)]
    each = np.stack([encoders.patch_part(encoder)(patch) for patch in patches])
    assert np.median(each.std(axis=0)) > 0.1  # so that the mean could be another
    np.testing.assert_allclose(encoder(images), each.mean(axis=0), atol=1e-5)


def test_maps_of_stages_are_those_of_the_patches_side_by_side(encoder, noise):
    images = noise[:2, :20, :24]
    whole = encoders.resnet((4, 4, 3), 4, (2, 1), normalization="layer")
    whole.set_weights(encoder.get_weights())
    for name, found in encoders.maps(encoder)(images).items():
        side = found.shape[1] // 6
        assert found.shape[:3] == (2, 6 * side, 7 * side)
        row, column = 2, 4
        patch = images[:, 3 * row : 3 * row + 4, 3 * column : 3 * column + 4]
        expected = encoders.maps(whole)(patch)[name]
        part = found[:, side * row : side * (row + 1), side * column : side * (column + 1)]
        np.testing.assert_allclose(part, expected, atol=1e-5)
    pooled = encoders.stages(encoder)(images)
    np.testing.assert_allclose(pooled["stage2"], pooled["features"], atol=1e-6)


def test_it_is_saved_and_takes_part_in_mixed_precision(encoder, noise, tmp_path):
    images = noise[:2, :20, :24]
    encoder.save(tmp_path / "encoder.keras")
    copy = keras.models.load_model(tmp_path / "encoder.keras")
    np.testing.assert_allclose(copy(images), encoder(images), atol=1e-6)
    from_json = keras.models.model_from_json(encoder.to_json())
    from_json.set_weights(encoder.get_weights())
    np.testing.assert_allclose(from_json(images), encoder(images), atol=1e-6)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = encoders.patch_grid((20, 24, 3), width=4, blocks=(2, 1), stride=3)
    finally:
        keras.config.set_dtype_policy("float32")
    half.set_weights(encoder.get_weights())
    assert half(images).dtype == "float32"
    np.testing.assert_allclose(half(images), encoder(images), atol=0.1)
    assert np.abs(half(images) - encoder(images)).max() > 1e-5


def test_tasks_that_cut_patches_themselves_refuse_it(encoder):
    with pytest.raises(ValueError, match="encoder 'patch_grid' cuts its input into patches itself"):
        encoders.check_patches(encoder, 4, 4)
    encoders.check_patches(encoders.patch_part(encoder), 4, 4)


def test_a_plain_encoder_has_no_grid():
    plain = encoders.resnet((8, 8, 3), 2, (1,))
    assert encoders.grid_of(plain) is None
    assert encoders.patch_part(plain) is plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (None, 32, 3)}, r"input_shape must be .* of fixed size, got \(None, 32"),
        ({"input_shape": 32}, r"input_shape must be .* of fixed size, got 32"),
        ({"patch": 33}, r"patch must be an integer in 1\.\.32, got 33"),
        ({"patch": 0}, r"patch must be an integer in 1\.\.32, got 0"),
        ({"stride": 0}, "stride must be .* 1.*, got 0"),
        ({"blocks": 2}, "blocks must be positive integers, one per stage, got 2"),
        ({"width": 0}, "width must be a positive integer, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        encoders.patch_grid(**{"input_shape": (32, 32, 3), "width": 4, **arguments})
