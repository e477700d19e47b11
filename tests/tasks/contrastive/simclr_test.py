import dataclasses

import numpy as np
import pytest

import keras_ssl as kssl
from keras_ssl import losses, metrics
from keras_ssl.ops import augment, recipes
from keras_ssl.ops.random import split


def test_views_are_two_independent_views_by_the_recipe(encoder, batch, seeds):
    x, y = kssl.tasks.SimCLR(encoder).pretext(batch, seeds(6))
    assert x.shape == (6, 2, 32, 32, 3)
    np.testing.assert_array_equal(y, range(6))
    for k, seed in enumerate(split(seeds(6), 2)):
        expected = augment.view(batch["image"], seed, recipes.SIMCLR_SMALL)
        np.testing.assert_array_equal(x[:, k], expected)
    assert (np.abs(x[:, 0] - x[:, 1]).max((1, 2, 3)) > 1).all()


def test_recipe_can_be_a_name_or_a_recipe(encoder, batch, seeds):
    plain = dataclasses.replace(recipes.SIMCLR_SMALL, jitter=0.0, **dict.fromkeys(
        ("brightness", "contrast", "saturation", "hue", "gray", "flip"), 0.0
    ), area=(1.0, 1.0))  # fmt: skip
    x, _ = kssl.tasks.SimCLR(encoder, recipe=plain).pretext(batch, seeds(6))
    np.testing.assert_array_equal(x[:, 0], batch["image"])
    with pytest.raises(
        ValueError, match="recipe must be a Recipe or one of SIMCLR, .*'SIMCLR_TINY'"
    ):
        kssl.tasks.SimCLR(encoder, recipe="SIMCLR_TINY")


def test_both_views_are_normalized_together(encoder, batch, seeds):
    task = kssl.tasks.SimCLR(encoder, dimensions=5)
    x, _ = task.pretext(batch, seeds(6))
    found = task(x, training=True).numpy()
    flat = np.reshape(x, (12, 32, 32, 3))
    expected = task.head(task.encoder(flat, training=True), training=True).numpy()
    np.testing.assert_allclose(found, expected.reshape(6, 2, 5), rtol=1e-4, atol=1e-5)


def test_the_head_is_not_part_of_the_features(encoder, batch):
    task = kssl.tasks.SimCLR(encoder)
    np.testing.assert_allclose(task.features(batch["image"]), encoder(batch["image"]), rtol=1e-5)
    assert task.prediction(batch["image"]) is None


def test_metrics_match_a_loop():
    z = np.random.default_rng(0).normal(size=(5, 2, 3)).astype("float32")
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    positives, negatives = [], []
    for i in range(5):
        for v in range(2):
            positives.append(unit[i, v] @ unit[i, 1 - v])
            others = [unit[i, v] @ unit[j, w] for j in range(5) if j != i for w in range(2)]
            negatives.append(max(others))
    expected = {
        "accuracy": np.mean(np.array(positives) > negatives),
        "positive": np.mean(positives),
        "negative": np.mean(negatives),
    }
    assert 0 < expected["accuracy"] < 1
    for name, value in expected.items():
        metric = metrics.Contrast(name)
        metric.update_state(np.zeros(5), z)
        assert float(metric.result()) == pytest.approx(value, rel=1e-5)
    with pytest.raises(ValueError, match="name must be one of accuracy, positive, negative"):
        metrics.Contrast("recall")


def test_metrics_of_predictions_and_targets_and_of_labels():
    z = np.random.default_rng(0).normal(size=(4, 2, 2, 3)).astype("float32")
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    metric = metrics.Contrast("positive")
    metric.update_state(np.zeros(4), z)
    expected = [unit[i, 0, v] @ unit[i, 1, 1 - v] for i in range(4) for v in range(2)]
    assert float(metric.result()) == pytest.approx(np.mean(expected), abs=1e-6)

    labels, z, unit = np.array([7, 1, 7, 1]), z[:, 0], unit[:, 0]
    metric = metrics.Contrast("positive", by_label=True)
    metric.update_state(labels, z)
    expected = [
        max(
            unit[i, v] @ unit[j, w]
            for j in range(4) for w in range(2) if labels[i] == labels[j] and (i, v) != (j, w)
        )
        for i in range(4) for v in range(2)
    ]  # fmt: skip
    assert float(metric.result()) == pytest.approx(np.mean(expected), abs=1e-6)


def test_a_batch_of_one_has_no_negatives(encoder, noise):
    task = kssl.tasks.SimCLR(encoder)
    with pytest.raises(ValueError, match="batch_size must be at least 2, since SimCLR compares"):
        task.dataset(kssl.data.from_array(noise), batch_size=1)
    with pytest.raises(ValueError, match="at least 2, .* got 8 and 1 images"):
        task.dataset(kssl.data.from_array(noise[:1]), batch_size=8)
    with pytest.raises(
        ValueError, match="batch_size 8 leaves 1 of 9 images for the last batch, but"
    ):
        task.dataset(kssl.data.from_array(noise[:9]), batch_size=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "temperature must be a positive number, got 0"),
        ({"dimensions": 0}, r"dimensions must be an integer \(int64\) of at least 1, got 0"),
        ({"depth": 0}, r"depth must be an integer \(int64\) of at least 1, got 0"),
    ],
)
def test_invalid_arguments(encoder, arguments, message):
    with pytest.raises(ValueError, match=message):
        kssl.tasks.SimCLR(encoder, **arguments)


def test_compiles_with_its_loss_and_optimizer(encoder):
    task = kssl.tasks.SimCLR(encoder, temperature=0.2)
    assert isinstance(task.default_loss(), losses.NTXent)
    assert task.default_loss().temperature == 0.2
    assert type(task.default_optimizer(100)).__name__ == "LARS"
