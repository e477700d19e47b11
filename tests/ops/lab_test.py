import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage import color

from keras_ssl.ops import lab

CUBE = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3, indexing="ij"), -1).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_lab_matches_scikit_image(dtype):
    expected = color.rgb2lab(CUBE)
    found = lab.rgb_to_lab(CUBE.astype(dtype)).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-3)
    np.testing.assert_allclose(lab.lab_to_rgb(expected), CUBE, atol=0.05)


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 4), st.just(3))))
def test_round_trip(image):
    np.testing.assert_allclose(lab.lab_to_rgb(lab.rgb_to_lab(image)), image, atol=0.1)


def test_colors_outside_srgb_are_clipped():
    found = np.array([[50, 120, -120], [-20, 0, 0], [130, 0, 0], [0, 80, 80]], np.float32)
    rgb = lab.lab_to_rgb(found).numpy()
    assert np.isfinite(rgb).all()
    assert rgb.min() >= 0
    assert rgb.max() <= 255


def test_gradients_are_finite_everywhere():
    """Also at black, where the gamma curve and the cube root could have infinite derivatives."""
    rgb = tf.constant([[0.0, 0.0, 0.0], [255.0, 255.0, 255.0], [0.0, 255.0, 3.0]])
    with tf.GradientTape() as tape:
        tape.watch(rgb)
        result = lab.lab_to_rgb(lab.rgb_to_lab(rgb))
    assert np.isfinite(tape.gradient(result, rgb)).all()


def test_bins_cover_exactly_the_srgb_gamut():
    bins = lab.ab_bins()
    ab = color.rgb2lab(CUBE)[..., 1:].reshape(-1, 2)
    rounded = {tuple(c) for c in np.round(ab / 10) * 10}
    assert rounded <= {tuple(b) for b in bins}
    # An sRGB color is in every bin, hence no farther away than its corners.
    fine = np.stack(np.meshgrid(*[np.linspace(0, 1, 64)] * 3, indexing="ij"), -1)
    ab = color.rgb2lab(fine)[..., 1:].reshape(-1, 2)
    nearest = [np.abs(ab - b).max(-1).min() for b in bins]
    assert max(nearest) < 5.6
    assert len(np.unique(bins, axis=0)) == len(bins) == 262


def test_distances_match_numpy():
    ab = np.random.default_rng(0).uniform(-110, 110, (3, 5, 2)).astype(np.float32)
    expected = ((ab[..., None, :] - lab.ab_bins()) ** 2).sum(-1)
    np.testing.assert_allclose(lab.distances(ab), expected, rtol=1e-4, atol=0.05)
