import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.training.loss_scale import LossScale
from keras_ssl.training.optimizers import (
    LARS,
    SGD,
    adam_cosine,
    sgd_constant,
    sgd_cosine,
    with_rate,
)


@pytest.mark.parametrize(
    ("steps", "warm_up"), [(1, 0), (5, 2), (60, 30), (300, 100), (1000, 100), (2000, 200)]
)
@pytest.mark.parametrize("kind", [sgd_cosine, adam_cosine])
def test_warm_up_and_cosine_decay(kind, steps, warm_up):
    optimizer = kind(0.4, steps)
    rate = optimizer._learning_rate
    for step in {*range(0, steps + 1, 1 + steps // 60), warm_up, steps}:
        done = (step - warm_up) / (steps - warm_up)
        expected = 0.4 * step / warm_up if step < warm_up else 0.2 * (1 + np.cos(np.pi * done))
        assert float(rate(step)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("steps", "warm_up"), [(60, 30), (2000, 200)])
def test_constant_rate(steps, warm_up):
    rate = sgd_constant(0.4, steps)._learning_rate
    assert float(rate(warm_up // 2)) == pytest.approx(0.2)
    for step in (warm_up, (warm_up + steps) // 2, steps):
        assert float(rate(step)) == pytest.approx(0.4)


def test_momentum():
    assert sgd_cosine(0.4, 10).nesterov
    assert sgd_cosine(0.4, 10).momentum == 0.9
    assert adam_cosine(0.4, 10, beta_1=0.5).beta_1 == 0.5


@pytest.mark.parametrize("arguments", [(0, 10), (-1, 10), (np.nan, 10), (np.inf, 10), ("a", 10)])
@pytest.mark.parametrize("kind", [sgd_cosine, sgd_constant, adam_cosine])
def test_refuses(kind, arguments):
    with pytest.raises(ValueError, match="learning_rate must be a positive number"):
        kind(*arguments)
    with pytest.raises(
        ValueError, match=r"steps must be an integer \(int64\) of at least 1, got 0"
    ):
        kind(0.1, 0)


def test_refuses_negative_decay_and_trust():
    with pytest.raises(ValueError, match="weight_decay must be a number of at least 0, got -1"):
        sgd_cosine(0.1, 10, weight_decay=-1)
    with pytest.raises(ValueError, match="trust must be a positive number, got 0"):
        LARS(trust=0)


RATES = (0.5, 0.25, 0.125)  # of three steps
SCHEDULE = keras.optimizers.schedules.PiecewiseConstantDecay([0, 1], list(RATES))


def descend(optimizer):
    """Applies three gradients to a kernel and a bias; returns both."""
    rng = np.random.default_rng(0)
    variables = [keras.Variable(rng.normal(size=shape).astype("f4")) for shape in ((3, 2), (2,))]
    before = [v.numpy() for v in variables]
    gradients = [[rng.normal(size=v.shape).astype("f4") for v in variables] for _ in RATES]
    for step in gradients:
        optimizer.apply([tf.constant(g) for g in step], variables)
    return before, gradients, [v.numpy() for v in variables]


@pytest.mark.parametrize("nesterov", [False, True])
def test_weight_decay_as_in_pytorch(nesterov):
    """PyTorch's formulas, at a constant rate; the bias does not decay."""
    optimizer = SGD(0.3, momentum=0.9, nesterov=nesterov, weight_decay=0.1)
    before, gradients, after = descend(SGD.from_config(optimizer.get_config()))
    for k, decay in enumerate((0.1, 0.0)):
        w, buffer = before[k], 0
        for g in (step[k] for step in gradients):
            g = g + decay * w
            buffer = 0.9 * buffer + g
            w = w - 0.3 * (g + 0.9 * buffer if nesterov else buffer)
        np.testing.assert_allclose(after[k], w, rtol=1e-5)


@pytest.mark.parametrize("rate_in_momentum", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_lars(rate_in_momentum, nesterov):
    """The formulas of SimCLR's and of BYOL's code, at a decaying rate."""
    optimizer = LARS(SCHEDULE, 0.9, 0.02, rate_in_momentum, nesterov=nesterov, weight_decay=0.1)
    before, gradients, after = descend(LARS.from_config(optimizer.get_config()))
    for k in range(2):
        w, buffer = before[k], 0
        for rate, g in zip(RATES, (step[k] for step in gradients), strict=True):
            if k == 0:
                g = g + 0.1 * w
                g = g * 0.02 * np.linalg.norm(w) / np.linalg.norm(g)
            inside, outside = (rate, 1) if rate_in_momentum else (1, rate)
            buffer = 0.9 * buffer + inside * g
            w = w - outside * (0.9 * buffer + inside * g if nesterov else buffer)
        np.testing.assert_allclose(after[k], w, rtol=1e-5)


def test_lars_moves_weights_of_zero_and_stops_at_gradients_of_zero():
    kernels = [keras.Variable(np.zeros((2, 1), "f4")), keras.Variable(np.ones((2, 1), "f4"))]
    gradients = [tf.constant([[3.0], [4.0]]), tf.zeros((2, 1))]
    LARS(1.0, momentum=0.0, trust=0.5).apply(gradients, kernels)
    np.testing.assert_allclose(kernels[0], [[-3], [-4]])  # as plain SGD
    np.testing.assert_allclose(kernels[1], [[1], [1]])


@pytest.mark.parametrize("kind", [SGD, LARS])
def test_exclusion_of_a_variable(kind):
    kept, excluded = (keras.Variable([[2.0]]) for _ in range(2))
    optimizer = kind(1.0, momentum=0.0, weight_decay=0.25)
    optimizer.exclude_from_weight_decay([excluded])
    optimizer.apply([tf.constant([[1.0]])] * 2, [kept, excluded])
    assert kept.numpy() == (0.5 if kind is SGD else pytest.approx(1.998))
    assert excluded.numpy() == 1


@pytest.mark.parametrize("kind", [SGD, LARS])
def test_two_replicas_decay_as_one(kind, two_replicas):
    def trained():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        model.compile(kind(0.5, momentum=0.9, weight_decay=0.1), "mse")
        x = np.arange(12, dtype="f4").reshape(4, 3) / 10
        model.fit(x, x[:, :2], batch_size=4, epochs=3, verbose=0)
        return model.get_weights()

    alone = trained()
    with two_replicas.scope():
        together = trained()
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scaled", [False, True])
def test_with_rate(scaled):
    optimizer = adam_cosine(0.4, 60, beta_1=0.5)
    copy = with_rate(LossScale(optimizer) if scaled else optimizer, 0.1)
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(copy))
    assert isinstance(copy, keras.optimizers.Adam)
    assert copy.beta_1 == 0.5
    for step in (0, 13, 30, 47):
        assert float(copy._learning_rate(step)) == pytest.approx(
            0.1 * float(optimizer._learning_rate(step))
        )


def test_rates_and_decay_of_the_papers():
    """The authors' code; section 3.2 of context encoders."""
    encoder = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,))
    decays = {"Rotation": 5e-4, "DeepCluster": 1e-5, "SelfLabel": 1e-5, "SiftClusters": 1e-4}
    for name, decay in decays.items():
        numbers = {} if name == "Rotation" else {"num_images": 10}
        task = getattr(kssl.tasks, name)(encoder, **numbers)
        assert task.weight_decay == task.default_optimizer(1000).weight_decay == decay
    clusters = kssl.tasks.DeepCluster(encoder, num_images=10).default_optimizer(1000)
    assert float(clusters._learning_rate(999)) == pytest.approx(0.05)
    task = kssl.tasks.Inpainting(encoder, filters=2)
    task.compile(task.default_optimizer(1000))
    rate, other = task.optimizer._learning_rate, task.discriminator_optimizer._learning_rate
    assert float(other(500)) == pytest.approx(float(rate(500)) / 10)
