import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssl.training.loss_scale import LossScale


def slopes(model, x):
    """Computes the gradients of a scaled loss; that of the bias is the number of rows."""
    with tf.GradientTape() as tape:
        loss = model.optimizer.scale_loss(tf.reduce_sum(model(x)))
    return tape.gradient(loss, model.trainable_variables)


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("broken", [0, 1])
def test_step_that_overflows_on_one_replica_is_skipped(broken, value, two_replicas, tmp_path):
    with two_replicas.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        inner = keras.optimizers.SGD(0.125, momentum=0.5)
        model.compile(LossScale(inner, initial_scale=1024.0))
        model.optimizer.build(model.trainable_variables)

    @tf.function
    def step(parts):
        def run(x):
            model.optimizer.apply(slopes(model, x), model.trainable_variables)

        two_replicas.run(run, (parts,))

    def parts(bad=None):
        def own(context):
            x = np.arange(6, dtype="f4").reshape(2, 3)
            if context.replica_id_in_sync_group == bad:
                x[1, 2] = value
            return tf.constant(x)

        return two_replicas.experimental_distribute_values_from_function(own)

    bias = model.weights[1]
    step(parts())
    # 4 rows on both replicas, times the learning rate.
    np.testing.assert_array_equal(bias, [-0.5, -0.5])
    before = model.get_weights()
    slots = [v.numpy() for v in inner.variables]
    step(parts(broken))
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(inner.variables, slots, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
    for scale in two_replicas.experimental_local_results(model.optimizer.dynamic_scale.value):
        assert scale == 512

    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    assert type(copy.optimizer) is LossScale
    assert copy.optimizer.dynamic_scale == 512
    assert copy.optimizer.iterations == 1
    step(parts())
    np.testing.assert_array_equal(bias, [-1.25, -1.25])  # with half of the previous step
    both = slopes(copy, np.concatenate(two_replicas.experimental_local_results(parts())))
    copy.optimizer.apply(both, copy.trainable_variables)
    for a, b in zip(copy.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
