"""Two logical CPUs for tf.distribute, and small shared models, made once."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration(), tf.config.LogicalDeviceConfiguration()],
)

import keras_ssl as kssl  # noqa: E402
from keras_ssl import cli  # noqa: E402


@pytest.fixture(autouse=True)
def _fresh_random_state():
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def two_replicas():
    """One strategy for all tests: TensorFlow mixes up the collectives of two in one process."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def noise():
    """40 asymmetric pictures: (40, 32, 32, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)


@pytest.fixture(scope="session")
def gratings():
    """16 pictures of stripes in four directions and four widths: (16, 32, 32, 3) uint8."""
    rows, columns = np.mgrid[:32, :32]
    pictures = []
    for k in range(16):
        angle, period = np.pi * (k % 4) / 4, (4, 7, 12, 20)[k // 4]
        wave = np.sin(2 * np.pi * (rows * np.cos(angle) + columns * np.sin(angle)) / period)
        pictures.append(np.repeat(127 + 100 * wave[..., None], 3, axis=-1))
    return np.array(pictures).astype(np.uint8)


@pytest.fixture(scope="session")
def task():
    """A small rotation task, trained a little on digits so that its statistics are not trivial."""
    keras.utils.set_random_seed(0)
    task = kssl.tasks.Rotation(kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1, 1)))
    task.compile("adam")
    task.fit(task.dataset(kssl.data.digits("test"), 60), verbose=0)
    return task


@pytest.fixture(scope="session")
def exported(task, tmp_path_factory):
    """Directory of a model `rotation_digits` with one version."""
    path = tmp_path_factory.mktemp("saved_models") / "rotation_digits"
    kssl.export(task, path, card={"data": "digits"})
    return path


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs the command in an empty folder; returns its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["keras-ssl", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return (stop.value.code or 0, *capsys.readouterr())

    return run
