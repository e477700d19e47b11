"""What every task of the zoo must do. A new row in TASKS is tested here without another line."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from matplotlib.figure import Figure

import keras_ssl as kssl
from keras_ssl import plotting
from keras_ssl.serving.server.servable import Servable
from keras_ssl.tasks import TASKS

BATCH = 8


@pytest.fixture(params=TASKS, ids=[row.name for row in TASKS])
def row(request):
    return request.param


@pytest.fixture(scope="module")
def images():
    return kssl.data.digits("test").take(21)  # batches of 8, 8 and 5


def make(row, images):
    # Synchronised, since plain batch statistics differ from replica to replica.
    encoder = kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1, 1), synchronized=True)
    parameters = inspect.signature(row.task).parameters
    task = row.task(encoder, **({"num_images": 21} if "num_images" in parameters else {}))
    # Plain SGD: an adaptive optimiser turns rounding errors in small gradients into whole steps.
    task.compile(keras.optimizers.SGD(0.05))
    x, _ = next(iter(task.dataset(images, BATCH)))
    task(x)  # builds the head
    return task


def run(task, images, steps, batch_size=BATCH):
    losses = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda _, logs: seen.append(logs["loss"])
    )
    seen = []
    dataset = task.dataset(images, batch_size, shuffle=False)
    everything = kssl.data.digits("test").take(21)  # what clustering tasks cluster
    callbacks = [losses, *task.default_callbacks(everything)]
    task.fit(dataset, steps_per_epoch=steps, verbose=0, callbacks=callbacks)
    return np.array(seen)


def arrays(structure):
    return [np.asarray(a) for a in tf.nest.flatten(structure)]


def test_fits_saves_and_loads(row, images, tmp_path):
    task = make(row, images)
    before = [w.copy() for w in task.encoder.get_weights()]
    assert np.isfinite(run(task, images, steps=2)).all()
    assert all((a != b).any() for a, b in zip(before, task.encoder.get_weights(), strict=True))

    task.save(tmp_path / "task.keras")
    copy = keras.models.load_model(tmp_path / "task.keras")
    assert type(copy) is row.task
    for a, b in zip(task.weights, copy.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
    assert copy.optimizer.iterations == 2
    for a, b in zip(task.optimizer.variables, copy.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
    # Two more steps go the same way: nothing of the state was left behind.
    np.testing.assert_allclose(run(copy, images, steps=2), run(task, images, steps=2), rtol=1e-6)
    lines = []
    task.summary(print_fn=lambda line, **_: lines.append(line))
    assert "encoder" in "\n".join(lines) or task.encoder.name in "\n".join(lines)


def test_last_partial_batch(row, images):
    task = make(row, images)
    sizes = [len(arrays(x)[0]) for x, _ in task.dataset(images, BATCH)]
    assert sizes == [8, 8, 5]
    assert len(run(task, images, steps=None)) == 3
    assert np.isfinite(task.evaluate(task.dataset(images, BATCH), verbose=0)).all()


def test_export_serves_the_features_of_keras(row, images, tmp_path):
    task = make(row, images)
    run(task, images, steps=2)
    pixels = kssl.data.to_arrays(images)["image"]
    expected = task.features(pixels).numpy()
    assert expected.shape == (21, 8)
    assert expected.dtype == np.float32
    path = kssl.export(task, tmp_path / row.name)
    written = tf.train.load_checkpoint(f"{path}/variables/variables")
    types, shapes = written.get_variable_to_dtype_map(), written.get_variable_to_shape_map()
    assert not [n for n in types if types[n].is_integer and 21 in shapes[n]]  # no table of labels
    servable = Servable(path)
    served = servable.run({"images": pixels})["features"]
    servable.close()
    np.testing.assert_allclose(served, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(kssl.load(path)(pixels), expected, rtol=1e-5, atol=1e-5)


def test_two_replicas_give_what_one_gives(row, images, two_replicas):
    even = images.take(18)  # Keras averages over replicas: halves must be of one size
    keras.utils.set_random_seed(1)
    one = make(row, images)
    initial = one.get_weights()
    expected = run(one, even, 3, batch_size=6)
    with two_replicas.scope():
        two = make(row, images)
    two.set_weights(initial)
    np.testing.assert_allclose(run(two, even, 3, batch_size=6), expected, rtol=1e-4, atol=1e-4)
    for a, b in zip(two.weights, one.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=a.path)
    # A last batch of 5: one replica gets 3 pictures, the other 2. With 1, one would get none.
    assert len(run(two, images, steps=None)) == 3
    with pytest.raises(ValueError, match="batch_size 8 cannot share 17 images among 2 replicas"):
        two.dataset(images.take(17), BATCH)
    assert all(np.isfinite(w).all() for w in two.get_weights())


def test_pretext_gives_the_same_eagerly_and_in_tf_data(row, images):
    task = make(row, images)
    batch = next(iter(images.batch(BATCH)))
    seed = tf.stack([tf.fill((BATCH,), tf.constant(7, tf.int64)), batch["id"]], 1)
    eager = task.pretext(batch, seed)
    (mapped,) = tf.data.Dataset.from_tensors((batch, seed)).map(task.pretext)
    for a, b in zip(arrays(eager), arrays(mapped), strict=True):
        assert len(a) == BATCH
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-4)  # pixels in 0..255


def test_resumed_dataset_continues_the_uninterrupted_one(row, images):
    task = make(row, images)
    whole = list(task.dataset(images, BATCH, epochs=2, seed=5))[3:]
    rest = list(task.dataset(images, BATCH, epochs=2, first_epoch=1, seed=5))
    for a, b in zip(arrays(whole), arrays(rest), strict=True):
        np.testing.assert_array_equal(a, b)


def test_preview_can_be_drawn(row, images):
    task = make(row, images)
    x, y = next(task.dataset(images, 3).as_numpy_iterator())
    rows = task.preview(x, y)
    assert len(rows) == 3
    assert all(caption for line in rows for _, caption in line)
    assert isinstance(plotting.grid(rows), Figure)
    if hasattr(task, "relabel"):
        task.relabel(kssl.callbacks.extract(task, images))
    predicted = kssl.callbacks.predicted(task, x, y)
    # What the network says is in a picture or in a caption of its own.
    assert len(predicted) == 3
    assert [[c for _, c in line] for line in predicted] != [[c for _, c in line] for line in rows]
    assert isinstance(plotting.grid(predicted), Figure)
