import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssl.layers import Lab


def test_channels_are_those_of_scikit_image(noise):
    from skimage.color import rgb2lab

    expected = (rgb2lab(noise) - [50, 6.025, -6.6895]) / [50, 92.208, 101.1675]
    np.testing.assert_allclose(Lab("L")(noise), expected[..., :1], atol=1e-3)
    np.testing.assert_allclose(Lab("ab")(noise), expected[..., 1:], atol=1e-3)
    assert np.abs(expected).max() <= 1


def test_mixed_precision_computes_in_float32(noise):
    found = Lab("ab", dtype="mixed_bfloat16")(noise)
    assert found.dtype == tf.bfloat16
    np.testing.assert_array_equal(found, tf.cast(Lab("ab")(noise), tf.bfloat16))


def test_config_and_arguments():
    copy = keras.layers.deserialize(keras.layers.serialize(Lab("ab")))
    assert copy.channels == "ab"
    assert copy.compute_output_shape((None, 4, 5, 3)) == (None, 4, 5, 2)
    with pytest.raises(ValueError, match='channels must be "L" or "ab", got "?\'?a'):
        Lab("a")
