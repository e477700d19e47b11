"""Two worker processes: weights equal to those of one worker, and failure of a worker."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl

SMALL = [
    "--epochs", 2, "--batch-size", 64, "--width", 4, "--blocks", 1, "--learning-rate", 0.01,
    "--seed", 1,
]  # fmt: skip
# Labels too, from the features that each worker keeps.
TASK = ["self_label", "--set", "num_clusters=10", "--set", "num_heads=2", "--set", "relabelings=2"]


@pytest.fixture
def workers(tmp_path, held_ports, program):
    """Starts both workers of a training run, which are stopped at the end of the test or of its process."""
    started = []

    def start(*arguments, program=program):
        cluster = {"worker": [f"localhost:{port}" for port in held_ports(2)]}
        processes = []
        for index in range(2):
            config = {"cluster": cluster, "task": {"type": "worker", "index": index}}
            output = open(tmp_path / f"worker{index}.txt", "w+")  # noqa: SIM115
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", program, *map(str, arguments)],
                    env={**os.environ, "TF_CONFIG": json.dumps(config), "CUDA_VISIBLE_DEVICES": ""},
                    stdout=output, stderr=subprocess.STDOUT, cwd=tmp_path,
                )
            )  # fmt: skip
            started.append((processes[-1], output))
        return processes

    yield start
    for process, output in started:
        process.kill()
        process.wait()
        output.close()


def test_two_workers_with_one_killed_match_one_worker(workers, command, tmp_path):
    # Halves of equal size, since Keras gives all replicas the same weight.
    for image in kssl.data.digits("test").take(192):
        png = tf.io.encode_png(image["image"])
        tf.io.write_file(str(tmp_path / "images" / f"{image['id']}.png"), png)
    arguments = ["pretrain", *TASK, "--data", "images", *SMALL]
    code, _, errors = command(*arguments, "--out", "one.keras")
    assert code == 0, errors

    arguments += ["--checkpoint", "saved", "--checkpoint-every", 1, "--out", "two.keras"]
    chief, other = workers(*arguments)
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("saved/step-00000000[2-9].npz")):
        assert chief.poll() is None, (tmp_path / "worker0.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    other.send_signal(signal.SIGKILL)
    assert chief.wait(300) == 2
    output = (tmp_path / "worker0.txt").read_text()
    # A line of its own, though not always the last: after it Python may report that it could not close a
    # thread pool of TensorFlow's strategy.
    assert re.search(
        r"^keras-ssl: worker 0 of 2 stopped: another worker failed; restart all workers; training "
        r"resumes from saved$",
        output,
        re.MULTILINE,
    ), output
    assert not (tmp_path / "two.keras").exists()

    both = workers(*arguments)
    assert [process.wait(240) for process in both] == [0, 0]
    output = [(tmp_path / f"worker{index}.txt").read_text() for index in range(2)]
    assert "2 CPU (worker 0 of 2), float32" in output[0]
    assert "resuming from step" in output[0]
    assert "wrote two.keras" in output[0]
    assert "wrote" not in output[1]
    one, two = (keras.models.load_model(tmp_path / f"{n}.keras") for n in ("one", "two"))
    for a, b in zip(one.weights, two.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=a.path)
    assert one.optimizer.iterations == two.optimizer.iterations == 6


# Fits with validation, evaluates and predicts, all on datasets of the task.
VALIDATES = """
import sys
import keras, numpy as np
import keras_ssl as kssl

strategy = kssl.distribute.strategy()
keras.utils.set_random_seed(0)
with strategy.scope():
    task = kssl.tasks.Rotation(kssl.encoders.resnet((8, 8, 3), width=2, blocks=(1,), synchronized=True))
    task.compile(keras.optimizers.SGD(0.01))
pixels = np.random.default_rng(0).integers(0, 256, (14, 8, 8, 3), np.uint8)
images = kssl.data.from_array(pixels)
data = lambda: task.dataset(images, 4, shuffle=False)
logs = task.fit(data(), validation_data=data(), verbose=0).history
evaluated = task.evaluate(data(), return_dict=True, verbose=0)
# MoCo gathers an input as it is; its queue and momentum encoder have to be the same on all workers. Groups of
# queries would be of other images, since each worker has every other image.
with strategy.scope():
    moco = kssl.tasks.MoCo(
        kssl.encoders.resnet((8, 8, 3), width=2, blocks=(1,), synchronized=True), queue=16, groups=1
    )
    moco.compile(keras.optimizers.SGD(0.01))
moco.fit(moco.dataset(images, 4, shuffle=False), verbose=0)
# Features of an untrained encoder, each on the worker of its image: k-means needs sums of both.
keras.utils.set_random_seed(0)
with strategy.scope():
    deep = kssl.tasks.DeepCluster(kssl.encoders.resnet((8, 8, 3), width=2, blocks=(1,)), 14, 5)
kssl.callbacks.relabel.recompute(deep, images)
keys = moco.earlier.ring.numpy()  # in another order, since workers take turns with the images
others = [v.numpy().ravel() for v in moco.weights if v is not moco.earlier.ring]
np.savez(
    sys.argv[1] + str(kssl.distribute.worker(strategy)[0]), predicted=task.predict(data(), verbose=0),
    logs=[logs["val_loss"][0], evaluated["loss"]], moco=np.concatenate([keys.sum(axis=0), *others]),
    labels=deep.labels.numpy(), head=deep.head.kernel.numpy(),
)
"""


def test_two_workers_fit_validate_and_predict_on_all_images(workers, tmp_path):
    subprocess.run([sys.executable, "-c", VALIDATES, "one"], cwd=tmp_path, check=True)
    both = workers("two", program=VALIDATES)
    codes = [process.wait(300) for process in both]
    output = [(tmp_path / f"worker{index}.txt").read_text() for index in range(2)]
    assert codes == [0, 0], output
    one = np.load(tmp_path / "one0.npz")
    assert one["predicted"].shape == (14, 4, 4)
    for index in range(2):
        two = np.load(tmp_path / f"two{index}.npz")
        np.testing.assert_allclose(two["predicted"], one["predicted"], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(two["logs"], one["logs"], rtol=1e-4)
        np.testing.assert_allclose(two["moco"], one["moco"], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(two["labels"], one["labels"])
        np.testing.assert_array_equal(two["head"], one["head"])
    assert sorted({*one["labels"]}) == [0, 1, 2, 3, 4]


def test_workers_die_with_the_process_that_started_them(tmp_path, held_ports, program):
    """A worker of a killed run would otherwise take part in the collectives of the next run."""
    (port, nobody), config = held_ports(2), tmp_path / "config"
    cluster = {"worker": [f"localhost:{port}", f"localhost:{nobody}"]}
    config.write_text(json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 0}}))
    parent = (
        "import os, subprocess, sys; program, config = sys.argv[1:];"
        "worker = subprocess.Popen([sys.executable, '-c', program, 'pretrain', 'rotation'],"
        " env={**os.environ, 'TF_CONFIG': open(config).read()});"
        "print(worker.pid, flush=True); worker.wait()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent, program, config], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with process:
        worker = int(process.stdout.readline())
        deadline = time.monotonic() + 60
        while b"prctl" not in Path(f"/proc/{worker}/cmdline").read_bytes():
            assert time.monotonic() < deadline
        time.sleep(2)  # until it has asked the kernel to kill it with its parent
        os.kill(worker, 0)
        process.kill()
    while os.path.exists(f"/proc/{worker}") and "Z" not in state(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"
