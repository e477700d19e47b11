"""What every task of the zoo must do. A new row in TASKS is tested here without another line."""

import contextlib
import inspect
import json
import re
import warnings
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from matplotlib.figure import Figure
from task_samples import required, sample

import keras_ssl as kssl
from keras_ssl import plotting
from keras_ssl.data.columns import random_access
from keras_ssl.ops import random
from keras_ssl.ops.recipes import Recipe
from keras_ssl.protocols import Relabels
from keras_ssl.serving.server.servable import Servable
from keras_ssl.tasks import TASKS
from keras_ssl.training.loss_scale import LossScale

BATCH, RATE = 8, 0.02


# All tests of a task run in one process (tests/conftest.py), where they share one that is compiled.
@pytest.fixture(scope="module", params=TASKS, ids=[row.name for row in TASKS])
def row(request):
    return request.param


@pytest.fixture(autouse=True)
def _float32():
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="module")
def images(row):
    return sample(row.task.needs)


@pytest.fixture(scope="module")
def shared(row, images):
    """A task that is compiled and traced once, its data, and its state after one step."""
    keras.utils.set_random_seed(0)
    task, data = make(row, images)
    run(task, data, steps=1)
    return task, data, [(v, v.numpy()) for v in task.state()]


@pytest.fixture
def task(shared):
    for variable, value in shared[2]:
        variable.assign(value)
    return shared[0]


@pytest.fixture
def data(shared):
    return shared[1]


def fitting(row, encoder):
    """The arguments for 21 images: thousands of negatives would be the same few ones, with a huge loss."""
    sizes = {"negatives": 16, "warmup": 0}
    return required(row.task, encoder) | {
        k: v for k, v in sizes.items() if k in inspect.signature(row.task).parameters
    }


def make(row, images):
    """Returns a compiled task and its data."""
    # Synchronized, since plain batch statistics differ from replica to replica.
    encoder = row.task.architecture((32, 32, 3), width=4, blocks=(1,), synchronized=True)
    task = row.task(encoder, **fitting(row, encoder))
    # Plain SGD: an adaptive optimizer turns rounding errors in small gradients into whole steps.
    task.compile(keras.optimizers.SGD(RATE))
    data = task.dataset(images, BATCH, shuffle=False)
    x, _ = next(iter(data))
    task(x)  # builds the head
    return task, data


def run(task, data, steps):
    losses = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda _, logs: seen.append(logs["loss"])
    )
    seen = []
    callbacks = [losses, *task.default_callbacks(sample(task.needs))]  # all images are clustered
    task.fit(data, steps_per_epoch=steps, verbose=0, callbacks=callbacks)
    return np.array(seen)


def arrays(structure):
    return [np.asarray(a) for a in tf.nest.flatten(structure)]


def test_fits_saves_and_loads(row, task, data, tmp_path):
    before = [w.copy() for w in task.encoder.get_weights()]
    assert np.isfinite(run(task, data, steps=2)).all()
    assert all((a != b).any() for a, b in zip(before, task.encoder.get_weights(), strict=True))

    task.save(tmp_path / "task.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        copy = keras.models.load_model(tmp_path / "task.keras")
    assert type(copy) is row.task
    for a, b in zip(task.weights, copy.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
    assert copy.optimizer.iterations == 3
    for a, b in zip(task.optimizer.variables, copy.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
    # Two more steps give the same result, so the checkpoint contains the whole state.
    np.testing.assert_allclose(run(copy, data, steps=2), run(task, data, steps=2), rtol=1e-6)
    lines = []
    task.summary(print_fn=lambda line, **_: lines.append(line))
    assert "encoder" in "\n".join(lines) or task.encoder.name in "\n".join(lines)


def test_last_partial_batch(task, data):
    assert [len(arrays(x)[0]) for x, _ in data] == [8, 8, 5]
    assert len(run(task, data, steps=None)) == 3
    assert np.isfinite(task.evaluate(data, verbose=0)).all()


def test_export_serves_the_features_of_keras(row, task, images, tmp_path):
    pixels = kssl.data.to_arrays(images)["image"]
    expected = task.features(pixels).numpy()
    assert expected.shape == (21, 4)
    assert expected.dtype == np.float32
    path = kssl.export(task, tmp_path / row.name)
    written = tf.train.load_checkpoint(f"{path}/variables/variables")
    types, shapes = written.get_variable_to_dtype_map(), written.get_variable_to_shape_map()
    labels = [n for n in types if types[n].is_integer and 21 in shapes[n]]
    banks = [n for n in types if shapes[n][:1] == [21] and len(shapes[n]) > 1]
    assert not labels + banks
    servable = Servable(path)
    served = servable.run({"images": pixels})["features"]
    servable.close()
    np.testing.assert_allclose(served, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(kssl.load(path)(pixels), expected, rtol=1e-5, atol=1e-5)


def test_two_replicas_continue_a_saved_task_as_one_does(
    row, task, data, images, two_replicas, tmp_path
):
    task.save(tmp_path / "task.keras")
    with two_replicas.scope():
        two = keras.models.load_model(tmp_path / "task.keras")
    halves = two.dataset(images, BATCH, shuffle=False)
    # Of the last batch, of 5, one replica gets 3 images, the other 2. With 1, one would get none.
    expected, found = (
        t.fit(d, verbose=0, callbacks=t.default_callbacks(sample(row.task.needs))).history["loss"]
        for t, d in ((task, data), (two, halves))
    )
    # Digits have nearly the same features before training: what compares them enlarges rounding errors.
    atol = 1e-3 if row.family == "contrastive" else 1e-4
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    for a, b in zip(two.weights, task.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol, err_msg=a.path)
    with pytest.raises(ValueError, match="batch_size 8 cannot split 17 images among 2 replicas"):
        two.dataset(kssl.data.subset(images, range(17)), BATCH)
    assert all(np.isfinite(w).all() for w in two.get_weights())


def test_pretext_gives_the_same_eagerly_and_in_tf_data(task, images):
    batch = next(iter(images.batch(BATCH)))
    seed = tf.stack([tf.fill((BATCH,), tf.constant(7, tf.int64)), batch["id"]], 1)
    eager = task.pretext(batch, seed)
    (mapped,) = tf.data.Dataset.from_tensors((batch, seed)).map(task.pretext)
    for a, b in zip(arrays(eager), arrays(mapped), strict=True):
        assert len(a) == BATCH
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-4)  # pixels in 0..255


def test_resumed_dataset_continues_the_uninterrupted_one(task, images):
    whole = list(task.dataset(images, BATCH, epochs=2, seed=5))[3:]
    rest = list(task.dataset(images, BATCH, epochs=2, first_epoch=1, seed=5))
    for a, b in zip(arrays(whole), arrays(rest), strict=True):
        np.testing.assert_array_equal(a, b)


def test_preview_can_be_drawn(task, data, images):
    x, y = tf.nest.map_structure(lambda part: part[:3], next(data.as_numpy_iterator()))
    rows = task.preview(x, y)
    assert len(rows) == 3
    assert all(caption for line in rows for _, caption in line)
    assert isinstance(plotting.grid(rows), Figure)
    if isinstance(task, Relabels):
        task.relabel(kssl.callbacks.features_by_id(task, images))
    predicted = kssl.callbacks.predicted(task, x, y)
    # The prediction is in its own figure or caption.
    assert len(predicted) == 3
    assert [[c for _, c in line] for line in predicted] != [[c for _, c in line] for line in rows]
    assert isinstance(plotting.grid(predicted), Figure)


SIX = [1.0] * 6  # one limit for each axis of a motion
# Tried in turn until the constructor accepts one: then the argument differs from its default.
OTHERS = {
    bool: lambda value: [not value],
    int: lambda value: [value + 1, value - 1, 2 * value, value // 2],
    float: lambda value: [0.8 * value, 0.5 * value, 0.25, 0.5],
    str: lambda value: [],
    tuple: lambda value: [value[::-1], value[:-1]],
    type(None): lambda value: [2, 3, 1, 0, 8, (0, 180), [[*range(9)], [*range(1, 9), 0]], SIX],
}


def other_values(row, encoder, optional):
    """Returns a valid value, not the default, of each argument; strings are those that the docs quote."""
    usual = row.task(encoder, **required(row.task, encoder))
    values = {}
    for p in optional:
        quoted = re.findall(
            rf"{p.name}: .*?(?=\n        \w+:|\n        \*\*)", row.task.__doc__, re.DOTALL
        )
        if type(p.default) not in OTHERS:
            pytest.fail(
                f"the default of {p.name} is a {type(p.default).__name__}: add it to OTHERS, or, for a "
                "Recipe, make the default its name"
            )
        choices = OTHERS[type(p.default)](p.default) + re.findall(r'"(\w+)"', " ".join(quoted))
        choices.append(Recipe(area=(0.5, 1.0)))  # an augmentation: only the default has a name
        for value in choices:
            with contextlib.suppress(ValueError, TypeError):
                found = row.task(encoder, **{**required(row.task, encoder), p.name: value})
                if not np.array_equal(getattr(found, p.name), getattr(usual, p.name)):
                    values[p.name] = value
                    break
        else:
            pytest.fail(
                f"no other value of {p.name}: quote the choices in the docs, or add to OTHERS"
            )
    return values


def together(row, encoder, values):
    """Yields tasks with as many of the values at once as the constructor accepts, until each was in one."""
    while values:
        chosen, task = {}, None
        for name, value in values.items():
            with contextlib.suppress(ValueError, TypeError):
                arguments = {**required(row.task, encoder), **chosen, name: value}
                task = row.task(encoder, **arguments)
                chosen[name] = value
        yield task
        values = {name: value for name, value in values.items() if name not in chosen}


def test_arguments_survive_saving(row):
    encoder = row.task.architecture((48, 48, 3), width=2, blocks=(1, 1))
    parameters = inspect.signature(row.task).parameters.values()
    optional = [
        p for p in parameters if p.default is not p.empty and p.name not in row.task.networks
    ]
    assert {p.name for p in parameters if p.default is p.empty} == {
        "encoder", "kwargs", *required(row.task, encoder)
    }  # fmt: skip
    assert {*row.task.networks} <= {p.name for p in parameters}
    for task in together(row, encoder, other_values(row, encoder, optional)):
        config = json.loads(json.dumps(keras.saving.serialize_keras_object(task)))
        copy = keras.saving.deserialize_keras_object(config)
        for p in parameters:
            if p.name not in ("kwargs", *row.task.networks):
                np.testing.assert_array_equal(getattr(copy, p.name), getattr(task, p.name), p.name)


def test_no_random_stream_is_drawn_twice(task, images, monkeypatch):
    """Two draws from one seed would be the same numbers."""
    drawn, words = [], random._words

    def recorded(seed, blocks, purpose):
        drawn.append((*np.asarray(seed)[0].tolist(), purpose))
        return words(seed, blocks, purpose)

    monkeypatch.setattr(random, "_words", recorded)
    batch = next(iter(images.batch(BATCH)))
    seed = tf.stack([tf.fill((BATCH,), tf.constant(7, tf.int64)), batch["id"]], 1)
    task.pretext(batch, seed)
    assert len(set(drawn)) == len(drawn)


def test_reads_the_columns_that_it_needs_and_no_other(row, task, data, images):
    x, y = next(iter(data))
    others = {name: column for name, column in images.columns.items() if name not in row.task.needs}
    wrong = {name: tf.zeros_like(column) for name, column in others.items() if name != "id"}
    again = random_access({**images.columns, **wrong})
    for a, b in zip(
        arrays((x, y)), arrays(next(iter(task.dataset(again, BATCH, shuffle=False)))), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    for name in row.task.needs:
        less = random_access({n: column for n, column in images.columns.items() if n != name})
        with pytest.raises(ValueError, match=f"`{name}`, which {row.task.__name__} needs"):
            task.dataset(less, BATCH)


def compiled(row, data, **arguments):
    """Builds a task of the policy in force, compiled with small steps."""
    encoder = row.task.architecture((32, 32, 3), width=4, blocks=(1,))
    task = row.task(encoder, **fitting(row, encoder))
    # A smaller scale than the default: which step overflows would depend on the order of operations.
    optimizer = LossScale(keras.optimizers.SGD(RATE), initial_scale=2.0**8)
    half = keras.config.dtype_policy().name == "mixed_float16"
    task.compile(optimizer if half else optimizer.inner_optimizer, **arguments)
    task(next(iter(data))[0])
    return task


def outcome(task, data, images):
    """Runs three steps of training, evaluation and prediction; returns metrics, predictions and weights."""
    callbacks = task.default_callbacks(images)
    history = task.fit(data, verbose=0, callbacks=callbacks, validation_data=data).history
    logs = {name: values[-1] for name, values in history.items()}
    return logs, task.predict(data, verbose=0), task.get_weights()


# Every task in float32, a third of them also in mixed_float16, which takes XLA longer: by the name, so that a
# new task does not change which ones.
HALF = [row for row in TASKS if zlib.crc32(row.name.encode()) % 3 == 0]
XLA = [(row, "float32") for row in TASKS] + [(row, "mixed_float16") for row in HALF]


@pytest.mark.parametrize(
    ("row", "policy"), XLA, indirect=["row"], ids=[f"{row.name}-{policy}" for row, policy in XLA]
)
def test_xla_gives_what_tensorflow_gives(row, policy, images, task):
    """XLA is the default on GPUs; its CPU backend stands in."""
    keras.config.set_dtype_policy(policy)
    half = policy == "mixed_float16"
    # Noise, since a rounding error flips the ReLUs of all equal pixels of a uniform background at once.
    rng, columns = np.random.default_rng(0), dict(images.columns)
    for name in {"image", "frames"} & set(columns):
        pixels = np.asarray(columns[name])
        # Of another color in each image: what compares images is ill-conditioned if they are alike.
        color = rng.integers(0, 64, (len(pixels), *[1] * (pixels.ndim - 2), 3), np.uint8)
        columns[name] = pixels // 2 + rng.integers(0, 64, pixels.shape, np.uint8) + color
    if "depth" in columns:
        columns["depth"] *= rng.uniform(0.5, 2, columns["depth"].shape).astype(np.float32)
    images = random_access(columns)
    data = task.dataset(images, 7, shuffle=False).cache()
    plain = compiled(row, data, run_eagerly=True) if half else task
    # Several steps in one execution would relabel at other steps.
    steps = 3 if half and not issubclass(row.task, Relabels) else 1
    fast = compiled(row, data, jit_compile=True, steps_per_execution=steps)
    weights = plain.get_weights()
    fast.set_weights(weights)
    logs, predicted, trained = outcome(plain, data, images)
    found, quickly, after = outcome(fast, data, images)
    # Images that are compared have nearly the same features before training, and their temperature enlarges
    # what rounding changes; the most similar image may be another one.
    compared = row.family == "contrastive"
    if compared:
        for name in {"accuracy", "val_accuracy"} & set(logs):
            assert found.pop(name) == pytest.approx(logs.pop(name), abs=0.2)
    more = 20 if compared else 1
    rounding = more * (2e-3 if half else 1e-4)
    assert found == pytest.approx(logs, rel=rounding, abs=rounding if compared else None)
    for a, b in zip(arrays(predicted), arrays(quickly), strict=True):
        np.testing.assert_allclose(
            b, a, rtol=0, atol=more * (1e-2 if half else 1e-4) * np.abs(a).max()
        )
    # The change by training is far smaller than the weights. Measured: at most 5e-4 and 0.16 of it, and of
    # what compares images 0.55 (of CMCDepth; float16 itself, without XLA, differs from float32 by 0.7).
    for start, a, b in zip(weights, trained, after, strict=True):
        bound = (0.8 if compared else 0.4) if half else more * 1e-2
        atol = 1e-7 + bound * np.abs(a - start).max()
        np.testing.assert_allclose(b, a, rtol=0, atol=atol)
