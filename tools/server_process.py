"""An embedded server in its own process, models for it to serve, and clients: for tests and soak tests."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

BATCHING = """max_batch_size { value: 32 }
batch_timeout_micros { value: 1000 }
max_enqueued_batches { value: 100 }
num_batch_threads { value: 2 }
"""
MONITORING = "prometheus_config { enable: true }"
COMMAND = Path(sys.executable).with_name("keras-ssl")  # as pip installs it


def free_port():
    """Returns a port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Served:
    """A server process for a folder of models, with batching, REST and metrics; a context manager.

    Args:
        folder: path of the folder.
        *flags: further flags of `keras-ssl serve`.

    Attributes:
        lines: list of str, the lines that the server printed before it listened.
        port, rest_port: int.
        process: subprocess.Popen.
    """

    def __init__(self, folder, *flags):
        self.configs = tempfile.TemporaryDirectory()
        batching, monitoring = (Path(self.configs.name) / n for n in ("batching", "monitoring"))
        batching.write_text(BATCHING)
        monitoring.write_text(MONITORING)
        self.rest_port = free_port()
        self._log = Path(self.configs.name, "log")
        command = [
            COMMAND, "serve", str(folder), "--port=0", "--enable_batching",
            f"--rest_api_port={self.rest_port}", f"--batching_parameters_file={batching}",
            f"--monitoring_config_file={monitoring}", *flags,
        ]  # fmt: skip
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        self.lines = []
        for line in self.process.stdout:
            if "listens on" in line:
                self.port = int(line.split("127.0.0.1:")[1].split()[0])
                return
            self.lines.append(line.rstrip("\n"))
        raise RuntimeError(f"the server of {folder} did not start:\n{self._log.read_text()}")

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        if error is not None:
            print(f"the log of the server:\n{self._log.read_text()[-20_000:]}", file=sys.stderr)
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.configs.cleanup()

    def memory(self):
        """Returns the resident memory of the server in bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def channel(self):
        """Opens a connection that is not shared with other channels."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        return grpc.insecure_channel(f"localhost:{self.port}", options=options)

    @contextlib.contextmanager
    def stub(self):
        """Opens a connection and yields a PredictionServiceStub."""
        with self.channel() as channel:
            yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def request(model, **arrays):
    """Builds a PredictRequest with arrays as inputs."""
    message = predict_pb2.PredictRequest()
    message.model_spec.name = model
    for name, array in arrays.items():
        message.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    return message


def run_clients(number, work, seconds):
    """Runs `work(i, running)` in threads for some seconds, and raises the first of their errors."""
    end = time.monotonic() + seconds
    errors = []

    def run(i):
        try:
            work(i, lambda: time.monotonic() < end and not errors)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def write_counters(folder, versions=(1, 2, 3)):
    """Writes a model `counter` into a folder; version n computes x + n for x (N, 1) >= 0."""
    for version in versions:
        module = tf.Module()
        module.version = tf.Variable(float(version))

        def add(x, module=module):
            positive = tf.debugging.assert_non_negative(x, "x must not be negative")
            with tf.control_dependencies([positive]):
                return {"y": x + module.version}

        spec = tf.TensorSpec((None, 1), tf.float32, "x")
        add = tf.function(add, input_signature=[spec])
        tf.saved_model.save(module, str(Path(folder) / "counter" / str(version)), add)


class Folders:
    """The folders that the parts of the soak test serve: copies, which they may change.

    Args:
        place: path of an empty folder.
        model: path of an exported model for images of 32 x 32 pixels.

    Attributes:
        export: the model, alone in its parent folder.
        counter: folder of versions to copy, written by `write_counters`.
        swapped: the model `counter` with its first version, alone in its parent folder.
    """

    def __init__(self, place, model):
        self.export = Path(place) / "models" / Path(model).name
        shutil.copytree(model, self.export)
        write_counters(place)
        self.counter = Path(place) / "counter"
        self.swapped = Path(place) / "swapped" / "counter"
        shutil.copytree(self.counter / "1", self.swapped / "1")
