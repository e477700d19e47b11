"""Every layer, loss and metric compiled by XLA, the default on GPUs; XLA's CPU backend stands in."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssl import layers, losses, metrics
from keras_ssl.ops import images


def normal(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


# What each is called with. A new layer, loss or metric without an entry fails.
LAYERS = {
    "BatchNormalization": (layers.BatchNormalization(), normal(5, 4, 6, 3)),
    "ChannelwiseDense": (layers.ChannelwiseDense(), normal(5, 4, 6, 3)),
    "Decoder": (layers.Decoder((4, 6, 3), (8, 12)), normal(5, 4, 6, 3)),
    "Sinkhorn": (layers.Sinkhorn(lam=2.0, differentiable=True, max_iterations=50), normal(5, 3)),
    "Sobel": (layers.Sobel(), normal(5, 6, 7, 3)),
}
LOSSES = {
    "ColorBins": (losses.ColorBins(), 20 * normal(2, 3, 4, 2), normal(2, 3, 4, 262)),
    "Hole": (
        losses.Hole(1),
        np.concatenate([normal(2, 6, 7, 3), np.float32(normal(2, 6, 7, 1) > 0.5)], axis=-1),
        normal(2, 6, 7, 3),
    ),
    "Triplet": (losses.Triplet(0.5), np.array([0, 2, 1]), np.tanh(normal(3, 3))),
}
METRICS = {
    "PSNR": (metrics.PSNR(), np.tanh(normal(2, 6, 7, 3)), np.tanh(normal(2, 6, 7, 3))),
}


def test_nothing_is_left_out():
    assert set(LAYERS) == set(layers.__all__)
    assert set(LOSSES) == set(losses.__all__)
    found = {n for n, m in vars(metrics).items() if isinstance(m, type)}
    assert set(METRICS) == {n for n in found if issubclass(getattr(metrics, n), keras.Metric)}


def both(function, *arguments):
    """The results of a function as it is and compiled."""
    plain = tf.nest.flatten(function(*arguments))
    compiled = tf.nest.flatten(tf.function(function, jit_compile=True)(*arguments))
    for a, b in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, training):
    layer, x = LAYERS[name]
    weight = normal(*layer(x).shape)  # the first call builds it

    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training) if layer._call_has_training_arg else layer(x)
            loss = tf.reduce_sum(weight * y)
        return y, tape.gradient(loss, [x, *layer.trainable_variables])

    if "moving_mean" in dir(layer):  # both start from the same moving statistics
        layer.momentum = 1.0
    both(run, tf.constant(x))


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    loss, y, y_pred = LOSSES[name]

    def run(y, y_pred):
        with tf.GradientTape() as tape:
            tape.watch(y_pred)
            value = loss(y, y_pred)
        return value, tape.gradient(value, y_pred)

    both(run, tf.constant(y), tf.constant(y_pred))


@pytest.mark.parametrize("name", METRICS)
def test_metrics(name):
    metric, y, y_pred = METRICS[name]

    def run(y, y_pred):
        metric.reset_state()
        metric.update_state(y, y_pred)
        return metric.result()

    both(run, tf.constant(y), tf.constant(y_pred))


def test_the_layer_of_the_mission_warns_where_it_can_and_compiles_everywhere(capfd):
    layer, scores = layers.Sinkhorn(lam=20.0, max_iterations=1, report=True), normal(6, 4)
    plain = layer(scores)
    assert "Sinkhorn stopped after 1 iterations" in capfd.readouterr().err
    compiled = tf.function(layer, jit_compile=True)(scores)
    assert "Sinkhorn" not in capfd.readouterr().err
    for name in ("plan", "iterations", "error"):
        np.testing.assert_allclose(compiled[name], plain[name], rtol=1e-4, atol=1e-6)
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(4), layers.Sinkhorn(lam=2.0, differentiable=True)]
    )
    model.compile("sgd", "mse", jit_compile=True)
    x, y = normal(8, 5), np.full((8, 4), 1 / 32, np.float32)
    assert np.isfinite(model.fit(x, y, verbose=0).history["loss"]).all()
    assert model.predict(x, verbose=0).shape == (8, 4)


def test_bicubic_enlargement():
    both(lambda x: images.enlarge(x, 2), tf.constant(normal(2, 5, 6, 3)))


def test_several_replicas_are_refused(two_replicas, task):
    with two_replicas.scope():
        copy = type(task).from_config(task.get_config())
        with pytest.raises(
            ValueError, match=r"jit_compile=True .* 2 replicas.*use jit_compile=\"auto\""
        ):
            copy.compile("sgd", jit_compile=True)
