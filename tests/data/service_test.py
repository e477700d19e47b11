"""Batches from real worker processes: the same ones in the same order, no matter which process is killed."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.cli import data_service as service_command
from keras_ssl.data import service

# Like the console script, which silences TensorFlow's log.
COMMAND = (
    "import sys; sys.argv[0] = 'keras-ssl'; from keras_ssl.cli import main;"
    "sys.argv[1:1] = ['data-service']; main()"
)


class Cluster:
    """A dispatcher and its workers, as processes of the command."""

    def __init__(self):
        self.processes = []
        self.dispatcher = self.start("dispatcher", "--port", "0")
        self.port = re.fullmatch(
            r"dispatcher listens on port (\d+); Ctrl-C stops\n", self.dispatcher.stdout.readline()
        )[1]
        self.address = f"grpc://localhost:{self.port}"

    def start(self, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def workers(self, number):
        found = [
            self.start("worker", "--dispatcher", f"localhost:{self.port}") for _ in range(number)
        ]
        for worker in found:
            line = worker.stdout.readline()
            assert re.fullmatch(
                r"worker listens on port (\d+) and is known as 127.0.0.1:\1; Ctrl-C stops\n", line
            )
        return found

    def stop(self):
        """Returns their exit codes, those of the workers first."""
        for process in reversed(self.processes):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        return [process.returncode for process in self.processes]


@pytest.fixture(scope="module")
def cluster():
    made = Cluster()
    try:
        made.first = made.workers(2)
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def task():
    return kssl.tasks.Rotation(encoder())


@pytest.fixture
def images(noise):
    return kssl.data.from_array(noise)


@pytest.fixture
def photos(noise, tmp_path):
    """21 JPEG files."""
    for k, image in enumerate(noise[:21]):
        (tmp_path / f"{k:02}.jpg").write_bytes(tf.io.encode_jpeg(image).numpy())
    return tmp_path


def encoder():
    return kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,))


def same(expected, got):
    assert len(got) == len(expected)
    for a, b in zip(tf.nest.flatten(expected), tf.nest.flatten(got), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def disturbed(task, images, address, acts):
    """Returns all 80 batches of 2 images of 4 epochs, and the warnings; calls `acts[n]` after n batches."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = []
        for batch in task.dataset(images, 2, epochs=4, service=address):
            batches.append(batch)
            acts.get(len(batches), int)()
    return batches, [str(w.message) for w in caught if "tf.data service" in str(w.message)]


def test_same_batches_as_without_a_service(cluster, task, images, recwarn):
    served = task.dataset(images, 12, epochs=2, seed=3, service=cluster.address)
    assert int(served.cardinality()) == 8
    expected = list(task.dataset(images, 12, epochs=2, seed=3))
    got = list(served)
    same(expected, got)
    assert not [
        w for w in recwarn if "tf.data service" in str(w.message)
    ]  # the worker computed them
    with pytest.raises(AssertionError):
        same(expected, got[::-1])  # the batches do differ
    same(expected[3:], list(served.from_step(3)))


@pytest.mark.parametrize(
    ("name", "more"),
    [
        # Normalized, the last bits would depend on how a process optimizes graphs, see tests/conftest.py.
        ("Jigsaw", {"num_permutations": 10, "normalize": False}),
        ("DeepCluster", {"num_images": 21, "num_clusters": 3}),
    ],
)
def test_files_are_read_by_the_workers(name, more, cluster, photos):
    task, images = getattr(kssl.tasks, name)(encoder(), **more), kssl.data.from_folder(photos, 32)
    expected = list(task.dataset(images, 4))
    same(expected, list(task.dataset(images, 4, service=cluster.address)))


class Clips(kssl.tasks.Rotation):
    """Returns frames and depth unchanged."""

    needs = ("frames", "depth")

    def pretext(self, batch, seed):
        return {name: batch[name] for name in ("frames", "depth")}, batch["id"]


def test_further_columns(cluster, noise):
    depth = noise[..., :1].astype(np.float32)
    depth[:, ::3] = np.nan
    frames = np.stack([noise, noise[::-1]], axis=1)
    images = kssl.data.from_array(noise, frames=frames, depth=depth)
    task = Clips(encoder())
    batches = list(task.dataset(images, 16, service=cluster.address))
    same(list(task.dataset(images, 16)), batches)
    (first, ids), *_ = batches
    np.testing.assert_array_equal(first["frames"], frames[ids])
    np.testing.assert_array_equal(first["depth"], depth[ids])


@pytest.mark.parametrize("bad", [[5], [4, 5, 6, 7]])
def test_unreadable_images_are_replaced_as_without_a_service(bad, cluster, task, photos):
    images = kssl.data.from_folder(photos, 32)
    whole = list(task.dataset(images, 4, shuffle=False))
    for number in bad:
        (photos / f"{number:02d}.jpg").write_bytes(b"damaged since")
    damaged = list(task.dataset(images, 4, shuffle=False, service=cluster.address))
    with pytest.warns(UserWarning, match="unreadable"):
        same(list(task.dataset(images, 4, shuffle=False)), damaged)
    same([whole[0], *whole[2:]], [damaged[0], *damaged[2:]])


def test_fit_and_no_threads_left_behind(cluster, task, images):
    task.compile("sgd")
    history = task.fit(
        task.dataset(images, 8, epochs=2, service=cluster.address), epochs=2, verbose=0
    ).history
    assert len(history["loss"]) == 2
    before = threading.active_count()
    iterator = iter(task.dataset(images, 2, epochs=100, service=cluster.address))
    next(iterator)
    del iterator
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_workers_that_hang_start_late_and_are_killed(cluster, task, images, monkeypatch):
    monkeypatch.setattr(service, "WAIT_SECONDS", 2.0)
    monkeypatch.setattr(service, "MAX_AHEAD", 8)
    expected = list(task.dataset(images, 2, epochs=4))
    first, second = cluster.first
    acts = {10: lambda: first.send_signal(signal.SIGSTOP), 40: first.kill}
    same(expected, disturbed(task, images, cluster.address, acts)[0])
    cluster.workers(1)
    same(expected, disturbed(task, images, cluster.address, {10: second.kill})[0])


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("localhost:5050", "of the form grpc://host:port, got 'localhost:5050'"),
        ("grpc://localhost", "of the form grpc://host:port"),
        ("grpc://:5050", "of the form grpc://host:port"),
        ("grpc://localhost:x", "of the form grpc://host:port"),
        ("grpc://localhost:70000", "of the form grpc://host:port"),
        ("http://localhost:5050", "of the form grpc://host:port"),
        (5050, "of the form grpc://host:port, got 5050"),
        ("grpc://localhost:1", "is no dispatcher that answers .*refused.*data-service dispatcher"),
        ("grpc://no.such.host.invalid:5050", "is no dispatcher that answers"),
    ],
)
def test_invalid_addresses(address, message, task, images):
    with pytest.raises(ValueError, match=f"service .*{message}"):
        task.dataset(images, 8, service=address)


def test_images_without_random_access(cluster, task, images):
    with pytest.raises(
        ValueError, match="images with random access.*keras_ssl.data.subset does not"
    ):
        task.dataset(images.take(20), 8, service=cluster.address)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"data-service: .*dispatcher\|worker"),
        (["train"], "data-service: .*invalid choice: 'train'"),
        (["worker"], "data-service: .*--dispatcher"),
        (
            ["worker", "--dispatcher", "localhost"],
            "--dispatcher must be HOST:PORT, got 'localhost'",
        ),
        (["worker", "--dispatcher", "localhost:1"], "no dispatcher answers at 'localhost:1'"),
        (["dispatcher", "--port", "70000"], r"--port must be in 0\.\.65535, got 70000"),
        (["dispatcher", "--port", "x"], "data-service: .*--port.*'x'"),
    ],
)
def test_invalid_commands(arguments, message):
    with pytest.raises(ValueError, match=message):
        service_command.main(arguments)


def test_a_port_in_use(cluster):
    for role in (["dispatcher"], ["worker", "--dispatcher", f"localhost:{cluster.port}"]):
        with pytest.raises(ValueError, match=f"--port {cluster.port} is not available .*in use"):
            service_command.main([*role, "--port", cluster.port])


def test_a_dispatcher_that_hangs_and_dies(cluster, task, images, monkeypatch):
    """Runs last, since it ends the cluster."""
    monkeypatch.setattr(service, "WAIT_SECONDS", 1.0)
    expected = list(task.dataset(images, 2, epochs=4))

    def halt():
        for process in cluster.processes:
            process.send_signal(signal.SIGSTOP)

    got, warned = disturbed(task, images, cluster.address, {10: halt})
    for process in cluster.processes:
        process.send_signal(signal.SIGCONT)
    same(expected, got)
    assert warned == [
        f"the tf.data service {cluster.address} has delivered nothing for 1 s: batches are computed here "
        "meanwhile"
    ]
    got, _ = disturbed(task, images, cluster.address, {10: cluster.dispatcher.kill})
    same(expected, got)
    codes = cluster.stop()
    # The last worker exits normally although its dispatcher was killed.
    assert (codes[0], codes[-1]) == (-signal.SIGKILL, 0)
