import dataclasses
import json

import keras
import pytest

from keras_ssl.ops import recipes
from keras_ssl.ops.recipes import Recipe

PUBLISHED = {name: r for name, r in vars(recipes).items() if isinstance(r, Recipe)}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("area", (0.0, 1.0)),
        ("area", (0.5, 1.1)),
        ("area", (0.9, 0.5)),
        ("area", 0.5),
        ("aspect", (4 / 3, 3 / 4)),
        ("aspect", (1.0,)),
        ("aspect", ("1", "2")),
        ("sigma", (0.0, 2.0)),
        ("sigma", (1.0, float("inf"))),
        ("flip", 1.5),
        ("jitter", -0.1),
        ("brightness", 1.2),
        ("contrast", float("nan")),
        ("saturation", "0.4"),
        ("hue", 0.6),
        ("gray", True),
        ("blur", 2),
        ("kernel", 0.0),
        ("solarize", None),
        ("threshold", 300),
        ("colors", "pil"),
    ],
)
def test_a_wrong_value_is_named(field, value):
    with pytest.raises(ValueError, match=f"recipe: {field} must") as error:
        Recipe(**{"jitter": 0.8, field: value})
    assert repr(value) in str(error.value)


def test_strengths_without_a_probability_are_refused():
    with pytest.raises(ValueError, match="no effect with jitter=0.0"):
        Recipe(hue=0.1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_survive_a_saved_configuration(name):
    recipe = PUBLISHED[name]
    stored = json.loads(json.dumps(keras.saving.serialize_keras_object(recipe)))
    assert keras.saving.deserialize_keras_object(stored) == recipe
    assert hash(recipe) == hash(dataclasses.replace(recipe))


def test_recipes_are_the_published_ones():
    simclr = recipes.SIMCLR
    assert (simclr.brightness, simclr.contrast, simclr.saturation, simclr.hue) == (
        0.8,
        0.8,
        0.8,
        0.2,
    )
    assert (recipes.SIMCLR_SMALL.hue, recipes.SIMCLR_SMALL.blur) == (0.1, 0)
    assert (recipes.BYOL_1.blur, recipes.BYOL_2.blur, recipes.BYOL_2.solarize) == (1, 0.1, 0.2)
    assert recipes.MOCO_V1.jitter == 1
    assert recipes.MOCO_V2.area == (0.2, 1)
