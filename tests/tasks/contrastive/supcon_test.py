import numpy as np
import pytest

import keras_ssl as kssl
from keras_ssl.ops import augment, recipes
from keras_ssl.ops.random import split
from keras_ssl.tasks import TASKS


def test_labels_are_the_classes_of_the_data(encoder, batch, seeds):
    x, y = kssl.tasks.SupCon(encoder).pretext(batch, seeds(6))
    np.testing.assert_array_equal(y, batch["label"])
    seed, _ = split(seeds(6), 2)
    np.testing.assert_array_equal(x[:, 0], augment.view(batch["image"], seed, recipes.SUPCON_SMALL))


def test_large_labels_are_told_apart(encoder, batch, seeds):
    """Keras converts labels to float32, in which these are all equal."""
    task = kssl.tasks.SupCon(encoder)
    task.compile("sgd")
    values = []
    for labels in (np.arange(6) % 3, 10**9 + np.arange(6) % 3):
        x, y = task.pretext({**batch, "label": labels}, seeds(6))
        logs = task.test_on_batch(x, y, return_dict=True)
        values.append([logs["loss"], logs["accuracy"]])
    np.testing.assert_allclose(values[1], values[0], rtol=1e-6)


def test_is_the_only_task_that_reads_labels():
    assert [row.name for row in TASKS if "label" in row.task.needs] == ["supcon"]


def test_images_without_labels(encoder, noise):
    task = kssl.tasks.SupCon(encoder)
    with pytest.raises(
        ValueError, match="`label`, which SupCon needs, .*: use from_folder with one"
    ):
        task.dataset(kssl.data.from_array(noise), 8)


def test_preview_names_the_classes(encoder, batch, seeds):
    x, y = kssl.tasks.SupCon(encoder).pretext(batch, seeds(6))
    rows = kssl.tasks.SupCon(encoder).preview(x.numpy(), y, None)
    assert [caption for _, caption in rows[3]] == ["class 1, view 1", "class 1, view 2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1}, "temperature must be a positive number, got -1"),
        ({"mean": "both"}, 'mean must be "outside" or "inside" the logarithm, got \'both\''),
        ({"recipe": 3}, "recipe must be a Recipe or one of"),
    ],
)
def test_invalid_arguments(encoder, arguments, message):
    with pytest.raises(ValueError, match=message):
        kssl.tasks.SupCon(encoder, **arguments)
