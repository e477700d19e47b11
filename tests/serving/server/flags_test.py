"""The command line of the embedded server: the flags of tensorflow_model_server."""

import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
import server_process
from google.protobuf import text_format
from grpc_reflection.v1alpha import reflection_pb2_grpc
from tensorflow_serving.apis import prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

from keras_ssl.cli import serve

INVALID = [
    (["--model_base_path=/nowhere", "--port=0"], "no folder '/nowhere'"),
    (["{counter}", "--model_base_path={counter}"], "not two of them"),
    (["{counter}", "--batching_parameters_file=x"], "needs --enable_batching"),
    (["{counter}", "--enable_batching", "--batching_parameters_file=/none"], "cannot read '/none'"),
    (["{counter}", "--enable_batching=perhaps"], "must be true or false, got 'perhaps'"),
    (["{counter}", "--prot=1"], "unrecognized arguments: --prot=1"),
    (["{counter}", "--port=8500", "--rest_api_port=8500"], "are both 8500"),
    (["{counter}", "--grpc_channel_arguments=a"], "must be a=1,b=2, got 'a'"),
    (["{counter}", "--port=many"], "--port: invalid int value: 'many'"),
    (["{counter}", "--grpc_max_threads=0", "--port=0"], "limit must be at least 1"),
    (["{counter}", "--max_rows=0", "--port=0"], "max_rows must be at least 1"),
    (["{counter}", "--rest_api_timeout_in_ms=0", "--port=0"], "rest_timeout must be a positive"),
    (["{counter}", "--rest_api_max_request_bytes=0", "--port=0"], "rest_max_request_bytes must be in"),
    (["--model_config_file={bad}"], "Error parsing text-format tensorflow.serving.ModelServerConfig"),
    (["--model_base_path={counter}", "--port=0"], "nothing to listen on"),
    (["{empty}", "--port=0"], "no model in"),
    (["{counter}", "--reload_config=on"], "invalid choice: 'on'"),
    (["{counter}", "--reload_config=socket", "--port=0"], "set socket_path, too"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "message"), INVALID)
def test_invalid_flags(counter, tmp_path, monkeypatch, flags, message):
    monkeypatch.setenv("PATH", "")
    (tmp_path / "bad").write_text("no config")
    (tmp_path / "empty").mkdir()
    paths = {"counter": counter, "bad": tmp_path / "bad", "empty": tmp_path / "empty"}
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        serve.main([flag.format(**paths) for flag in flags])


def test_the_flags_of_tensorflow_model_server(counter, tmp_path, predict_request):
    (tmp_path / "monitoring").write_text('prometheus_config { enable: true path: "/metrics" }')
    (tmp_path / "batching").write_text("max_batch_size { value: 8 }")
    ports = [server_process.free_port() for _ in range(2)]
    flags = [
        "--model_name=half", f"--model_base_path={counter}", f"--port={ports[0]}",
        f"--rest_api_port={ports[1]}", "--rest_api_timeout_in_ms=5000", "--enable_batching=true",
        "--rest_api_max_request_bytes=1000", "--rest_api_max_connections_per_client=3",
        f"--grpc_socket_path={tmp_path}/socket", f"--monitoring_config_file={tmp_path}/monitoring",
        f"--batching_parameters_file={tmp_path}/batching", "--flush_filesystem_caches=false",
        "--grpc_channel_arguments=grpc.max_connection_age_ms=2000,grpc.lb_policy_name=grpclb",
        "--tensorflow_intra_op_parallelism=1", "--enable_serialization_as_tensor_content",
        "--max_rows=2", "--enable_grpc_reflection=false",
    ]  # fmt: skip
    with subprocess.Popen(
        [server_process.COMMAND, "serve", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "half version 3\n"
        assert f"0.0.0.0:{ports[0]} (gRPC) and port {ports[1]} (REST)" in process.stdout.readline()
        for address in (f"localhost:{ports[0]}", f"unix:{tmp_path}/socket"):
            with grpc.insecure_channel(address) as channel:
                stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
                response = stub.Predict(predict_request("half", x=[[1.0]]), timeout=10)
                assert response.outputs["y"].tensor_content == np.float32(4).tobytes()
                with pytest.raises(grpc.RpcError, match="3 rows, more than the 2"):
                    stub.Predict(predict_request("half", x=[[1.0]] * 3), timeout=10)
                reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
                with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
                    next(reflection.ServerReflectionInfo(iter([]), timeout=10))
        with urllib.request.urlopen(f"http://localhost:{ports[1]}/metrics", timeout=10) as page:
            assert b":tensorflow:serving:batching_session:queuing_latency" in page.read()
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"http://localhost:{ports[1]}/", bytes(1001), timeout=10)
        assert b"at most 1000 bytes, got 1001" in error.value.read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert "--flush_filesystem_caches has no effect" in process.stderr.read()


def test_a_socket_that_another_server_holds(counter, tmp_path, capsys):
    path = f"{tmp_path}/socket"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        flags = [f"--model_base_path={counter}", f"--grpc_socket_path={path}"]
        port = server_process.free_port()
        server = serve._server(serve.parser().parse_args([*flags, f"--port={port}"]), "127.0.0.1")
        server.stop()
        assert server.port == port
        assert f"error: --grpc_socket_path '{path}' is held by another" in capsys.readouterr().err
        for more in (["--port=0"], [f"--port={port}", "--reload_config=socket"]):  # needed
            with pytest.raises(ValueError, match="is held by another server: stop that or choose"):
                serve._server(serve.parser().parse_args([*flags, *more]), "127.0.0.1")
        assert os.path.exists(path)


@pytest.fixture
def start(tmp_path):
    """Starts `serve` where tensorflow_model_server is on the PATH: one that prints its arguments."""
    stand_in = tmp_path / "tensorflow_model_server"
    stand_in.write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
    stand_in.chmod(0o755)

    def run(*flags):
        return subprocess.Popen(
            [server_process.COMMAND, "serve", *flags],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        )  # fmt: skip

    return run


def test_nobody_listens_on_all_addresses_without_host(counter, start):
    """TensorFlow Serving would: it has no flag for an address."""
    with start(str(counter), "--port=0") as process:
        assert process.stdout.readline() == "counter version 3\n"
        assert "127.0.0.1:" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert "tensorflow_model_server, which --host 0.0.0.0 would run" in process.stderr.read()


def test_serve_becomes_tensorflow_model_server_if_that_is_installed(exported, start):
    with start(str(exported.parent), "--port=0", "--host=0.0.0.0") as process:
        first, *flags = process.stdout.read().splitlines()
        assert process.wait(timeout=20) == 0
    port, config_file = (flag.split("=")[1] for flag in flags)
    assert int(port) > 0
    assert first.endswith(f"serves rotation_digits on 0.0.0.0:{port}")
    config = text_format.Parse(
        Path(config_file).read_text(), model_server_config_pb2.ModelServerConfig()
    )
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path) == ("rotation_digits", str(exported))
    os.remove(config_file)
