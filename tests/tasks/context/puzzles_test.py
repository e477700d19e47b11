"""Puzzles of tiles: sizes, checks and previews."""

import numpy as np
import pytest

import keras_ssl as kssl
from keras_ssl.tasks.context import puzzles


def test_mosaic_is_row_major():
    tiles = np.arange(4)[:, None, None, None] * np.ones((4, 2, 2, 1))
    expected = [
        [0, 0, 255, 1, 1],
        [0, 0, 255, 1, 1],
        [255] * 5,
        [2, 2, 255, 3, 3],
        [2, 2, 255, 3, 3],
    ]
    np.testing.assert_array_equal(puzzles.mosaic(tiles)[..., 0], expected)


def test_check_tiles_defaults_to_the_proportions_of_the_paper():
    encoder = kssl.encoders.resnet((225, 225, 3), width=2, blocks=(1,))
    assert puzzles.check_tiles(encoder, 3) == (64, 2)
    small = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,))
    assert puzzles.check_tiles(small, 3) == (9, 0)
    assert puzzles.check_tiles(small, 2) == (14, 0)
    for arguments, words in (
        ((4,), "grid must be 2 or 3"),
        ((3, 11), "cells of 32x32 images have 10 pixels"),
        ((3, 8, 2), "tile 8 with jitter 2"),
        ((2, 0), "tile 0"),
        ((2, 8, -1), "jitter -1"),
    ):
        with pytest.raises(ValueError, match=words):
            puzzles.check_tiles(small, *arguments)
    anywhere = kssl.encoders.resnet((None, None, 3), width=2, blocks=(1,))
    with pytest.raises(ValueError, match="fixed height and width"):
        puzzles.check_tiles(anywhere, 3)


def test_check_gray():
    encoder = kssl.encoders.resnet((32, 32, 1), width=2, blocks=(1,))
    puzzles.check_gray(encoder, 0)
    with pytest.raises(ValueError, match="3 channels"):
        puzzles.check_gray(encoder, 0.3)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        puzzles.check_gray(encoder, 1.5)
