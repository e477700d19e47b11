"""The schedule of Relabel, its logs, and a killed run that resumes with the same labels."""

import os
import runpy
import signal
import subprocess
import sys
import textwrap
import threading
import types
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from workers import together

import keras_ssl as kssl
from keras_ssl.callbacks import Relabel, features_by_id
from keras_ssl.callbacks.relabel import own_features
from keras_ssl.training import distribute, pipeline

IMAGES = 40


@pytest.fixture(scope="module")
def images():
    return kssl.data.subset(kssl.data.digits("test"), range(IMAGES))


def make(images, **arguments):
    encoder = kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1,))
    task = kssl.tasks.DeepCluster(encoder, num_images=IMAGES, num_clusters=5, **arguments)
    task.compile(keras.optimizers.SGD(0.05))
    return task


class Spy(Relabel):
    """Records (epoch, batch) of each relabeling."""

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        self.batch = batch
        super().on_train_batch_begin(batch, logs)

    def relabel(self):
        self.seen.append((self.epoch, self.batch))
        super().relabel()


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (1, [(0, 0), (1, 0), (2, 0), (3, 0)]),
        (3, [(0, 0), (3, 0)]),
        ("once", [(0, 0)]),
        (("linear", 2), [(0, 0), (2, 0)]),
        (("quadratic", 4), [(0, 0), (0, 1), (1, 0), (2, 1)]),  # steps 0, 0.5, 2 and 4.5 of 8
    ],
)
def test_when(images, when, expected):
    task, spy = make(images), Spy(images, when)
    data = task.dataset(images, 20, epochs=4)
    task.fit(data, epochs=4, callbacks=[spy], verbose=0)
    steps = [2 * epoch + batch for epoch, batch in spy.seen]
    if when == ("quadratic", 4):
        assert steps == [0, 2, 4]  # 8 * (i / 4) ** 2, rounded down: 0, 0, 2, 4
    else:
        assert spy.seen == expected


def test_a_resumed_run_relabels_only_what_is_still_due(images):
    task, spy = make(images), Spy(images, 2)
    task.fit(task.dataset(images, 20, epochs=2), epochs=2, callbacks=[spy], verbose=0)
    assert spy.seen == [(0, 0)]
    rest = task.dataset(images, 20, epochs=5, first_epoch=2)
    task.fit(rest, epochs=5, initial_epoch=2, callbacks=[spy], verbose=0)
    assert spy.seen == [(2, 0), (4, 0)]
    fresh = make(images)  # no labels yet: at once, regardless of the schedule
    rest = fresh.dataset(images, 20, epochs=4, first_epoch=3)
    fresh.fit(rest, epochs=4, initial_epoch=3, callbacks=[spy], verbose=0)
    assert spy.seen == [(3, 0)]


def test_logs(images, tmp_path):
    task = make(images)
    board = keras.callbacks.TensorBoard(tmp_path)
    data = task.dataset(images, 20, epochs=3)
    history = task.fit(data, epochs=3, callbacks=[Relabel(images), board], verbose=0).history
    sizes = np.bincount(task.labels.numpy(), minlength=5)
    assert history["largest"][-1] == sizes.max()
    assert history["smallest"][-1] == sizes.min()
    assert history["clusters"][-1] == 5
    assert len(history["nmi"]) == 2  # the first labels have no previous ones
    assert all(0 <= value <= 1 for value in history["nmi"])
    text = b"".join(path.read_bytes() for path in tmp_path.rglob("events*"))
    assert b"epoch_nmi" in text
    assert b"epoch_largest" in text


def test_features_in_the_order_of_the_ids(images):
    task = make(images)
    features = features_by_id(task, images, batch_size=7)
    np.testing.assert_allclose(
        features, task.features(kssl.data.to_arrays(images)["image"]), rtol=1e-5, atol=1e-6
    )
    shuffled = features_by_id(task, images.shuffle(IMAGES, seed=1), batch_size=16)
    np.testing.assert_allclose(shuffled, features, rtol=1e-5, atol=1e-6)


def test_each_worker_keeps_the_features_of_its_images(images, monkeypatch):
    """Images that cannot be read have the mean of all others, on one of the workers."""
    task, local, missing = make(images), threading.local(), [3, 8, 31]
    expected = features_by_id(task, images)
    expected[missing] = np.delete(expected, missing, axis=0).mean(axis=0)
    split = pipeline.shard
    monkeypatch.setattr(distribute, "worker", lambda strategy: (local.share.index, 2))
    monkeypatch.setattr(distribute, "sum_over_workers", lambda _, array: local.share.sum(array))
    monkeypatch.setattr(
        pipeline, "shard",
        lambda data, worker: split(data, worker).filter(lambda row: tf.reduce_all(row["id"] != missing)),
    )  # fmt: skip

    def run(share, data=images):
        local.share = share
        found = own_features(task, data, batch_size=7)
        assert found.index == share.index
        return found.ids, found.own, found.everywhere(found.own)

    parts = together(np.arange(2), 2, run)
    assert sorted(np.concatenate([ids for ids, _, _ in parts])) == list(range(IMAGES))
    for ids, own, joined in parts:
        assert len(ids) in (19, 20, 21)
        np.testing.assert_allclose(own, expected[ids], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(joined, expected, rtol=1e-5, atol=1e-6)
    twice = images.map(lambda row: {**row, "id": row["id"] // 2 * 2})  # once on each worker
    with pytest.raises(
        ValueError, match="as many as num_images, got 38 images with .* of these ids"
    ):
        together(np.arange(2), 2, lambda share: run(share, twice))
    one = kssl.data.subset(images, [0])
    with pytest.raises(ValueError, match="some that worker 1 of 2 can read, got none"):
        together(np.arange(2), 2, lambda share: run(share, one))


@pytest.mark.parametrize(
    ("name", "width", "arguments"),
    [
        ("DeepCluster", 9, {"num_clusters": 6, "dimensions": 5}),
        ("SelfLabel", 4, {"num_clusters": 6, "num_heads": 2, "lam": 10.0, "tolerance": 1e-4}),
        ("SiftClusters", 128, {"num_clusters": 5}),
        ("PCL", 6, {"clusters": (3, 7), "queue": 8, "dimensions": 6, "smoothing": 2.0}),
    ],
)
def test_workers_find_the_labels_of_one(name, width, arguments):
    random = np.random.default_rng(0)
    features = random.normal(size=(7, width))[random.integers(0, 7, 90)]
    features = np.float32(features + 0.4 * random.normal(size=(90, width)))

    def make_task():
        keras.utils.set_random_seed(0)
        encoder = kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1,))
        return getattr(kssl.tasks, name)(encoder, num_images=90, **arguments)

    one, both = make_task(), [make_task(), make_task()]
    for _ in range(2):  # the seed of the second differs
        one.relabel(features)
        together(features, 2, lambda share: both[share.index].relabel(share))
        assert len(np.unique(one.labels.numpy())) > 4
        for task in both:
            np.testing.assert_array_equal(task.labels, one.labels)
            for a, b in zip(one.weights, task.weights, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=a.path)


def test_shows_progress(images, capfd):
    features_by_id(make(images), images, verbose=1)
    assert "1/1" in capfd.readouterr().out


def test_invalid_arguments(images):
    for when in (0, "often", ("cubic", 3), ("linear", 0), 1.5):
        with pytest.raises(ValueError, match="when must be a number of epochs"):
            Relabel(images, when=when)
    with pytest.raises(ValueError, match="warmup must be an integer .* of at least 0, got -1"):
        Relabel(images, warmup=-1)
    with pytest.raises(ValueError, match="ids 0 to 39, as many as num_images, got 30 images"):
        features_by_id(make(images), images.take(30))
    task = make(images)
    data = task.dataset(images, 20)
    message = r"add callbacks=\[keras_ssl.callbacks.Relabel\(images\)\]"
    with pytest.raises(ValueError, match=message):
        task.fit(data, verbose=0)
    with pytest.raises(ValueError, match=message):
        task.fit(data, callbacks=[keras.callbacks.TerminateOnNaN()], verbose=0)
    message = "warmup must be 0, since DeepCluster does not train without labels, got 1"
    with pytest.raises(ValueError, match=message):
        task.fit(data, callbacks=[Relabel(images, warmup=1)], verbose=0)


def test_warns_of_a_warmup_that_never_ends(images):
    callback = Relabel(images, warmup=2)
    callback.set_model(types.SimpleNamespace(warmup=2))
    callback.set_params({"epochs": 2, "steps": 5})
    message = "warmup=2 leaves none of epochs=2 in which images are clustered: train for more"
    with pytest.warns(UserWarning, match=message):
        callback.on_train_begin()
    callback.set_params({"epochs": 3, "steps": 5})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        callback.on_train_begin()
    assert callback.due == [10]


RUN = """
    import os, signal, sys
    import keras
    import keras_ssl as kssl

    path, first, kill = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "kill"
    images = kssl.data.subset(kssl.data.digits("test"), range(40))
    if first:
        task = keras.models.load_model(path)
    else:
        keras.utils.set_random_seed(0)
        encoder = kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1,))
        task = kssl.tasks.DeepCluster(encoder, num_images=40, num_clusters=5)
        task.compile(keras.optimizers.SGD(0.05, momentum=0.9))

    class Save(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.save(path)
            if kill and epoch == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    data = task.dataset(images, 20, epochs=3, first_epoch=first)
    relabel = kssl.callbacks.Relabel(images)
    task.fit(data, epochs=3, initial_epoch=first, callbacks=[relabel, Save()], verbose=0)
"""


def test_a_killed_run_resumes_with_the_same_labels_and_weights(tmp_path, monkeypatch):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(RUN))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        runpy.run_path(str(script))

    command = [sys.executable, str(script), str(tmp_path / "killed.keras"), "0", "kill"]
    killed = subprocess.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=False)
    assert killed.returncode == -signal.SIGKILL
    run(str(tmp_path / "killed.keras"), "1", "run")
    run(str(tmp_path / "whole.keras"), "0", "run")
    whole, resumed = (keras.models.load_model(tmp_path / f"{n}.keras") for n in ("whole", "killed"))
    for a, b in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
    for a, b in zip(whole.optimizer.variables, resumed.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
    assert (whole.labels.numpy() >= 0).all()


def test_clusters_of_a_teacher_are_the_labels_of_a_fresh_encoder(images):
    """Knowledge transfer: the labels are the clusters of the teacher, not of the student."""
    pixels = kssl.data.to_arrays(images)["image"]
    teacher = kssl.encoders.resnet((32, 32, 3), width=8, blocks=(1, 1))
    before = teacher.get_weights()
    task = make(images)
    once = Relabel(images, when="once", teacher=teacher)
    task.fit(task.dataset(images, 20, epochs=2), epochs=2, callbacks=[once], verbose=0)
    features = teacher(pixels, training=False).numpy()
    expected, _ = kssl.clustering.kmeans(kssl.clustering.whiten(features), 5, seed=0)
    np.testing.assert_array_equal(task.labels, expected)
    for a, b in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_invalid_teachers(images):
    with pytest.raises(ValueError, match=r"teacher must be an encoder.*task\.encoder"):
        Relabel(images, teacher=make(images))
    encoder = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,))
    task = kssl.tasks.SiftClusters(encoder, num_images=IMAGES, num_clusters=3)
    with pytest.raises(ValueError, match="SiftClusters clusters descriptors"):
        features_by_id(task, images, teacher=encoder)
