import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from keras_ssl.ops import augment, filters, random, recipes
from keras_ssl.ops.recipes import Recipe

CROP = Recipe(area=(0.08, 1.0), aspect=(3 / 4, 4 / 3))


def seeds(number, epoch=3):
    return tf.stack(
        [tf.fill((number,), tf.constant(epoch, tf.int64)), tf.range(number, dtype=tf.int64)], 1
    )


def repeated(image, number):
    return np.repeat(image[None], number, axis=0)


def ramps(height, width):
    """Row, column and their sum: the pixels of a crop determine its position."""
    y, x = np.mgrid[:height, :width].astype("float32")
    return np.stack([y, x, y + x], -1)


def rate(changed, image):
    return (np.abs(np.asarray(changed) - image).reshape(len(changed), -1).max(1) > 1e-3).mean()


@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([np.uint8, np.float32]))
@settings(max_examples=15, deadline=None)
def test_a_recipe_with_everything_off_changes_nothing(height, width, dtype):
    image = np.random.default_rng(0).integers(0, 256, (3, height, width, 3)).astype(dtype)
    view = augment.view(image, seeds(3), Recipe())
    assert view.dtype == tf.float32
    np.testing.assert_allclose(view, image, atol=1e-4)


PUBLISHED = {name: r for name, r in vars(recipes).items() if isinstance(r, Recipe)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_image_gets_the_same_in_any_batch(name, noise):
    together = augment.view(noise, seeds(40), PUBLISHED[name]).numpy()
    assert together.min() >= 0
    assert together.max() <= 255
    assert rate(together, noise) > 0.7
    for rows in ([7], [39, 3, 7, 20, 11]):
        part = augment.view(noise[rows], tf.gather(seeds(40), rows), PUBLISHED[name])
        np.testing.assert_allclose(part, together[rows], atol=1e-3)


@pytest.mark.parametrize("shape", [(16, 32, 32, 3), (None, None, None, 3)])
def test_eager_equals_a_dataset(shape, noise):
    recipe = dataclasses.replace(recipes.BYOL_2, blur=0.5)
    data = tf.data.Dataset.from_tensor_slices((noise, seeds(40))).batch(16)

    @tf.function(
        input_signature=[tf.TensorSpec(shape, tf.uint8), tf.TensorSpec((None, 2), tf.int64)]
    )
    def make(image, seed):
        return augment.view(image, seed, recipe)

    data = data.take(2) if shape[0] else data  # the last one has 8
    views = np.concatenate(list(data.map(make, tf.data.AUTOTUNE)))
    expected = augment.view(noise, seeds(40), recipe)[: len(views)]
    np.testing.assert_allclose(views, expected, atol=1e-3)
    assert make.get_concrete_function().structured_outputs.shape.as_list() == list(shape)


def test_two_views_of_split_seeds_are_unrelated():
    image = repeated(ramps(33, 33), 2000)
    crops = [
        augment.view(image, seed, CROP).numpy()[:, 0, 0, :2].T
        for seed in random.split(seeds(2000), 2)
    ]
    assert np.abs(np.corrcoef(np.concatenate(crops))[:2, 2:]).max() < 5 / 2000**0.5


def crops_of(recipe, height, width, number):
    """Fractions of height and width, top, left, and whether it is mirrored, read off the pixels."""
    view = augment.view(repeated(ramps(height, width), number), seeds(number), recipe).numpy()
    np.testing.assert_allclose(view[..., 2], view[..., 0] + view[..., 1], atol=1e-3)
    first, last = view[:, 0, 0, :2], view[:, -1, -1, :2]
    sides = np.abs(last - first) / [height - 1, width - 1]
    start = np.minimum(first, last) / [height - 1, width - 1]
    return sides, start, first[:, 1] > last[:, 1]


def rejection_loop(recipe, height, width, number):
    """torchvision's RandomResizedCrop.get_params, without rounding to pixels."""
    rng, sides = np.random.default_rng(0), []
    while len(sides) < number:
        area = height * width * rng.uniform(*recipe.area)
        aspect = np.exp(rng.uniform(*np.log(recipe.aspect)))
        side = np.sqrt([area / aspect, area * aspect]) / [height, width]
        if (side <= 1).all():
            sides.append(side)
    return np.array(sides)


@pytest.mark.parametrize(
    ("recipe", "height", "width"),
    [
        (CROP, 33, 33),
        (CROP, 25, 41),
        (dataclasses.replace(CROP, area=(0.5, 1.0), aspect=(0.5, 2.0)), 33, 33),
    ],
)
def test_crops_are_distributed_as_by_the_rejection_loop(recipe, height, width):
    sides, start, _ = crops_of(recipe, height, width, 3000)
    expected = rejection_loop(recipe, height, width, 3000)
    for function in (lambda s: s.prod(1), lambda s: s[:, 1] / s[:, 0], lambda s: s[:, 0]):
        assert stats.ks_2samp(function(sides), function(expected)).pvalue > 1e-3
    # The position is uniform in the range that the size leaves.
    free = (sides < 0.95).all(1)
    place = start[free] / (1 - sides[free])
    for axis in (0, 1):
        assert stats.kstest(place[:, axis], "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(place.T)[0, 1]) < 5 / free.sum() ** 0.5


def test_a_crop_that_cannot_fit_is_the_largest_allowed_in_the_middle():
    large = dataclasses.replace(CROP, area=(0.999, 1.0))
    sides, start, _ = crops_of(dataclasses.replace(large, aspect=(1.3, 1.4)), 40, 40, 4)
    np.testing.assert_allclose(sides, [[1 / 1.3, 1]] * 4, rtol=1e-5)
    np.testing.assert_allclose(start, [[0.15 / 1.3, 0]] * 4, atol=1e-5)
    sides, start, _ = crops_of(large, 20, 40, 4)  # 2:1, cut to 4:3
    np.testing.assert_allclose(sides, [[1, 2 / 3]] * 4, rtol=1e-5)
    np.testing.assert_allclose(start, [[0, 1 / 6]] * 4, atol=1e-5)


def test_flip_mirrors_at_its_rate():
    *_, mirrored = crops_of(dataclasses.replace(CROP, flip=0.3), 17, 17, 2000)
    assert abs(mirrored.mean() - 0.3) < 5 * (0.21 / 2000) ** 0.5
    image = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), np.uint8)
    view = augment.view(image, seeds(2), Recipe(flip=1.0))
    np.testing.assert_allclose(view, image[:, :, ::-1], atol=1e-4)


@pytest.mark.parametrize("change", ["gray", "blur", "solarize", "jitter"])
@pytest.mark.parametrize("probability", [0.2, 0.7])
def test_changes_come_at_their_rate(change, probability):
    image = np.random.default_rng(0).integers(0, 256, (2000, 4, 4, 3)).astype("float32")
    recipe = Recipe(**{change: probability, "sigma": (1.0, 1.0)})
    if change == "jitter":
        recipe = dataclasses.replace(recipe, hue=0.5)
    found = rate(augment.view(image, seeds(2000), recipe), image)
    assert abs(found - probability) < 5 * (probability * (1 - probability) / 2000) ** 0.5


def test_changes_are_drawn_independently():
    image = np.random.default_rng(0).integers(0, 256, (2000, 4, 4, 3)).astype("float32")
    drawn = []
    for change in ("gray", "blur", "solarize", "flip"):
        view = augment.view(image, seeds(2000), Recipe(**{change: 0.5, "sigma": (1.0, 1.0)}))
        drawn.append(np.abs(view - image).reshape(2000, -1).max(1) > 1)
    correlation = np.corrcoef(drawn)[np.triu_indices(4, 1)]
    assert np.abs(correlation).max() < 5 / 2000**0.5


@given(st.integers(0, 999), st.integers(2, 20), st.integers(2, 20), st.floats(0.05, 1))
@settings(max_examples=25, deadline=None)
def test_blur_equals_scipy(seed, height, width, kernel):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (3, height, width, 3)).astype("float32")
    sigma = np.array([0.1, 1.0, 2.5], np.float32)
    radius = max(int(kernel * height / 2 + 1e-6), 1)
    for one, s, found in zip(image, sigma, filters.blur(image, sigma, kernel), strict=True):
        for axis, length in ((0, height), (1, width)):
            reach = min(radius, length - 1)
            one = ndimage.gaussian_filter1d(one, s, axis, mode="mirror", radius=reach)
        np.testing.assert_allclose(found, one, atol=0.01)


def test_blur_has_the_kernel_of_the_sources():
    """10 % of the height, as in the code of SimCLR and BYOL: 23 pixels of 224."""
    impulse = np.zeros((1, 224, 224, 3), np.float32)
    impulse[0, 100, 100] = 255 * 100
    blurred = filters.blur(impulse, tf.constant([50.0]), 0.1)[0, ..., 0].numpy()
    assert (blurred > 0).sum() == 23 * 23


@given(st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_gray_is_idempotent_and_equal_in_all_channels(seed):
    image = np.random.default_rng(seed).integers(0, 256, (2, 3, 5, 3)).astype("float32")
    once = filters.to_gray(image).numpy()
    np.testing.assert_array_equal(once, once[..., :1].repeat(3, -1))
    np.testing.assert_allclose(once[..., 0], image @ np.float32([0.299, 0.587, 0.114]), atol=1e-3)
    np.testing.assert_allclose(filters.to_gray(once), once, atol=1e-3)


def test_solarize_inverts_from_the_threshold_on():
    image = np.arange(0, 256, 5, dtype=np.float32)
    expected = [v if v < 128 else 255 - v for v in image]
    np.testing.assert_array_equal(filters.solarize(image, 128), expected)


@pytest.mark.parametrize(
    ("image", "seed", "message"),
    [
        (np.zeros((2, 8, 8, 1)), seeds(2), r"image.*\(2, 8, 8, 1\)"),
        (np.zeros((8, 8, 3)), seeds(1), r"image.*\(8, 8, 3\)"),
        (np.zeros((2, 8, 8, 3)), seeds(2)[0], r"seed.*\(2,\)"),
    ],
)
def test_bad_arguments(image, seed, message):
    with pytest.raises(ValueError, match=message):
        augment.view(image, seed, recipes.CMC)


def test_random_shift_shifts_by_whole_pixels_and_flips():
    seeds = tf.stack([tf.zeros(64, tf.int64), tf.range(64, dtype=tf.int64)], 1)
    x = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    moved = augment.random_shift(np.stack([x] * 64), seeds, fraction=0.25, flip=True).numpy()
    padded = np.pad(x, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    possible = {
        padded[i : i + 8, j : j + 8][:, ::step].tobytes(): (i, j, step)
        for i in range(5)
        for j in range(5)
        for step in (1, -1)
    }
    found = {possible[m.tobytes()] for m in moved}  # KeyError: not one of the 50 possible images
    assert len(found) > 25
    still = augment.random_shift(x[None], seeds[:1], fraction=0, flip=False)
    np.testing.assert_array_equal(still[0], x)


def test_random_crop_keeps_the_requested_area():
    """On a ramp, the slopes of the crop give the fraction of height and width that is kept."""
    y, x = np.meshgrid(np.arange(33.0), np.arange(33.0), indexing="ij")
    ramps = np.tile(np.stack([y, x, x], -1)[None], (200, 1, 1, 1)).astype("float32")
    crops = augment.random_crop(ramps, seeds(200), smallest=0.25).numpy()
    heights = (crops[:, -1, 0, 0] - crops[:, 0, 0, 0]) / 32
    widths = (crops[:, 0, -1, 1] - crops[:, 0, 0, 1]) / 32
    assert 0.35 < (widths < 0).mean() < 0.65  # mirrored
    areas = heights * np.abs(widths)
    assert areas.min() > 0.2499
    assert areas.max() > 0.8
    ratios = heights / np.abs(widths)
    assert ratios.min() > 0.74
    assert ratios.max() < 1.34
    np.testing.assert_allclose(crops[..., 1], crops[..., 2])


def test_random_crop_keeps_the_whole_image_if_requested():
    images = np.random.default_rng(0).integers(0, 256, (5, 7, 9, 3)).astype("float32")
    crops = augment.random_crop(images, seeds(5), smallest=1.0, flip=False)
    np.testing.assert_allclose(crops, images, atol=1e-2)
