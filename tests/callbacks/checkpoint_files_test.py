"""The files of checkpoints: damage of any kind, other processes, which ones are kept."""

import errno
import random
import subprocess
import sys
import warnings
import zipfile

import keras
import numpy as np
import pytest

import keras_ssl as kssl
from keras_ssl.callbacks import Checkpoint
from keras_ssl.callbacks.checkpoint import saved_in
from keras_ssl.training import distribute


@pytest.fixture
def train(images, make_linear_task, tmp_path):
    """Trains a task for so many epochs of one step, with checkpoints; returns the task."""

    def fit(epochs, *callbacks, **arguments):
        task = make_linear_task()
        task.compile(keras.optimizers.SGD(0.01))
        data = task.dataset(images, 20, epochs=epochs)
        callbacks = [*callbacks, Checkpoint(tmp_path, **arguments)]
        task.fit(data, epochs=epochs, callbacks=callbacks, verbose=0)
        return task

    return fit


def steps(folder):
    return [step for step, _ in saved_in(folder)]


def test_no_damage_raises_or_changes_a_value(train, tmp_path):
    """Single bits, half of them in the headers, which have no checksum; every kind of length; no file."""
    train(2)
    checkpoint = Checkpoint(tmp_path)
    newest = saved_in(tmp_path)[-1][1]
    whole, moved = newest.read_bytes(), newest.rename(tmp_path / "moved")
    values = {1: checkpoint._newest()[2]}
    moved.rename(newest)
    values[2] = checkpoint._newest()[2]
    assert not all(map(np.array_equal, values[1], values[2]))

    rng, headers = random.Random(0), whole.index(b"PK\1\2")
    damaged = [whole[:length] for length in range(0, len(whole), 53)]
    for first in (0, headers):
        for bit in rng.sample(range(8 * first, 8 * len(whole)), 200):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            damaged.append(bytes(flipped))
    found = {1: 0, 2: 0}
    for content in damaged:
        newest.write_bytes(content)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step, _, arrays, _ = checkpoint._newest()
        found[step] += 1
        assert all(np.array_equal(a, b) for a, b in zip(arrays, values[step], strict=True))
        assert [f"{newest} is damaged (" in str(w.message) for w in caught] == [True] * (2 - step)
    assert found[1] > 300
    assert found[2] > 20  # such as the times of files in the headers


def test_a_damaged_file_is_not_the_newest_that_is_kept(train, tmp_path):
    train(4)
    assert steps(tmp_path) == [2, 3, 4]
    damaged = {}
    for step, path in saved_in(tmp_path):
        if step > 2:
            damaged[f"{path}.damaged"] = path.read_bytes()[:-1]
            path.write_bytes(path.read_bytes()[:-1])
    with (
        pytest.warns(UserWarning, match="step-000000004.npz is damaged"),
        pytest.raises(KeyboardInterrupt),
    ):
        train(5, Stop(), keep=1)
    assert steps(tmp_path) == [3]  # its first epoch, after step 2
    # They are kept for whoever wants to look at them.
    assert {str(p): p.read_bytes() for p in tmp_path.glob("*.damaged")} == damaged
    train(5, keep=1)
    assert steps(tmp_path) == [5]


def fail(error):
    def raises(*_):
        raise error

    return raises


def test_a_file_that_cannot_be_read_now_is_not_damaged(train, tmp_path, monkeypatch):
    """Going back would train again what has been trained, and the next save would put it aside."""
    train(2)
    names = sorted(tmp_path.iterdir())
    told, from_chief = [], distribute.from_chief
    monkeypatch.setattr(
        distribute, "from_chief", lambda *sent: told.append(sent[1][0][1]) or from_chief(*sent)
    )
    whole = r"step-000000002.npz cannot be read \({}\), but may be whole: try again, or move it"
    for target, error, kind, reason in (
        (zipfile.ZipFile, OSError(errno.EIO, "Input/output error"), OSError, "Input/output error"),
        (np.lib.npyio.NpzFile, MemoryError("Unable to allocate"), MemoryError, "out of memory"),
    ):
        name = "testzip" if target is zipfile.ZipFile else "__getitem__"
        with monkeypatch.context() as patched:
            patched.setattr(target, name, fail(error))
            with pytest.raises(kind, match=whole.format(reason)):
                train(3)
        assert sorted(tmp_path.iterdir()) == names
        assert told.pop()  # or the other workers would wait forever
    saved_in(tmp_path)[-1][1].rename(tmp_path / "elsewhere")
    (tmp_path / "step-000000002.npz").symlink_to("step-000000002.npz")  # an error of the system
    with pytest.raises(OSError, match=whole.format("Too many levels of symbolic links")):
        train(3)
    (tmp_path / "elsewhere").replace(tmp_path / "step-000000002.npz")
    train(3)
    assert steps(tmp_path) == [1, 2, 3]


class Stop(keras.callbacks.Callback):
    """Interrupts training when the second epoch of this process begins."""

    epochs = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs += 1
        if self.epochs == 2:
            raise KeyboardInterrupt


TRAINS = """
import sys, time
import keras
import keras_ssl as kssl

class Slow(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            print("training", flush=True)
            time.sleep(100)

task = kssl.tasks.Rotation(kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,)))
task.compile("sgd")
data = task.dataset(kssl.data.digits("test"), 360, epochs=2)
task.fit(data, epochs=2, callbacks=[Slow(), kssl.callbacks.Checkpoint(sys.argv[1])], verbose=0)
"""


def test_two_runs_on_one_folder(tmp_path):
    folder = tmp_path / "saved"
    task = kssl.tasks.Rotation(kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,)))
    task.compile("sgd")

    def fit():
        data = task.dataset(kssl.data.digits("test"), 360, epochs=2)
        return task.fit(data, epochs=2, callbacks=[Checkpoint(folder)], verbose=0).history

    with subprocess.Popen(
        [sys.executable, "-c", TRAINS, str(folder)], stdout=subprocess.PIPE
    ) as first:
        try:
            assert first.stdout.readline() == b"training\n"
            before = {path.name: path.read_bytes() for path in folder.iterdir()}
            with pytest.raises(ValueError, match="is used by another run") as refused:
                fit()
            message = f"directory {str(folder)!r} is used by another run (process {first.pid} on "
            assert str(refused.value).startswith(message)
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        finally:
            first.kill()
    assert len(fit()["loss"]) == 1  # resumes after the epoch of the killed process
    assert steps(folder) == [1, 2]
    assert not (folder / ".lock").exists()
