import numpy as np
import tensorflow as tf

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
