import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from keras_ssl.ops import masks


def seeds(number, epoch=0):
    return tf.stack([tf.fill(number, np.int64(epoch)), tf.range(number, dtype=tf.int64)], 1)


@pytest.mark.parametrize("mask", [masks.center, masks.blocks, masks.irregular])
def test_masks_are_binary_and_hide_up_to_a_quarter(mask):
    hidden = mask(seeds(50), 24, 40).numpy()
    assert hidden.shape == (50, 24, 40, 1)
    assert hidden.dtype == np.float32
    assert set(np.unique(hidden)) == {0, 1}
    fraction = hidden.mean((1, 2, 3))
    assert fraction.max() <= 0.2501
    assert fraction.min() > 0.06  # if the four blocks overlap completely
    np.testing.assert_array_equal(hidden, mask(seeds(50), 24, 40))


def test_center_hides_the_central_rectangle():
    (hidden,) = masks.center(seeds(1), 8, 12).numpy()[..., 0]
    expected = np.zeros((8, 12))
    expected[2:6, 3:9] = 1
    np.testing.assert_array_equal(hidden, expected)


@pytest.mark.parametrize("mask", [masks.blocks, masks.irregular])
def test_random_masks_differ_by_image_and_epoch_and_hide_every_pixel(mask):
    hidden = mask(seeds(300), 24, 40).numpy()[..., 0]
    assert len(np.unique(hidden.reshape(300, -1), axis=0)) == 300
    assert (mask(seeds(300, 1), 24, 40).numpy()[..., 0] != hidden).any((1, 2)).all()
    often = hidden.mean(0)
    assert often.min() > 0  # the corners are rarely within a block
    assert often.max() < 0.5


def test_blocks_are_rectangles():
    for hidden in masks.blocks(seeds(50), 24, 40).numpy()[..., 0]:
        # Four rectangles have at most eight edges per axis.
        rows = (np.diff(hidden, axis=0) != 0).any(1).sum()
        columns = (np.diff(hidden, axis=1) != 0).any(0).sum()
        assert rows <= 8
        assert columns <= 8


def test_irregular_masks_are_coherent_and_hide_exactly_a_quarter():
    for hidden in masks.irregular(seeds(50), 24, 40).numpy()[..., 0]:
        assert hidden.sum() == 240
        _, pieces = ndimage.label(hidden)
        assert pieces < 12  # connected regions, not single pixels


def test_band_matches_scipy_dilation():
    hidden = masks.irregular(seeds(5), 24, 40)
    for pixels in (1, 3):
        square = np.ones((2 * pixels + 1, 2 * pixels + 1))
        for mask, band in zip(hidden.numpy(), masks.band(hidden, pixels).numpy(), strict=True):
            grown = ndimage.binary_dilation(mask[..., 0], square)
            np.testing.assert_array_equal(band[..., 0], grown & (mask[..., 0] == 0))
    assert not masks.band(hidden, 0).numpy().any()
    np.testing.assert_array_equal(masks.band(hidden, None), 1 - hidden)
