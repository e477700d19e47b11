import colorsys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from keras_ssl.ops import jitter
from keras_ssl.ops.recipes import BYOL_1, MOCO_V2, SIMCLR_SMALL, Recipe

NOISE = np.random.default_rng(0).integers(0, 256, (9, 7, 5, 3)).astype("float32")
# All corners and edges of the color cube, where sextants of the hue meet, and grays.
CUBE = np.stack(np.meshgrid(*[[0.0, 80.0, 255.0]] * 3), -1).reshape(1, 9, 3, 3)
CUBE = np.repeat(CUBE, 9, axis=0).astype("float32")
FACTORS = np.linspace(0.2, 1.8, 9, dtype="float32")
SHIFTS = np.linspace(-0.5, 0.5, 9, dtype="float32")


def apply(function, image, amounts):
    planes = [tf.constant(image[..., c].reshape(len(image), -1)) for c in range(3)]
    planes = function(planes, tf.constant(amounts, tf.float32)[:, None])
    return np.stack(planes, -1).reshape(image.shape)


def one_by_one(function, image, amounts):
    pairs = zip(image, amounts, strict=True)
    return np.stack([function(tf.constant(x / 255), a) for x, a in pairs]).clip(0, 1) * 255


def colorsys_hue(image, amount):
    def shifted(pixel):
        hue, saturation, value = colorsys.rgb_to_hsv(*map(float, pixel))
        return colorsys.hsv_to_rgb((hue + amount) % 1, saturation, value)

    return np.apply_along_axis(shifted, -1, image)


def gray(image):
    return (image @ [0.299, 0.587, 0.114])[..., None]


ORACLES = {
    "scale_brightness": (FACTORS, lambda x, f: x * f),
    "shift_brightness": (SHIFTS, tf.image.adjust_brightness),
    "scale_contrast": (FACTORS, tf.image.adjust_contrast),
    "blend_contrast": (FACTORS, lambda x, f: f * x + (1 - f) * gray(x.numpy()).mean()),
    "scale_saturation": (FACTORS, tf.image.adjust_saturation),
    "blend_saturation": (FACTORS, lambda x, f: f * x + (1 - f) * gray(x.numpy())),
    "shift_hue": (SHIFTS, lambda x, a: colorsys_hue(x.numpy(), a)),
}


@pytest.mark.parametrize("image", [NOISE, CUBE], ids=["noise", "cube"])
@pytest.mark.parametrize("name", ORACLES)
def test_operation_equals_another_implementation_per_image(name, image):
    amounts, oracle = ORACLES[name]
    changed = apply(getattr(jitter, name), image, amounts)
    np.testing.assert_allclose(changed, one_by_one(oracle, image, amounts), atol=0.01)


def test_hue_equals_tensorflow():
    expected = one_by_one(tf.image.adjust_hue, NOISE, SHIFTS)
    np.testing.assert_allclose(apply(jitter.shift_hue, NOISE, SHIFTS), expected, atol=0.01)


@pytest.mark.parametrize(
    ("name", "pillow"),
    [
        ("scale_brightness", ImageEnhance.Brightness),
        ("blend_contrast", ImageEnhance.Contrast),
        ("blend_saturation", ImageEnhance.Color),
    ],
)
def test_operation_equals_pillow_as_torchvision_uses_it(name, pillow):
    changed = apply(getattr(jitter, name), NOISE, FACTORS)
    for image, factor, found in zip(NOISE, FACTORS, changed, strict=True):
        expected = pillow(Image.fromarray(image.astype(np.uint8))).enhance(float(factor))
        assert np.abs(np.asarray(expected, float) - found).max() < 2  # rounds to 8 bits


@pytest.mark.parametrize("name", ORACLES)
def test_neutral_amount_changes_nothing(name):
    neutral = 0.0 if name.startswith("shift") else 1.0
    for image in (NOISE, CUBE):
        changed = apply(getattr(jitter, name), image, [neutral] * 9)
        np.testing.assert_allclose(changed, image, atol=1e-3)


@given(st.integers(0, 999), st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
@settings(max_examples=25, deadline=None)
def test_hue_shifts_add_up_and_keep_value_and_chroma(seed, first, second):
    image = np.random.default_rng(seed).integers(0, 256, (1, 4, 4, 3)).astype("float32")
    once = apply(jitter.shift_hue, image, [first])
    np.testing.assert_allclose(once.max(-1), image.max(-1), atol=0.01)
    np.testing.assert_allclose(once.min(-1), image.min(-1), atol=0.01)
    twice = apply(jitter.shift_hue, once, [second])
    both = apply(jitter.shift_hue, image, [first + second])
    np.testing.assert_allclose(twice, both, atol=0.05)


@given(st.integers(0, 999), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_smaller_factors_multiply(seed, first, second):
    """Factors up to 1 never clip, so two of them are one."""
    image = np.random.default_rng(seed).integers(0, 256, (1, 4, 4, 3)).astype("float32")
    for name in ("scale_brightness", "scale_contrast", "scale_saturation", "blend_saturation"):
        function = getattr(jitter, name)
        twice = apply(function, apply(function, image, [first]), [second])
        np.testing.assert_allclose(twice, apply(function, image, [first * second]), atol=0.01)


def test_operations_are_those_that_have_an_effect():
    names = [[f.__name__ for f, _, _ in jitter.operations(r)] for r in (SIMCLR_SMALL, BYOL_1)]
    assert names[0] == ["scale_brightness", "scale_contrast", "scale_saturation", "shift_hue"]
    assert names[1] == ["shift_brightness", "scale_contrast", "scale_saturation", "shift_hue"]
    assert jitter.operations(Recipe()) == []
    ((function, low, high),) = jitter.operations(Recipe(jitter=1.0, contrast=0.25))
    assert (function, low, high) == (jitter.blend_contrast, 0.75, 1.25)


def ordered(image, random, recipe):
    """One image after the other, one operation after the other."""
    found, changed = jitter.operations(recipe), []
    for x, numbers in zip(image, random, strict=True):
        x = x[None]
        index = int(np.float32(numbers[1]) * np.float32(24))
        rest, order = list(range(4)), []
        for left in (6, 2, 1, 1):  # the index-th permutation, by factorials
            order.append(rest.pop(index // left))
            index %= left
        if numbers[0] < recipe.jitter:
            for j in order:
                function, low, high = found[j]
                x = apply(function, x, [low + (high - low) * numbers[2 + j]])
        changed.append(x[0])
    return np.stack(changed)


@pytest.mark.parametrize("recipe", [SIMCLR_SMALL, BYOL_1, MOCO_V2])
def test_color_jitter_applies_all_operations_in_the_drawn_order(recipe):
    rng = np.random.default_rng(1)
    random = rng.random((60, 6), np.float32)
    random[:24, 1] = (np.arange(24) + 0.5) / 24  # every order
    random[:24, 0] = 0
    image = rng.integers(0, 256, (60, 4, 5, 3)).astype("float32")
    changed = jitter.color_jitter(tf.constant(image), tf.constant(random), recipe)
    np.testing.assert_allclose(changed, ordered(image, random, recipe), atol=0.01)
    kept = random[:, 0] >= 0.8
    assert kept.any()
    np.testing.assert_array_equal(changed[kept], image[kept])


def test_the_order_matters():
    random = np.full((24, 6), 0.9, np.float32)
    random[:, 0] = 0
    random[:, 1] = (np.arange(24) + 0.5) / 24
    changed = jitter.color_jitter(tf.constant(np.repeat(NOISE[:1], 24, 0)), random, MOCO_V2)
    assert len(np.unique(changed.numpy().round(1).reshape(24, -1), axis=0)) > 10


def test_blocks_do_not_show(monkeypatch):
    random = np.random.default_rng(1).random((9, 6), np.float32)
    whole = jitter.color_jitter(tf.constant(NOISE), tf.constant(random), SIMCLR_SMALL)
    monkeypatch.setattr(jitter, "BLOCK", 2 * 7 * 5)  # two images, and one at the end
    parts = jitter.color_jitter(tf.constant(NOISE), tf.constant(random), SIMCLR_SMALL)
    np.testing.assert_allclose(parts, whole, atol=1e-3)
    assert jitter.color_jitter(NOISE[:0], tf.constant(random[:0]), SIMCLR_SMALL).shape == (
        0,
        7,
        5,
        3,
    )
