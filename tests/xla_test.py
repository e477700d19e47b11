"""Every layer, loss and metric compiled by XLA, the default on GPUs; XLA's CPU backend stands in."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssl import layers, losses, metrics
from keras_ssl.ops import images


def normal(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


keras.utils.set_random_seed(1)  # of the weights: a gradient near 0 is a sum of terms of up to 50

# The arguments of each. A new layer, loss or metric without an entry fails.
LAYERS = {
    "BatchNormalization": (layers.BatchNormalization(), normal(5, 4, 6, 3)),
    "ChannelwiseDense": (layers.ChannelwiseDense(), normal(5, 4, 6, 3)),
    "Decoder": (layers.Decoder((4, 6, 3), (8, 12)), normal(5, 4, 6, 3)),
    "PatchGrid": (layers.PatchGrid(3, 2), normal(5, 6, 7, 3)),
    "Lab": (layers.Lab("ab"), np.abs(normal(5, 6, 7, 3)) * 60),
    "Sinkhorn": (layers.Sinkhorn(lam=2.0, differentiable=True, max_iterations=50), normal(5, 3)),
    "Sobel": (layers.Sobel(), normal(5, 6, 7, 3)),
    "SpectralNormalization": (
        layers.SpectralNormalization(keras.layers.Conv2D(4, 3)),
        normal(5, 6, 7, 3),
    ),
}
# Pairs of pixels of 6x7: indices and order, which is unknown (NaN) for some.
PAIRS = np.random.default_rng(0).integers(0, 42, (5, 8, 3)).astype(np.float32)
PAIRS[..., 2] = np.array([-1, 0, 1, np.nan])[PAIRS[..., 2].astype(int) % 4]
# Masks of 6x7: 0, 1, and uncertain (NaN); one without a 1.
TRIMAP = np.random.default_rng(1).choice(np.float32([0, 1, np.nan]), (5, 6, 7, 1))
TRIMAP[3] = 0
LOSSES = {
    "Alignment": (losses.Alignment(1.5), np.zeros(5), normal(5, 2, 3)),
    "AlignmentUniformity": (losses.AlignmentUniformity(), np.zeros(5), normal(5, 2, 3)),
    "ColorBins": (losses.ColorBins(), 20 * normal(2, 3, 4, 2), normal(2, 3, 4, 262)),
    "CosineDistance": (losses.CosineDistance(), normal(5, 6, 7, 3), normal(5, 6, 7, 3)),
    "BalancedCrossEntropy": (
        losses.BalancedCrossEntropy(),
        (normal(5, 6, 7, 1) > 1).astype(np.float32),
        normal(5, 6, 7, 1),
    ),
    "DepthRanking": (losses.DepthRanking(), PAIRS, normal(5, 6, 7, 1)),
    "Distillation": (losses.Distillation(), np.zeros(5), normal(5, 2, 3, 4, 2)),
    "GradientDifference": (
        losses.GradientDifference(2, outside=0.5),
        np.concatenate([normal(2, 6, 7, 3), np.float32(normal(2, 6, 7, 1) > 0.5)], axis=-1),
        normal(2, 6, 7, 3)[::-1].copy(),
    ),
    "Hole": (
        losses.Hole(1),
        np.concatenate([normal(2, 6, 7, 3), np.float32(normal(2, 6, 7, 1) > 0.5)], axis=-1),
        normal(2, 6, 7, 3),
    ),
    "InfoMax": (losses.InfoMax(), np.zeros(5), normal(5, 4, 3)),
    "InfoNCE": (losses.InfoNCE(0.5), np.zeros(3), np.tanh(normal(3, 6))),
    "MultiscaleInfoNCE": (
        losses.MultiscaleInfoNCE((2, 3)),
        np.zeros(5),
        normal(5, 2, 7, 3),
    ),
    "NCE": (losses.NCE((1, 0.5)), np.zeros(5), normal(5, 2, 6)),
    "NTXent": (losses.NTXent(), np.zeros(5), normal(5, 2, 3)),
    "PredictiveCoding": (losses.PredictiveCoding(2), np.zeros(3), normal(3, 3, 5, 2, 4)),
    "ScaleInvariantDepth": (
        losses.ScaleInvariantDepth(),
        np.maximum(normal(5, 6, 7, 1), 0),  # 0 is unknown
        normal(5, 6, 7, 1),
    ),
    "SquaredDistance": (losses.SquaredDistance(), np.zeros(5), normal(5, 2, 2, 3)),
    "SupervisedContrastive": (
        losses.SupervisedContrastive(0.5),
        np.array([1, 0, 1, 2, 0]),
        normal(5, 2, 3),
    ),
    "TrimapCrossEntropy": (losses.TrimapCrossEntropy(), TRIMAP, normal(5, 6, 7, 1)),
    "Triplet": (losses.Triplet(0.5), np.array([0, 2, 1]), np.tanh(normal(3, 3))),
    "Uniformity": (losses.Uniformity(), np.zeros(5), normal(5, 2, 3)),
}
METRICS = {
    "AbsRel": (metrics.AbsRel(), np.maximum(normal(5, 6, 7, 1), 0), normal(5, 6, 7, 1)),
    "Contrast": (metrics.Contrast("negative"), np.zeros(5, np.float32), normal(5, 2, 3)),
    "FoundPositions": (metrics.FoundPositions(2), np.zeros(3), normal(3, 3, 5, 2, 4)),
    "MaskIoU": (metrics.MaskIoU(), TRIMAP, normal(5, 6, 7, 1)),
    "OrderedPairs": (metrics.OrderedPairs(), PAIRS, normal(5, 6, 7, 1)),
    "PSNR": (metrics.PSNR(), np.tanh(normal(2, 6, 7, 3)), np.tanh(normal(2, 6, 7, 3))),
}


def test_nothing_is_left_out():
    found = {name for name in layers.__all__ if isinstance(getattr(layers, name), type)}
    assert set(LAYERS) == found - {"Queue", "MemoryBank"}  # tested below
    assert set(LOSSES) == {n for n in losses.__all__ if isinstance(getattr(losses, n), type)}
    found = {n for n, m in vars(metrics).items() if isinstance(m, type)}
    assert set(METRICS) == {n for n in found if issubclass(getattr(metrics, n), keras.Metric)}


def both(function, *arguments, state=()):
    """Compares the results of a function, eager and compiled, and its effect on the variables `state`."""
    start, results = [v.numpy() for v in state], []
    for run in (function, tf.function(function, jit_compile=True)):
        for variable, value in zip(state, start, strict=True):
            variable.assign(value)
        results.append([*tf.nest.flatten(run(*arguments)), *(v.numpy() for v in state)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


def test_memory_bank():
    bank = layers.MemoryBank(9, 3, negatives=4)
    queries, ids = tf.math.l2_normalize(normal(5, 1, 3), axis=-1), tf.constant([7, 2, 0, 5, 1])

    def step(queries, ids):
        odds = bank(queries, ids, training=True)
        bank.write(ids, queries[:, 0])
        bank.write(ids, queries[::-1, 0])  # another epoch
        return odds, bank.read(ids)

    both(step, queries, ids, state=bank.variables)


def test_queue():
    queue = layers.Queue(7, 3)
    both(queue, tf.constant(normal(5, 3)), state=queue.variables)

    def soft_maximum(queries):
        with tf.GradientTape() as tape:
            tape.watch(queries)
            soft, largest = queue.soft_maximum(queries, 0.1)
        return soft, largest, tape.gradient(soft, queries)

    both(soft_maximum, tf.constant(normal(5, 3)))


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

    both(run, tf.constant(x), state=layer.non_trainable_variables)


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


def test_sinkhorn_warns_outside_xla_and_compiles(capfd):
    layer, scores = layers.Sinkhorn(lam=20.0, max_iterations=1, report=True), normal(6, 4)
    compiled = tf.function(layer, jit_compile=True)(scores)
    assert "Sinkhorn" not in capfd.readouterr().err
    for plain in (layer, tf.function(layer)):  # compiled before, they warn nevertheless
        found = plain(scores)
        assert "Sinkhorn stopped after 1 iterations" in capfd.readouterr().err
        for name in ("plan", "iterations", "error"):
            np.testing.assert_allclose(compiled[name], found[name], rtol=1e-4, atol=1e-6)
    inside = tf.function(lambda s: tf.function(layer)(s), jit_compile=True)(scores)
    assert "Sinkhorn" not in capfd.readouterr().err
    assert inside["iterations"] == 1


def test_models_with_sinkhorn_fit_with_a_last_partial_batch():
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(4), layers.Sinkhorn(lam=2.0, differentiable=True)]
    )
    start, results = model.get_weights(), []
    x, y = normal(8, 5), np.eye(4, dtype=np.float32)[[0, 1, 2, 3] * 2] / 8
    for compiled in (False, True):
        model.compile(keras.optimizers.SGD(10.0), "mse", jit_compile=compiled)
        model.set_weights(start)
        model.fit(x, y, batch_size=5, shuffle=False, verbose=0)
        results.append([*model.get_weights(), model.predict(x, verbose=0)])
    assert np.abs(results[0][0] - start[0]).max() > 0.01
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)


def test_bicubic_enlargement():
    both(lambda x: images.enlarge(x, 2), tf.constant(normal(2, 5, 6, 3)))


def test_several_replicas_are_refused(two_replicas, task):
    with two_replicas.scope():
        copy = type(task).from_config(task.get_config())
        with pytest.raises(
            ValueError, match=r"jit_compile=True .* 2 replicas.*use jit_compile=\"auto\""
        ):
            copy.compile("sgd", jit_compile=True)
