import colorsys

import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.tasks.similarity import exemplars

SIZE = 17


def seeds(number):
    return tf.stack([tf.zeros(number, tf.int64), tf.range(number, dtype=tf.int64)], 1)


def test_seed_patches_have_strong_gradients():
    image = np.full((300, 32, 32, 3), 90, np.uint8)
    image[:, 20:28, 3:11] = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    corners = exemplars.strong_corners(image, seeds(300), 8).numpy()
    assert corners.min() >= 0
    assert corners.max() <= 24
    overlap = np.prod(np.maximum(0, 8 - np.abs(corners - [20, 3])), axis=1)
    assert (overlap > 0).mean() > 0.97  # a random position overlaps in a third of the cases
    assert len(np.unique(corners, axis=0)) > 50
    np.testing.assert_array_equal(corners, exemplars.strong_corners(image, seeds(300), 8))


def test_probability_of_a_patch_is_proportional_to_squared_gradients():
    """There are two patches; one has nine times the squared gradients of the other."""
    image = np.zeros((1, 4, 5, 1), np.float32)
    image[0, :, 0] = 30  # the step between the columns 0 and 1 is in the first patch only
    image[0, :, 4] = 10  # the step between 3 and 4 in the second only
    image = np.repeat(np.repeat(image, 3, axis=-1), 4000, axis=0)
    corners = tf.function(exemplars.strong_corners)(image, seeds(4000), 4).numpy()
    vertical, horizontal = tf.image.image_gradients(tf.constant(image[:1, ..., :1]))
    energy = (vertical**2 + horizontal**2)[0, ..., 0].numpy()
    sums = np.array([energy[:, :4].sum(), energy[:, 1:].sum()])
    assert sums[0] > sums[1] > 0
    assert (corners[:, 1] == 0).mean() == pytest.approx(sums[0] / sums.sum(), abs=0.03)


def test_window_sums_for_all_sizes():
    """One patch has all squared gradients, so it is always sampled, at any position."""
    for size, (row, column) in ((5, (0, 0)), (5, (7, 11)), (12, (0, 4)), (1, (3, 9))):
        image = np.zeros((20, 12, 16, 3), np.float32)
        image[:, row + size // 2, column + size // 2] = 250.0
        corners = exemplars.strong_corners(image, seeds(20), size).numpy()
        inside = (corners <= [row + size // 2, column + size // 2]).all(1)
        inside &= (corners + size >= [row + size // 2, column + size // 2]).all(1)
        assert inside.all()
        assert corners.max(0)[0] <= 12 - size
        assert corners.max(0)[1] <= 16 - size


def test_flat_images_have_a_seed_patch():
    corners = exemplars.strong_corners(np.full((500, 12, 12, 3), 255, np.uint8), seeds(500), 8)
    assert len(np.unique(corners.numpy(), axis=0)) == 25


def affine(random, size=SIZE, side=80):
    """Fits the affine map of the patch's pixels, on an image whose channels are its coordinates."""
    number = len(random)
    image = np.zeros((number, side, side, 3), np.float32)
    image[..., 0] = np.arange(side)[:, None]
    image[..., 1] = np.arange(side)
    corners = np.tile([[30, 33]], (number, 1)).astype(np.int32)
    found = exemplars.warp(image, corners, tf.constant(random, tf.float32), size).numpy()
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1).reshape(-1, 2)
    design = np.c_[grid - (size - 1) / 2, np.ones(len(grid))]
    fits = []
    for patch in found:
        seen = patch[..., :2].reshape(-1, 2)
        solution, residue, *_ = np.linalg.lstsq(design, seen, rcond=None)
        assert residue.max() < 1e-2  # the map is affine
        fits.append(solution)
    fits = np.array(fits)  # (number, 3, 2)
    return fits[:, :2], fits[:, 2] - (corners + (size - 1) / 2)


def test_geometry_is_in_the_ranges_of_the_paper():
    matrices, moves = affine(np.random.default_rng(0).uniform(size=(300, 4)))
    scales = np.sqrt(np.linalg.det(matrices))
    angles = np.degrees(np.arctan2(matrices[:, 0, 1], matrices[:, 0, 0]))
    # Similarity transformations: rotation and scale, without shear or reflection.
    np.testing.assert_allclose(
        matrices @ matrices.transpose(0, 2, 1), scales[:, None, None] ** 2 * np.eye(2), atol=1e-3
    )
    assert 0.7 <= scales.min() < 0.72
    assert 1.37 < scales.max() <= 1.4 + 1e-4
    assert -20.01 <= angles.min() < -19
    assert 19 < angles.max() <= 20.01
    assert np.abs(moves).max() <= 0.2 * SIZE + 1e-3
    assert np.abs(moves).max() > 0.19 * SIZE
    assert np.median(scales) == pytest.approx(0.98, abs=0.05)  # log-uniform


def test_center_of_all_ranges_is_the_identity():
    image = np.random.default_rng(0).uniform(20, 230, (3, 40, 44, 3)).astype(np.float32)
    corners = np.array([[0, 0], [5, 27], [23, 9]], np.int32)
    unscaled = np.log(1 / 0.7) / np.log(1.4 / 0.7)
    random = np.tile([[0.5, 0.5, unscaled, 0.5]], (3, 1))
    found = exemplars.warp(image, corners, tf.constant(random, tf.float32), SIZE)
    expected = [image[i, r : r + SIZE, c : c + SIZE] for i, (r, c) in enumerate(corners)]
    np.testing.assert_allclose(found, expected, atol=0.01)

    same = [0.5, 0.5, 0.5, 0.5, 0.5, *[unscaled] * 2, 0.5, 0.5, 0.5]
    recolored = exemplars.recolor(found, tf.constant([same] * 3, tf.float32))
    np.testing.assert_allclose(recolored, found, atol=0.05)


def test_recolor_matches_the_formulas_of_the_paper():
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0, 255, (4, 2, 3, 3)).astype(np.float32)
    random = rng.uniform(size=(4, 10)).astype(np.float32)
    found = exemplars.recolor(pixels, tf.constant(random)).numpy()
    basis = np.array(exemplars.COMPONENTS)
    np.testing.assert_allclose(basis @ basis.T, np.eye(3), atol=1e-12)
    for i, row, column in np.ndindex(4, 2, 3):
        u = random[i].astype(float)
        contrast = 0.5 * 4 ** u[:3]
        power, factor = 0.25 * 16 ** u[3:5], 0.7 * 2 ** u[5:7]
        summand, hue = 0.2 * u[7:9] - 0.1, 0.2 * u[9] - 0.1
        x = pixels[i, row, column] / 255 - 0.5
        x = np.clip(sum(contrast[k] * (x @ basis[k]) * basis[k] for k in range(3)) + 0.5, 0, 1)
        h, s, v = colorsys.rgb_to_hsv(*x)
        s, v = np.clip(np.array([s, v]) ** power * factor + summand, 0, 1)
        expected = 255 * np.array(colorsys.hsv_to_rgb((h + hue) % 1, s, v))
        np.testing.assert_allclose(found[i, row, column], expected, atol=0.1)


def test_transform_is_in_range_and_deterministic():
    image = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    image[0], image[1] = 0, 255
    corners = np.array([[0, 0], [8, 8], [0, 8], [8, 0]] * 5, np.int32)  # at the border: mirrored
    x = exemplars.transform(image, corners, seeds(20), 24).numpy()
    assert x.shape == (20, 24, 24, 3)
    assert np.isfinite(x).all()
    assert x.min() >= 0
    assert x.max() <= 255
    np.testing.assert_array_equal(x, exemplars.transform(image, corners, seeds(20), 24))
    np.testing.assert_allclose(
        x[3:7], exemplars.transform(image[3:7], corners[3:7], seeds(20)[3:7], 24), atol=1e-2
    )


def test_noise_is_gaussian_independent_and_added_last():
    image = np.random.default_rng(0).uniform(90, 160, (50, 32, 32, 3)).astype(np.float32)
    corners = np.full((50, 2), 4, np.int32)
    plain = exemplars.transform(image, corners, seeds(50), 24).numpy()
    noisy = exemplars.transform(image, corners, seeds(50), 24, noise=4.0).numpy()
    inside = (plain > 30) & (plain < 225)  # the noise is clipped elsewhere
    added = (noisy - plain)[inside]
    assert added.mean() == pytest.approx(0, abs=0.05)
    assert added.std() == pytest.approx(4, rel=0.02)
    assert np.mean(np.abs(added) < 4) == pytest.approx(0.683, abs=0.01)
    difference = noisy - plain
    pairs = [
        (difference[:25], difference[25:]),  # images
        (difference[:, :12], difference[:, 12:]),  # pixels
        (difference[..., 0], difference[..., 2]),  # channels
    ]
    for a, b in pairs:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.03
    loud = exemplars.transform(image, corners, seeds(50), 24, noise=200.0).numpy()
    assert loud.min() == 0
    assert loud.max() == 255


@pytest.mark.parametrize("noise", [-1, 256, float("nan")])
@pytest.mark.parametrize("name", ["Exemplar", "ExemplarTriplet"])
def test_refuses_noise(name, noise):
    encoder = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,))
    arguments = {"num_images": 5} if name == "Exemplar" else {}
    with pytest.raises(ValueError, match=r"noise must be in 0..255.*got "):
        getattr(kssl.tasks, name)(encoder, noise=noise, **arguments)


def test_images_are_mirrored_at_the_border():
    image = np.zeros((1, 10, 10, 3), np.float32)
    image[..., 0] = np.arange(10)[:, None]
    unscaled = np.log(1 / 0.7) / np.log(1.4 / 0.7)
    random = tf.constant([[0.0, 0.5, unscaled, 0.5]], tf.float32)  # up by 0.2 * 10 = 2 pixels
    found = exemplars.warp(image, np.zeros((1, 2), np.int32), random, 10).numpy()[0, :, 0, 0]
    np.testing.assert_allclose(found, [1, 0, 0, 1, 2, 3, 4, 5, 6, 7], atol=1e-3)


def test_check_patch():
    def encoder(size, channels=3):
        return kssl.encoders.resnet((size, size, channels), width=2, blocks=(1,))

    assert exemplars.check_patch(encoder(96)) == 32  # as in the paper
    assert exemplars.check_patch(encoder(32)) == 24
    assert exemplars.check_patch(encoder(16)) == 16
    assert exemplars.check_patch(encoder(32), 20) == 20
    with pytest.raises(ValueError, match=r"patch must be in 1\.\.32.*33"):
        exemplars.check_patch(encoder(32), 33)
    with pytest.raises(ValueError, match="3 channels"):
        exemplars.check_patch(encoder(32, 1))
    anywhere = kssl.encoders.resnet((None, None, 3), width=2, blocks=(1,))
    with pytest.raises(ValueError, match="fixed size"):
        exemplars.check_patch(anywhere)
