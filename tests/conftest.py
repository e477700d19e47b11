"""Process of each test, two logical CPUs for tf.distribute, and small shared models, made once."""

import gc
import logging
import os
import re
import signal
import socket
import sys

# What XLA's tests wait for is LLVM: a third less of it. The graph's own passes run all the same.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import settings
from tensorflow.python.framework.ops import gradient_registry
from xdist.scheduler import LoadScopeScheduling

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration(), tf.config.LogicalDeviceConfiguration()],
)

import keras_ssl as kssl  # noqa: E402
from keras_ssl import cli  # noqa: E402

# The same examples in each run; `--hypothesis-profile default` draws others.
settings.register_profile("repeated", derandomize=True)
settings.load_profile("repeated")


class Shared(LoadScopeScheduling):
    """Gives all tests that share a fixture to one process: those of a file, or of a task or page in it."""

    def _split_scope(self, nodeid):
        file, _, test = nodeid.partition("::")
        case = re.search(r"\[(\w+|[\w/]+\.md)[-\]]", test) if file in SPLIT else None
        return f"{file} {case[1]}" if case else file

    def remove_node(self, node):
        """Forgets what a crashed process completed: xdist would assign it as empty work, and wait forever."""
        done = [scope for scope, tests in self.assigned_work[node].items() if all(tests.values())]
        for scope in done:
            del self.assigned_work[node][scope]
        return super().remove_node(node)


AS_USERS = (
    "tests/cli/main_test.py",
    "tests/cli/quickstart_test.py",
    "tests/soak_",
    "tests/callbacks/relabel_test.py",
)
SPLIT = ("tests/conformance_test.py", "tests/docs_test.py")  # the longest files


def pytest_xdist_make_scheduler(config, log):
    return Shared(config, log)


def pytest_collection_finish():
    """Spares the garbage collector what stays for good: unloading a model took a quarter of a second."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _graph_optimizer(request):
    """Runs graphs as traced, which takes a third less time; as users do where users are simulated."""
    path = request.path.as_posix()
    tf.config.optimizer.set_experimental_options(
        {"disable_meta_optimizer": not any(part in path for part in AS_USERS)}
    )


@pytest.fixture(autouse=True)
def _fresh_random_state():
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def _no_leak():
    """TensorFlow registers each custom gradient of a graph forever, and with it the graph: 90 MB per test."""
    yield
    gradients = gradient_registry._registry
    for name in [name for name in gradients if name.startswith("CustomGradient-")]:
        del gradients[name]


@pytest.fixture(scope="session")
def two_replicas():
    """One strategy for all tests: TensorFlow mixes up the collectives of two in one process."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def noise():
    """40 asymmetric images: (40, 32, 32, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)


@pytest.fixture(scope="session")
def gratings():
    """16 images of stripes in four directions and four widths: (16, 32, 32, 3) uint8."""
    rows, columns = np.mgrid[:32, :32]
    images = []
    for k in range(16):
        angle, period = np.pi * (k % 4) / 4, (4, 7, 12, 20)[k // 4]
        wave = np.sin(2 * np.pi * (rows * np.cos(angle) + columns * np.sin(angle)) / period)
        images.append(np.repeat(127 + 100 * wave[..., None], 3, axis=-1))
    return np.array(images).astype(np.uint8)


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
    # What `serve` sets in its process, which ends with it: here later tests would have it.
    monkeypatch.setattr(logging.getLogger("keras_ssl.serving"), "handlers", [])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["keras-ssl", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return (stop.value.code or 0, *capsys.readouterr())

    yield run
    signal.set_wakeup_fd(-1)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def held_ports():
    """Returns free ports that no other process gets before the test ends.

    The sockets are bound but do not listen, and can be bound again by a process that requests
    this port, as gRPC does. A port that was only looked up could be taken by another process in the
    meantime, and the collectives of two training runs would mix.
    """
    held = []

    def ports(number):
        for _ in range(number):
            held.append(socket.socket())
            held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held[-1].bind(("", 0))
        return [one.getsockname()[1] for one in held[-number:]]

    yield ports
    for one in held:
        one.close()


@pytest.fixture(scope="session")
def program():
    """Code for `python -c` that runs the command, and is killed when the test process exits."""
    return (
        "import ctypes, os, signal, sys;"
        "parent = os.getppid(); ctypes.CDLL(None).prctl(1, signal.SIGKILL);"  # 1: PR_SET_PDEATHSIG
        "os.getppid() == parent or sys.exit(1);"
        "sys.argv[0] = 'keras-ssl'; from keras_ssl.cli import main; main()"
    )
