import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.training import momentum
from keras_ssl.training.momentum import twin


def network():
    return kssl.encoders.resnet((8, 8, 3), width=2, blocks=(1,))


def test_twin_is_a_copy_that_is_not_trainable(noise):
    net = network()
    copy = momentum.twin(net)
    np.testing.assert_array_equal(copy(noise[:4, :8, :8]), net(noise[:4, :8, :8]))
    assert copy.trainable_variables == []
    assert len(net.trainable_variables) > 0


def test_twin_has_our_batch_normalization_also_in_nested_models(noise):
    inner = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.BatchNormalization()])
    inputs = keras.Input((32, 32, 3))
    net = keras.Model(inputs, keras.layers.BatchNormalization()(inner(inputs)))
    net.set_weights([np.arange(w.size).reshape(w.shape) + 1.0 for w in net.get_weights()])
    copy = momentum.twin(net)
    for layer in (copy.layers[1].layers[0], copy.layers[2]):
        assert type(layer) is kssl.layers.BatchNormalization
    for training in (False, True):
        x = noise[:4].astype(np.float32)
        np.testing.assert_allclose(
            copy(x, training=training), net(x, training=training), rtol=1e-4, atol=1e-3
        )


def test_follow_averages_trainable_weights_and_not_statistics(noise):
    net = network()
    copy = momentum.twin(net)
    before = [v.numpy() for v in copy.variables]
    for v in net.variables:
        v.assign(v + np.arange(np.size(v)).reshape(v.shape) + 1)
    momentum.follow(copy, net, 0.75)
    for old, mine, theirs in zip(before, copy.variables, net.variables, strict=True):
        expected = 0.75 * old + 0.25 * theirs.numpy() if theirs.trainable else old
        np.testing.assert_allclose(mine, expected, rtol=1e-6, err_msg=theirs.path)


def test_twin_normalizes_with_batch_statistics(noise):
    net = network()
    copy, x = momentum.twin(net), noise[:6, :8, :8]
    np.testing.assert_allclose(copy(x, training=True), net(x, training=True), rtol=1e-5)
    moved = [(a.numpy(), b.numpy()) for a, b in zip(copy.variables, net.variables, strict=True)]
    for mine, theirs in moved:
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)
    assert any((mine != 0).any() for mine, _ in moved)


@keras.saving.register_keras_serializable(package="momentum_test")
class MeanTeacher(kssl.PretextModel):
    def __init__(self, encoder, momentum=0.9, **kwargs):
        super().__init__(encoder, **kwargs)
        self.momentum, self.twin = momentum, twin(encoder)

    def pretext(self, batch, seed):
        return batch["image"], tf.zeros((tf.shape(seed)[0], 2))

    def call(self, x, training=False):
        if training:
            momentum.follow(self.twin, self.encoder, self.momentum)
        target = tf.stop_gradient(self.twin(x, training=training))
        return self.encoder(x, training=training) - 2 * target + 0.1

    def default_loss(self):
        return keras.losses.MeanSquaredError()

    def default_metrics(self):
        return []


def test_two_replicas_match_one_and_saving_keeps_the_twin(two_replicas, noise, tmp_path):
    def make():
        encoder = kssl.encoders.resnet((8, 8, 3), width=2, blocks=(1,), synchronized=True)
        task = MeanTeacher(encoder)
        task.compile(keras.optimizers.SGD(0.05))
        return task

    images = kssl.data.from_array(noise[:12, :8, :8])
    one = make()
    initial = one.get_weights()
    one.fit(one.dataset(images, 4, shuffle=False), verbose=0)
    with two_replicas.scope():
        two = make()
    two.set_weights(initial)
    two.fit(two.dataset(images, 4, shuffle=False), verbose=0)
    for a, b in zip(one.weights, two.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=a.path)
    one.save(tmp_path / "task.keras")
    copy = keras.models.load_model(tmp_path / "task.keras")
    for a, b in zip(one.twin.weights, copy.twin.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert {id(v) for v in one.trainable_variables} == {
        id(v) for v in one.encoder.trainable_variables
    }


class Follower(keras.layers.Layer):
    """Lets a twin, all ones, follow a network, all twos."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        self.network.set_weights([np.full((2, 3), 1.0), np.full(3, 1.0)])
        self.twin = momentum.twin(self.network)
        self.network.set_weights([np.full((2, 3), 2.0), np.full(3, 2.0)])

    def call(self, x):
        momentum.follow(self.twin, self.network, 0.999)
        return self.twin(x)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_does_not_round_the_twin(policy, replicas, two_replicas):
    strategy = two_replicas if replicas == 2 else tf.distribute.get_strategy()
    keras.config.set_dtype_policy(policy)
    try:
        with strategy.scope():
            layer = Follower()
            layer.build((1, 2))
    finally:
        keras.config.set_dtype_policy("float32")

    @tf.function
    def step():
        strategy.run(lambda: layer(tf.ones((1, 2))))

    for _ in range(200):
        step()
    for weight in layer.twin.get_weights():
        np.testing.assert_allclose(weight, 2 - 0.999**200, rtol=1e-5)


def test_refuses():
    net = network()
    with pytest.raises(ValueError, match=r"momentum must be in 0..1, got 1.5"):
        momentum.follow(momentum.twin(net), net, 1.5)
    with pytest.raises(ValueError, match="must be built"):
        momentum.twin(keras.Sequential([keras.layers.Dense(2)]))
