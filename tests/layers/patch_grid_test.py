"""Images cut into overlapping patches."""

import numpy as np
import pytest

from keras_ssl import layers


def test_patches_lie_side_by_side():
    images = np.arange(2 * 8 * 9 * 2, dtype=np.float32).reshape(2, 8, 9, 2)
    layer = layers.PatchGrid(3, 2)
    found = np.asarray(layer(images))
    assert layer.grid(images.shape) == (3, 4)
    assert found.shape == (2, 9, 12, 2) == layer.compute_output_shape(images.shape)
    for row in range(3):
        for column in range(4):
            np.testing.assert_array_equal(
                found[:, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3],
                images[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3],
            )


def test_bad_arguments():
    with pytest.raises(ValueError, match="patch must be .* got 0"):
        layers.PatchGrid(0, 1)
    with pytest.raises(ValueError, match="stride must be .* got 0"):
        layers.PatchGrid(1, 0)
    with pytest.raises(ValueError, match=r"size of at least patch=9 pixels, got \(8, 32\)"):
        layers.PatchGrid(9, 4).grid((1, 8, 32, 3))
    with pytest.raises(
        ValueError, match=r"fixed size of at least patch=4 pixels, got \(None, 32\)"
    ):
        layers.PatchGrid(4, 4).grid((1, None, 32, 3))
