"""Puts the embedded server under load, swaps its versions, drowns it and sends it nonsense.

python tools/soak_serving.py [--seconds 120] [load swaps overload nonsense]

The server is a process of its own. Each part prints what it saw and fails where an answer is lost or
wrong, memory grows, or a status comes that must not.
"""

import argparse
import collections
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

import keras_ssl as kssl

BATCHING = """max_batch_size { value: 32 }
batch_timeout_micros { value: 1000 }
max_enqueued_batches { value: 100 }
num_batch_threads { value: 2 }
"""
MONITORING = "prometheus_config { enable: true }"


def free_port():
    """A port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Served:
    """A server process on a folder of models; a context manager."""

    def __init__(self, folder, *flags):
        self.configs = tempfile.TemporaryDirectory()
        batching, monitoring = (Path(self.configs.name) / n for n in ("batching", "monitoring"))
        batching.write_text(BATCHING)
        monitoring.write_text(MONITORING)
        program = "from keras_ssl.cli import serve; import sys; serve.main(sys.argv[1:])"
        self.rest_port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, str(folder), "--port=0", "--enable_batching",
             f"--rest_api_port={self.rest_port}", f"--batching_parameters_file={batching}",
             f"--monitoring_config_file={monitoring}", *flags],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        for line in self.process.stdout:
            if "listens on" in line:
                self.port = int(line.split("127.0.0.1:")[1].split()[0])
                return
        raise RuntimeError(f"the server of {folder} did not start")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.configs.cleanup()

    def memory(self):
        """Resident bytes of the server."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def channel(self):
        """A connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        return grpc.insecure_channel(f"localhost:{self.port}", options=options)


def request(model, **arrays):
    """PredictRequest of arrays."""
    message = predict_pb2.PredictRequest()
    message.model_spec.name = model
    for name, array in arrays.items():
        message.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    return message


def clients(number, work, seconds):
    """Runs `work(i, running)` in threads for so long; the first error of any of them is raised."""
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


def load(folder, seconds=120, number=32):
    """Many clients with 1 to 16 pictures a request: none lost, each answer its own rows.

    Args:
        folder: holds one exported model of 32 x 32 pictures.
        seconds: float.
        number: int, clients.

    Returns:
        int, the requests answered.
    """
    (name,) = os.listdir(folder)
    pictures = np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3), np.uint8)
    expected = kssl.load(Path(folder) / name)(pictures.astype(np.float32)).numpy()
    answered = [0] * number
    with Served(folder) as server:

        def work(i, running):
            choose = np.random.default_rng(i)
            with server.channel() as channel:
                stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
                while running():
                    index = choose.integers(0, 256, choose.integers(1, 17))
                    answer = stub.Predict(request(name, images=pictures[index]), timeout=60)
                    rows = tf.make_ndarray(answer.outputs["features"])
                    np.testing.assert_allclose(rows, expected[index], rtol=1e-5, atol=1e-5)
                    answered[i] += 1

        clients(number, work, seconds)
    print(f"load: {sum(answered)} requests of {number} clients, all answered with their own rows")
    return sum(answered)


def swaps(folder, seconds=60, number=16, times=20):
    """New versions while clients ask: no error, each answer is of the version it names.

    Args:
        folder: holds a model whose version n answers x + n, with versions that differ.
        seconds: float, for all swaps.
        number: int, clients.
        times: int, swaps.

    Returns:
        float, how much the server's memory grew after the first two swaps.
    """
    (name,) = os.listdir(folder)
    first = min(int(v) for v in os.listdir(Path(folder) / name))
    source = Path(folder) / name / str(first)
    seen, memory = collections.Counter(), []
    with tempfile.TemporaryDirectory() as place:
        served = Path(place) / "models" / name
        served.mkdir(parents=True)
        shutil.copytree(source, served / "1")
        with Served(served.parent, "--file_system_poll_wait_seconds=0.2") as server:

            def work(i, running):
                with server.channel() as channel:
                    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
                    value = np.float32(i)
                    while running():
                        answer = stub.Predict(request(name, x=[[value]]), timeout=30)
                        # The weights are the version they were copied from: what counts is that the
                        # answer is whole, and of the version that the response names.
                        version = answer.model_spec.version.value
                        expected = value + offsets[version]
                        assert answer.outputs["y"].float_val[0] == expected, (version, answer)
                        seen[version] += 1

            offsets = {1: first}
            stop = threading.Event()

            def swap():
                others = sorted((Path(folder) / name).iterdir(), key=lambda p: int(p.name))
                for i in range(times):
                    new = others[(i + 1) % len(others)]
                    offsets[i + 2] = int(new.name)
                    draft = served / f".{i}"
                    shutil.copytree(new, draft)
                    draft.rename(served / str(i + 2))
                    shutil.rmtree(served / str(i), ignore_errors=True)
                    if stop.wait(seconds / (times + 1)):
                        return
                    memory.append(server.memory())

            swapper = threading.Thread(target=swap)
            swapper.start()
            try:
                clients(number, work, seconds + 1)
            finally:
                stop.set()
                swapper.join()
    growth = memory[-1] / memory[min(1, len(memory) - 1)] - 1
    print(
        f"swaps: {sum(seen.values())} requests over {len(seen)} versions, no error; memory "
        f"{memory[-1] / 2**20:.0f} MiB, {growth:+.1%} since the second swap"
    )
    assert len(seen) >= times, f"only {sorted(seen)} of {times + 1} versions answered"
    return growth


def overload(folder, seconds=60, number=320):
    """Ten times more clients than places: only the statuses of overload, and quick recovery.

    Args:
        folder: holds one exported model of 32 x 32 pictures.
        seconds: float.
        number: int, clients; a tenth is let inside.

    Returns:
        (dict of status to number, slowest health check or metrics page in s, recovery in s).
    """
    (name,) = os.listdir(folder)
    pictures = np.zeros((16, 32, 32, 3), np.uint8)
    message = request(name, images=pictures)
    statuses, slowest = collections.Counter(), [0.0]
    lock = threading.Lock()
    with Served(folder, f"--grpc_max_threads={max(2, number // 10)}") as server:
        health_channel = server.channel()
        health = health_pb2_grpc.HealthStub(health_channel)

        def work(i, running):
            if i == 0:
                while running():
                    start = time.monotonic()
                    assert health.Check(health_pb2.HealthCheckRequest(), timeout=5).status == 1
                    page = f"http://localhost:{server.rest_port}/monitoring/prometheus/metrics"
                    between = time.monotonic()
                    with urllib.request.urlopen(page, timeout=5) as answer:
                        assert b"# TYPE" in answer.read()
                    now = time.monotonic()
                    slowest[0] = max(slowest[0], between - start, now - between)
                    time.sleep(0.2)
                return
            with server.channel() as channel:
                stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
                while running():
                    try:
                        stub.Predict(message, timeout=60)
                        code = "OK"
                    except grpc.RpcError as error:
                        code = error.code().name
                        time.sleep(0.01 * random.random())
                    with lock:
                        statuses[code] += 1

        clients(number, work, seconds)
        start = time.monotonic()
        with server.channel() as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            while True:
                try:
                    stub.Predict(message, timeout=2)
                    break
                except grpc.RpcError:
                    assert time.monotonic() - start < 30
        recovery = time.monotonic() - start
        health_channel.close()
    print(
        f"overload: {json.dumps(statuses)}; slowest health check or metrics page "
        f"{slowest[0]:.2f} s, recovery {recovery:.2f} s"
    )
    return dict(statuses), slowest[0], recovery


def mutated(message, rng):
    """A serialized PredictRequest with bytes changed, cut, doubled, or a field that makes no sense."""
    kind = rng.integers(6)
    copy = predict_pb2.PredictRequest()
    copy.CopyFrom(message)
    name = next(iter(copy.inputs))
    tensor = copy.inputs[name]
    if kind == 0 and tensor.tensor_shape.dim:
        dim = tensor.tensor_shape.dim[rng.integers(len(tensor.tensor_shape.dim))]
        dim.size = int(rng.choice([-1, 0, 1, 2**31, 2**62, 7]))
    elif kind == 1:
        tensor.dtype = int(rng.integers(0, 130))
    elif kind == 2:
        copy.model_spec.signature_name = str(rng.choice(["", "encoded", "stages", "pretext", "\0"]))
        copy.output_filter.append(str(rng.choice(["features", "stage1", "", "x"])))
    elif kind == 3:
        del tensor.tensor_shape.dim[rng.integers(4) :]
        tensor.float_val.extend([1.0, float("nan")])
        tensor.string_val.append(rng.bytes(5))
    data = bytearray(copy.SerializeToString())
    if kind >= 4:
        for _ in range(rng.integers(1, 9)):
            if not data:
                break
            # Mostly near the start, where names, types and sizes are.
            place = int(rng.integers(len(data) if rng.random() < 0.3 else min(60, len(data))))
            if rng.random() < 0.7:
                data[place] = int(rng.integers(256))
            else:
                del data[place : place + int(rng.integers(1, 40))]
    return bytes(data)


def nonsense(folder, number=10_000, seed=0):
    """Requests that are broken in many ways: refused, and the server lives.

    Args:
        folder: holds one exported model of 32 x 32 pictures.
        number: int, requests.
        seed: int.

    Returns:
        dict of status to number.
    """
    (name,) = os.listdir(folder)
    rng = np.random.default_rng(seed)
    good = request(name, images=rng.integers(0, 256, (2, 32, 32, 3), np.uint8))
    encoded = request(name, encoded=[tf.io.encode_png(np.zeros((9, 7, 3), np.uint8)).numpy()])
    encoded.model_spec.signature_name = "encoded"
    statuses = collections.Counter()
    with Served(folder) as server, server.channel() as channel:
        before = server.process.pid
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        for i in range(number):
            try:
                call(mutated(good if rng.random() < 0.7 else encoded, rng), timeout=30)
                statuses["OK"] += 1
            except grpc.RpcError as error:
                statuses[error.code().name] += 1
                if error.code().name in ("UNKNOWN", "INTERNAL", "DEADLINE_EXCEEDED"):
                    raise
            if i % 100 == 0:
                call(good.SerializeToString(), timeout=30)
        assert server.process.poll() is None
        assert server.process.pid == before
    print(f"nonsense: {json.dumps(statuses)}")
    return dict(statuses)


def write_counters(folder, versions=(1, 2, 3)):
    """Writes a model `counter` whose version n answers x + n."""
    for version in versions:
        module = tf.Module()
        module.version = tf.Variable(float(version))
        spec = tf.TensorSpec((None, 1), tf.float32, "x")
        add = tf.function(lambda x, m=module: {"y": x + m.version}, input_signature=[spec])
        tf.saved_model.save(module, str(Path(folder) / "counter" / str(version)), add)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="load, swaps, overload, nonsense; all by default")
    parser.add_argument("--seconds", type=float, help="of each part; 120, 60, 60 by default")
    parser.add_argument("--model", default="saved_models/rotation_cifar10")
    args = parser.parse_args()
    parts = args.parts or ["load", "swaps", "overload", "nonsense"]
    seconds = {"seconds": args.seconds} if args.seconds else {}
    with tempfile.TemporaryDirectory() as place:
        model = Path(place) / "models" / Path(args.model).name
        shutil.copytree(args.model, model)
        write_counters(Path(place) / "counters")
        if "load" in parts:
            load(model.parent, **seconds)
        if "swaps" in parts:
            growth = swaps(Path(place) / "counters", **seconds)
            assert growth < 0.1, growth
        if "overload" in parts:
            statuses, slowest, recovery = overload(model.parent, **seconds)
            assert set(statuses) <= {"OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}, statuses
            assert slowest < 1, slowest
            assert recovery < 2, recovery
        if "nonsense" in parts:
            nonsense(model.parent)


if __name__ == "__main__":
    main()
