"""The server in its own process: load, version swaps, overload and SIGTERM."""

import shutil
import signal
import socket
import subprocess
import time

import grpc
import numpy as np
import pytest
import server_process
import soak_serving
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc

import keras_ssl as kssl


def write_slow_model(folder):
    """Writes a model `slow` that multiplies matrices x times."""

    def work(x):
        matrix = tf.eye(900) * tf.reduce_mean(x) / tf.reduce_mean(x)
        turns = tf.cast(tf.reduce_max(x), tf.int32)
        _, matrix = tf.while_loop(lambda i, _: i < turns, lambda i, m: (i + 1, m @ m), (0, matrix))
        return {"y": x * matrix[0, 0]}

    spec = tf.TensorSpec((None, 1), tf.float32, "x")
    tf.saved_model.save(
        tf.Module(), str(folder / "slow" / "1"), tf.function(work, input_signature=[spec])
    )


def check_sigterm(server, predict_request):
    """Terminates a server: it finishes the request in flight, rejects new ones, and exits with 0."""
    with server.channel() as channel, server.stub() as stub:
        health = health_pb2_grpc.HealthStub(channel)
        for _ in range(2):  # the first request warms up
            start = time.monotonic()
            stub.Predict(predict_request("slow", x=[[20.0]]), timeout=60)
        turns = np.float32(20 * 2.0 / (time.monotonic() - start))  # about two seconds
        in_flight = stub.Predict.future(predict_request("slow", x=[[turns]]))
        time.sleep(0.3)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        response = health.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert response.status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as error:
            stub.Predict(predict_request("slow", x=[[1.0]]), timeout=5)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        assert in_flight.result(timeout=20).outputs["y"].float_val[0] == turns
        assert server.process.wait(timeout=20) == 0
        assert time.monotonic() - start < 10


@pytest.fixture
def slow_version(sleeper, write_warmup, predict_request, tmp_path):
    """A version that takes a minute to load, since its warm-up sleeps."""
    version = tmp_path / "slow_version" / "1"
    shutil.copytree(sleeper, version)
    write_warmup(version, predict_request("", x=[[60.0]]))
    return version


def test_sigterm_while_a_model_is_loaded_at_the_start(slow_version, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    port = server_process.free_port()
    path = tmp_path / "socket"
    flags = [
        f"--model_base_path={slow_version.parent}",
        f"--port={port}",
        f"--grpc_socket_path={path}",
    ]
    with subprocess.Popen([server_process.COMMAND, "serve", *flags]) as process:
        end = time.monotonic() + 100
        while not path.exists():  # the ports are bound before models are loaded
            assert time.monotonic() < end
            time.sleep(0.1)
        time.sleep(3)
        assert process.poll() is None
        with socket.create_connection(("127.0.0.1", port)):  # nobody responds yet
            start = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
            assert time.monotonic() - start < 5


def test_sigterm_while_a_new_version_is_loaded(
    counter, slow_version, tmp_path, monkeypatch, predict_request
):
    monkeypatch.setenv("PATH", "")
    served = tmp_path / "counter"
    shutil.copytree(counter / "1", served / "1")
    with server_process.Served(served, "--file_system_poll_wait_seconds=0.1") as server:
        shutil.copytree(slow_version, tmp_path / "draft")
        (tmp_path / "draft").rename(served / "2")
        time.sleep(5)
        with server.stub() as stub:
            message = predict_request("counter", x=[[1.0]])
            assert stub.Predict(message, timeout=10).model_spec.version.value == 1
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == 0
        assert time.monotonic() - start < 10


def test_a_server_process(exported, counter, noise, tmp_path, monkeypatch, predict_request):
    """The short forms of `tools/soak_serving.py`, and SIGTERM."""
    monkeypatch.setenv("PATH", "")  # there is no tensorflow_model_server
    shutil.copytree(exported, tmp_path / exported.name)
    shutil.copytree(counter / "1", tmp_path / "counter" / "1")
    write_slow_model(tmp_path)
    flags = ("--file_system_poll_wait_seconds=0.2", "--grpc_max_threads=10")
    with server_process.Served(tmp_path, *flags) as server:
        assert server.lines == ["counter version 1", "rotation_digits version 1", "slow version 1"]
        address = f"localhost:{server.port}"
        with kssl.FeatureClient(address, "rotation_digits") as client:
            assert client.features(noise).shape == (40, 8)
        assert soak_serving.load(server, exported, seconds=2, number=8) > 16
        growth = soak_serving.swaps(
            server, counter, tmp_path / "counter", seconds=6, number=8, times=4
        )
        assert growth < 0.1
        statuses, slowest, recovery = soak_serving.overload(
            server, exported.name, seconds=3, number=60
        )
        assert statuses["OK"] > 0 < statuses["RESOURCE_EXHAUSTED"]
        assert slowest < 2  # under a second on a machine without other load
        assert recovery < 2
        check_sigterm(server, predict_request)
