"""Steps of batch normalization, of one replica and of several."""

import keras
import numpy as np
import tensorflow as tf

from keras_ssl.layers import BatchNormalization


def pair(shape, **arguments):
    """Returns our layer and Keras', with the same weights, none of which is at its initial value."""
    ours, theirs = BatchNormalization(**arguments), keras.layers.BatchNormalization(**arguments)
    rng = np.random.default_rng(1)
    for layer in (ours, theirs):
        layer.build(shape)
    weights = [rng.uniform(0.5, 2, w.shape) for w in theirs.weights]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    return ours, theirs


def random_input(shape, seed=0):
    # Every channel has its own mean and standard deviation.
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * rng.uniform(1, 3, shape[-1]) + np.arange(shape[-1])).astype(
        "f4"
    )


def step(layer, x, target):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
        loss = tf.reduce_sum(tf.cast(y, tf.float32) * target)
    return y, tape.gradient(loss, [x, *layer.trainable_weights])


def on_replicas(strategy, layer, x, target, sizes, step=step):
    """Runs a step on a split batch, and sums the gradients over the replicas as an optimizer does."""
    parts = [np.split(a, np.cumsum(sizes)[:-1]) for a in (x, target)]

    def part(k):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.cast(
                parts[k][context.replica_id_in_sync_group], [layer.compute_dtype, "float32"][k]
            )
        )

    @tf.function(reduce_retracing=True)
    def run(x, target):
        return strategy.run(lambda x, target: step(layer, x, target), (x, target))

    y, (by_x, *by_weights) = run(part(0), part(1))
    y, by_x = (tf.concat(strategy.experimental_local_results(v), 0) for v in (y, by_x))
    return y, [by_x, *(strategy.reduce("SUM", g, axis=None) for g in by_weights)]
