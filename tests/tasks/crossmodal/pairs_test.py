import numpy as np
import pytest
import tensorflow as tf

from keras_ssl.ops import depth
from keras_ssl.tasks.crossmodal import pairs


def test_image_and_depth_stay_together():
    """Depth is a function of the color, before and after, and no value is new."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 16, 24, 3), np.uint8)
    depth = image.sum(-1, keepdims=True) / np.float32(100)
    depth[0, 3, 5] = np.nan
    batch = {"image": image.repeat(200, 0), "depth": depth.repeat(200, 0)}
    ids = tf.range(200, dtype=tf.int64)
    moved, distance = (a.numpy() for a in pairs.shifted(batch, tf.stack([ids * 0, ids], 1)))
    assert moved.dtype == distance.dtype == np.float32
    known = np.isfinite(distance[..., 0])
    np.testing.assert_allclose(distance[known][:, 0], moved[known].sum(-1) / 100, rtol=1e-6)
    assert not known.all()
    np.testing.assert_array_equal((moved == image[0, 3, 5]).all(-1), ~known)
    # Shifts by up to 2 rows and 3 columns, flipped or not.
    assert (
        len(np.unique(distance[np.isfinite(distance).all((1, 2, 3))].reshape(-1, 384), axis=0))
        <= 70
    )
    assert len(np.unique(moved.reshape(200, -1), axis=0)) > 50


def test_shades_of_each_image_have_its_own_range():
    distance = tf.constant([[2.0, 4.0, 8.0, np.nan], [20.0, 20.0, 40.0, 40.0], [np.nan] * 4])
    pixels = depth.to_image(distance[..., None, None], 1.0, 100.0)
    found = pairs.shades(pixels, pixels)[..., 0, :]
    assert found[0, :3, 0].tolist() == pytest.approx([255, 147, 40], abs=2)  # 8 bits
    assert found[1, :, 0].tolist() == [255, 255, 40, 40]
    assert (found[2] == [0, 0, 120]).all()
    assert (found[0, 3] == [0, 0, 120]).all()
    # Nearer and farther than the image that it is compared with.
    other = depth.to_image(tf.constant([[1.0, 4.0, 16.0, 5.0]])[..., None, None], 1.0, 100.0)
    assert pairs.shades(other, pixels[:1])[0, :3, 0, 0].tolist() == pytest.approx(
        [255, 147, 40], abs=2
    )
