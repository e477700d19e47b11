"""Mixed precision for every task: what computes in 16 bits, what does not, and overflowing steps."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from task_samples import required, sample

import keras_ssl as kssl
from keras_ssl import encoders
from keras_ssl.layers import Lab, PatchGrid, Sinkhorn, Sobel
from keras_ssl.protocols import Describes
from keras_ssl.tasks import TASKS, DeepCluster, SelfLabel
from keras_ssl.tasks.clustering import self_label
from keras_ssl.training.loss_scale import LossScale

BATCH, STEPS = 8, 2
POLICIES = ["mixed_bfloat16", "mixed_float16"]
UNIT = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # the largest relative rounding error
HUGE = 2.0**60  # a loss with this scale overflows float16 everywhere


@pytest.fixture(params=POLICIES)
def policy(request):
    """Sets each of the policies, and float32 afterwards; yields its compute dtype."""
    keras.config.set_dtype_policy(request.param)
    yield request.param.removeprefix("mixed_")
    keras.config.set_dtype_policy("float32")


def make(row, optimizer=None):
    encoder = row.task.architecture((32, 32, 3), width=4, blocks=(1, 1))
    parameters = inspect.signature(row.task).parameters
    given = {"num_permutations": 20, "filters": 4, "adversarial": 0.3}
    given = {k: v for k, v in given.items() if k in parameters}
    task = row.task(encoder, **required(row.task, encoder), **given)
    # Eager steps, since tracing one for each task and policy would take minutes.
    task.compile(optimizer or keras.optimizers.SGD(0.05), run_eagerly=True)
    return task


def width(task):
    """Of the features, or of what a task clusters instead."""
    return 128 if isinstance(task, Describes) else 8


@pytest.fixture(scope="module", params=TASKS, ids=[row.name for row in TASKS])
def reference(request):
    """A task in float32: a batch, its initial weights, and the metrics of its steps."""
    keras.utils.set_random_seed(0)
    task = make(request.param)
    x, y = next(iter(task.dataset(sample(task.needs).take(21), BATCH)))
    task(x)  # builds the head
    if hasattr(task, "relabel"):
        task.relabel(np.random.default_rng(0).random((21, width(task)), np.float32))
    weights = task.get_weights()
    return request.param, x, y, weights, train(task, x, y)


def train(task, x, y):
    return [task.train_on_batch(x, y, return_dict=True) for _ in range(STEPS)]


def types(structure):
    return {tf.as_dtype(a.dtype).name for a in tf.nest.flatten(structure)}


def test_training_is_close_to_float32(reference, policy, monkeypatch):
    row, x, y, weights, expected = reference
    # A smaller scale than the default, with which the first step of some tasks overflows.
    task = make(row, LossScale(keras.optimizers.SGD(0.05), initial_scale=2.0**8))
    y_pred = task(x)
    task.set_weights(weights)
    leaves = [v for v in task.encoder._flatten_layers() if not isinstance(v, keras.Model)]
    convolutions = [v for v in leaves if isinstance(v, keras.layers.Conv2D)]
    assert {v.compute_dtype for v in convolutions} == {policy}
    first = task.encoder.layers[1]
    if isinstance(first, PatchGrid):  # which only cuts
        first = next(layer for layer in task.encoder.layers if isinstance(layer, keras.Model))
    first = first.layers[1] if isinstance(first, keras.Model) else first
    # The first and the last layer; Lab casts the result only.
    assert first.compute_dtype == "float32" or isinstance(first, Lab)
    assert task.encoder.layers[-1].compute_dtype == "float32"
    assert types(encoders.maps(task.encoder)(tf.zeros((1, 32, 32, 3)))) == {policy}
    assert types(task.trainable_variables) == {"float32"}
    assert types(y_pred) == {"float32"}
    assert types(task.features(np.zeros((1, 32, 32, 3), np.uint8))) == {"float32"}

    seen, original = set(), keras.losses.Loss.__call__

    def spy(loss, y_true, y_pred, sample_weight=None):
        value = original(loss, y_true, y_pred, sample_weight)
        seen.update(types([y_pred, value]))
        return value

    monkeypatch.setattr(keras.losses.Loss, "__call__", spy)
    shown, original_call = [], task.call
    monkeypatch.setattr(task, "call", lambda x, **kw: shown.append(x) or original_call(x, **kw))
    found = train(task, x, y)
    assert len(shown) == STEPS
    for a, b in zip(tf.nest.flatten(shown), tf.nest.flatten([x] * STEPS), strict=True):
        assert a.dtype == b.dtype  # no pixel was rounded
        np.testing.assert_array_equal(a, b)
    assert seen == ({"float32"} if task.default_loss() is not None else set())
    assert types([m.result() for m in task.metrics]) == {"float32"}
    # A loss is a mean over images of sums over channels and pixels, in which single rounding errors
    # average out. Measured: at most 0.3 units in bfloat16, 0.9 in float16 (3.2 for the depth of
    # synthetic_multitask, whose decoders have 16 bits, too); but 4, and 1.4 % for SupCon, where images
    # are compared, whose features are nearly the same before training.
    tolerance = max(16 * UNIT[policy], 0.03) if row.family == "contrastive" else 4 * UNIT[policy]
    for a, b in zip(found, expected, strict=True):
        for name in [n for n in a if "loss" in n]:
            assert a[name] == pytest.approx(b[name], rel=tolerance), name
    trained = {id(v) for v in task.trainable_variables}
    before = [w for v, w in zip(task.weights, weights, strict=True) if id(v) in trained]
    for a, b in zip(task.trainable_variables, before, strict=True):
        assert np.isfinite(a).all(), a.path
        assert (a.numpy() != b).any(), a.path


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
def test_step_that_overflows_is_skipped(reference, policy):
    row, x, y, weights, _ = reference
    task = make(row)
    task(x)
    task.set_weights(weights)
    task.train_on_batch(x, y)  # builds the optimizer, and changes the biases from 0
    sides = {"": (task.optimizer, task.trainable_variables)}
    if getattr(task, "discriminator", None) is not None:
        sides[""] = task.optimizer, task.generator_variables()
        critic = task.discriminator.trainable_variables
        sides["discriminator"] = task.discriminator_optimizer, critic

    cases = [set(sides), *({name} for name in sides if len(sides) > 1)]
    for overflowing in cases:
        before = {}
        for name, (optimizer, variables) in sides.items():
            optimizer.dynamic_scale.assign(HUGE if name in overflowing else 2.0**10)
            before[name] = int(optimizer.iterations), [v.numpy() for v in variables]
        logs = task.train_on_batch(x, y, return_dict=True)
        assert all(np.isfinite(value) for value in logs.values())
        for name, (optimizer, variables) in sides.items():
            iterations, values = before[name]
            skipped = name in overflowing
            assert optimizer.dynamic_scale == (HUGE / 2 if skipped else 2.0**10)
            assert optimizer.iterations == iterations + (not skipped)
            same = [(v.numpy() == old).all() for v, old in zip(variables, values, strict=True)]
            assert all(same) == skipped
            assert all(np.isfinite(v).all() for v in variables)


def test_sinkhorn_is_float32(policy):
    scores = np.random.default_rng(0).normal(size=(12, 5)).astype("float32")
    inputs = keras.Input((5,))
    rounded = keras.layers.Dense(4)(inputs)
    model = keras.Model(inputs, [Sinkhorn(lam=5.0)(inputs), rounded, Sinkhorn(lam=5.0)(rounded)])
    exact, rounded, plan = model(scores)
    assert types(rounded) == {policy}
    assert types([exact, plan]) == {"float32"}
    keras.config.set_dtype_policy("float32")
    np.testing.assert_allclose(exact, Sinkhorn(lam=5.0)(scores), rtol=0, atol=1e-6)
    expected = Sinkhorn(lam=5.0)(tf.cast(rounded, tf.float32))
    np.testing.assert_allclose(plan, expected, rtol=0, atol=1e-6)


def test_transport_of_self_label_is_float32(policy, monkeypatch):
    features = np.random.default_rng(1).normal(size=(60, 8)).astype("float32")
    seen, original = set(), self_label.sinkhorn

    def spy(scores, **kwargs):
        seen.update(types(list(scores.own())))
        return original(scores, **kwargs)

    monkeypatch.setattr(self_label, "sinkhorn", spy)

    def labels(weights=None):
        encoder = encoders.resnet((32, 32, 3), width=4, blocks=(1, 1))
        task = SelfLabel(encoder, num_images=60, num_clusters=6, num_heads=2)
        if weights is not None:
            task.set_weights(weights)
        weights = task.get_weights()
        task.relabel(features)
        return task.labels.numpy(), weights

    found, weights = labels()
    keras.config.set_dtype_policy("float32")
    expected, _ = labels(weights)
    assert seen == {"float32"}
    np.testing.assert_array_equal(found, expected)
    assert set(found[0]) == set(range(6))


def test_sobel_computes_in_float32_and_casts(policy):
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype("float32")
    found = Sobel()(images)
    expected = tf.cast(Sobel(dtype="float32")(images), policy)
    assert types(found) == {policy}
    np.testing.assert_array_equal(tf.cast(found, tf.float32), tf.cast(expected, tf.float32))


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
def test_reset_of_the_classifier_resets_slots_inside_loss_scaling(policy):
    row = next(row for row in TASKS if row.task is DeepCluster)
    task = make(row, keras.optimizers.SGD(0.05, momentum=0.9))
    task.relabel(np.random.default_rng(0).random((21, width(task)), np.float32))
    task.train_on_batch(tf.random.uniform((8, 32, 32, 3), 0, 255), tf.range(8))
    slots = task.optimizer.inner_optimizer.momentums
    of_head = [k for k, v in enumerate(task.trainable_variables) if "head" in v.path]
    assert len(of_head) == 2
    assert all(np.any(slots[k]) for k in of_head)
    task.relabel(np.random.default_rng(1).random((21, 8), np.float32))
    assert [k for k, slot in enumerate(slots) if not np.any(slot)] == of_head


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
def test_which_optimizer_scales_the_loss(policy, tmp_path):
    task = make(next(row for row in TASKS if row.name == "rotation"))
    assert type(task.optimizer) is LossScale
    task.train_on_batch(*next(iter(task.dataset(kssl.data.digits("test").take(8), 4))))
    task.optimizer.dynamic_scale.assign(2.0**7)
    task.save(tmp_path / "task.keras")
    copy = keras.models.load_model(tmp_path / "task.keras")
    assert type(copy.optimizer) is LossScale
    assert type(copy.optimizer.inner_optimizer) is keras.optimizers.SGD  # wrapped once
    assert copy.optimizer.dynamic_scale == 2.0**7
    task.compile("adam", auto_scale_loss=False)
    assert type(task.optimizer) is keras.optimizers.Adam
    given = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    task.compile(given)
    assert task.optimizer is given
    keras.config.set_dtype_policy("float32")
    assert (
        type(make(next(row for row in TASKS if row.name == "rotation")).optimizer)
        is keras.optimizers.SGD
    )
