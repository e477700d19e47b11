import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

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


class Momenta(keras.callbacks.Callback):
    """Notes the momentum of the update after each step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, step, logs=None):
        self.seen.append(float(self.model._momentum_now()))


def along_a_cosine(steps, start=0.9):
    return [1 - (1 - start) * (np.cos(np.pi * k / steps) + 1) / 2 for k in range(steps)]


def test_momentum_rises_to_1_along_a_cosine_in_each_run(encoder, noise, tmp_path):
    task = make(encoder, momentum=0.9)
    task.compile("sgd")
    images = kssl.data.from_array(noise[:16])

    def momenta(task, epochs, *callbacks, data=None):
        noted = Momenta()
        data = task.dataset(images, 8, epochs=epochs) if data is None else data
        task.fit(data, None, None, epochs, 0, [noted, *callbacks])
        return noted.seen

    np.testing.assert_allclose(momenta(task, 3), along_a_cosine(6), rtol=1e-5)
    np.testing.assert_allclose(momenta(task, 2), along_a_cosine(4), rtol=1e-5)

    task.save(tmp_path / "task.keras")
    loaded = keras.models.load_model(tmp_path / "task.keras")
    np.testing.assert_allclose(momenta(loaded, 2), along_a_cosine(4), rtol=1e-5)

    # Data that are not of `dataset`: Keras does not know their number of steps before the first epoch ends.
    x, y = next(iter(task.dataset(images, 16)))
    plain = tf.data.Dataset.from_tensors((x, y))
    np.testing.assert_allclose(momenta(task, 4, data=plain), along_a_cosine(4), rtol=1e-5)
    generated = ((x, y) for _ in range(9))
    assert momenta(task, 1, data=generated)[:9] == [pytest.approx(0.9)] * 9


def test_momentum_of_a_longer_run_after_a_short_or_interrupted_one(encoder, noise):
    task, images = make(encoder, momentum=0.9), kssl.data.from_array(noise[:40])
    task.compile("sgd")
    task.fit(task.dataset(images, 8), verbose=0)
    for batch_size, stop in ((4, 3), (4, None)):
        noted = Momenta()
        interrupt = keras.callbacks.LambdaCallback(
            on_train_batch_begin=lambda step, logs, stop=stop: (
                (_ for _ in ()).throw(KeyboardInterrupt) if step == stop else None
            )
        )
        with contextlib.suppress(KeyboardInterrupt):
            task.fit(task.dataset(images, batch_size), verbose=0, callbacks=[noted, interrupt])
        np.testing.assert_allclose(noted.seen, along_a_cosine(10)[:stop], rtol=1e-5)


def test_a_single_callback_does_not_replace_the_schedule(encoder, noise):
    task, images, noted = make(encoder, momentum=0.9), kssl.data.from_array(noise[:16]), Momenta()
    task.compile("sgd")
    task.fit(task.dataset(images, 4), verbose=0, callbacks=noted)
    np.testing.assert_allclose(noted.seen, along_a_cosine(4), rtol=1e-5)


def test_momentum_without_fit_is_constant(encoder, batch, seeds):
    task = make(encoder, momentum=0.9)
    task.compile("sgd")
    for _ in range(3):
        task.train_on_batch(*task.pretext(batch, seeds(6)))
    assert float(task._momentum_now()) == pytest.approx(0.9)


def test_a_run_that_goes_on_from_a_checkpoint_has_the_schedule_of_all_its_epochs(
    encoder, noise, tmp_path
):
    images = kssl.data.from_array(noise[:24])
    for epochs, first in ((2, 0), (4, 6)):
        task = make(encoder, momentum=0.9)
        task.compile("sgd")
        noted, saved = Momenta(), kssl.callbacks.Checkpoint(tmp_path / "a")
        data = task.dataset(images, 8, epochs=epochs)
        task.fit(data, epochs=epochs, verbose=0, callbacks=[noted, saved])
        np.testing.assert_allclose(noted.seen, along_a_cosine(3 * epochs)[first:], rtol=1e-5)


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
    momentum = 1 - 0.25 * 0.75  # of the second of three steps, a third of the way along the cosine
    task.fit(data.take(1), epochs=3, initial_epoch=2, steps_per_epoch=1, verbose=0)
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
        ({"momentum": 1.5}, r"momentum must be in 0..1, got 1.5"),
        ({"momentum": "0.9"}, r"momentum must be in 0..1, got '0.9'"),
        ({"predictor": "no"}, "predictor must be True or False, got 'no'"),
        ({"other_recipe": "BYOL_3"}, "recipe must be a Recipe or one of .*, got 'BYOL_3'"),
    ],
)
def test_invalid_arguments(encoder, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(encoder, **arguments)
