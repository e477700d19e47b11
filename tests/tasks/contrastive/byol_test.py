import keras
import numpy as np
import pytest

import keras_ssl as kssl
from keras_ssl.ops import augment, recipes
from keras_ssl.ops.random import split


def make(encoder, **arguments):
    return kssl.tasks.BYOL(encoder, dimensions=8, hidden=16, **arguments)


def test_the_views_have_recipes_of_their_own(encoder, batch, seeds):
    x, _ = make(encoder).pretext(batch, seeds(6))
    names = ("BYOL_1_SMALL", "BYOL_2_SMALL")
    for k, (seed, name) in enumerate(zip(split(seeds(6), 2), names, strict=True)):
        np.testing.assert_array_equal(
            x[:, k], augment.view(batch["image"], seed, recipes.find(name))
        )
    assert recipes.BYOL_1_SMALL.blur == recipes.BYOL_2_SMALL.blur == 0
    assert (recipes.BYOL_1_SMALL.solarize, recipes.BYOL_2_SMALL.solarize) == (0, 0.2)


def test_prediction_is_predictions_and_targets_of_both_views(encoder, batch, seeds):
    task = make(encoder)
    x, _ = task.pretext(batch, seeds(6))
    for v in task.target_head.variables + task.target_encoder.variables:
        v.assign(v + 0.01)
    found = task(x).numpy()
    assert found.shape == (6, 2, 2, 8)
    for k in range(2):
        online = task.predict_target(task.head(encoder(x[:, k])))
        np.testing.assert_allclose(found[:, 0, k], online, rtol=1e-4, atol=1e-5)
        target = task.target_head(task.target_encoder(x[:, k]))
        np.testing.assert_allclose(found[:, 1, k], target, rtol=1e-4, atol=1e-5)


def test_momentum_rises_to_1_along_a_cosine(encoder, noise):
    task = make(encoder, momentum=0.9)
    task.compile("sgd")
    data = task.dataset(kssl.data.from_array(noise), 8, epochs=4)
    seen = []
    task.fit(
        data, epochs=4, verbose=0,
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_train_batch_begin=lambda step, logs: seen.append(float(task._momentum_now()))
            )
        ],
    )  # fmt: skip
    expected = [1 - 0.1 * (np.cos(np.pi * k / 20) + 1) / 2 for k in range(20)]
    np.testing.assert_allclose(seen, expected, rtol=1e-5)
    assert (int(task.step), int(task.steps)) == (20, 20)
    assert float(task._momentum_now()) == 1


def test_the_target_follows_the_network_after_each_step(encoder, noise):
    task = make(encoder, momentum=0.75)
    task.compile(keras.optimizers.SGD(0.5))
    data = task.dataset(kssl.data.from_array(noise[:8]), 8, epochs=2)
    weights = lambda network: [v.numpy() for v in network.trainable_variables]  # noqa: E731
    twins = lambda: [  # noqa: E731
        v.numpy()
        for v, w in zip(task.target_encoder.variables, encoder.variables, strict=True)
        if w.trainable
    ]
    start = weights(encoder)
    task.fit(data.take(1), epochs=2, initial_epoch=1, steps_per_epoch=1, verbose=0)
    after = weights(encoder)
    # Before the first step both are equal, so the target has not moved.
    for a, b in zip(twins(), start, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    momentum = float(task._momentum_now())
    task.fit(data.take(1), epochs=2, initial_epoch=1, steps_per_epoch=1, verbose=0)
    for a, old, new in zip(twins(), start, after, strict=True):
        np.testing.assert_allclose(a, momentum * old + (1 - momentum) * new, rtol=1e-5, atol=1e-6)


def spread(task, images):
    """Standard deviation of the normalized embeddings times the root of their length: 1 if spread evenly."""
    z = task.head(task.encoder(images, training=True), training=True).numpy()
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    return float(z.std(axis=0).mean() * z.shape[-1] ** 0.5)


@pytest.mark.parametrize(("predictor", "collapses"), [(True, False), (False, True)])
def test_collapses_without_the_predictor_only(gratings, predictor, collapses):
    keras.utils.set_random_seed(0)
    encoder = kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1, 1))
    task = make(encoder, predictor=predictor, momentum=0.9)
    task.compile(keras.optimizers.SGD(0.2, momentum=0.9))
    before = spread(task, gratings)
    data = task.dataset(kssl.data.from_array(gratings), 16, epochs=60)
    task.fit(data, epochs=60, verbose=0)
    after = spread(task, gratings)
    assert before > 0.5
    assert (after < 0.1) == collapses, (before, after)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1.5}, r"momentum must be in \[0, 1\], got 1.5"),
        ({"other_recipe": "BYOL_3"}, "recipe must be a Recipe or one of .*, got 'BYOL_3'"),
    ],
)
def test_invalid_arguments(encoder, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(encoder, **arguments)
