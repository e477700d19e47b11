"""A real gRPC server on loopback, asked by the client and by raw stubs."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

import keras_ssl as kssl
from keras_ssl import serving


@pytest.fixture(scope="module")
def server(exported):
    with serving.Server(exported.parent) as server:
        yield server


@pytest.fixture
def client(server):
    client = kssl.FeatureClient(f"localhost:{server.port}", "rotation_digits", batch_size=16)
    yield client
    client.close()


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
        yield channel


def request(images=None, **spec):
    message = predict_pb2.PredictRequest()
    message.model_spec.name = spec.pop("name", "rotation_digits")
    message.model_spec.signature_name = spec.pop("signature", "")
    if "version" in spec:
        message.model_spec.version.value = spec.pop("version")
    if images is not None:
        message.inputs["images"].CopyFrom(tf.make_tensor_proto(images))
    return message


def test_features_equal_keras_and_keep_their_order(client, task, noise):
    expected = task.features(noise).numpy()
    np.testing.assert_allclose(client.features(noise), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        client.features(list(noise[::-1])), expected[::-1], rtol=1e-5, atol=1e-5
    )


def test_files_and_bytes(client, task, noise, tmp_path):
    encoded = [tf.io.encode_png(x).numpy() for x in noise]
    for i, content in enumerate(encoded):
        (tmp_path / f"{i}.png").write_bytes(content)
    paths = [tmp_path / f"{i}.png" for i in range(40)]
    expected = task.features(noise).numpy()
    for pictures in (encoded, paths, [str(p) for p in paths]):
        np.testing.assert_allclose(client.features(pictures), expected, rtol=1e-5, atol=1e-5)


def test_requests_stay_under_the_message_limit(server, monkeypatch, noise):
    sizes = []
    client = kssl.FeatureClient(f"localhost:{server.port}", "rotation_digits", batch_size=10_000)
    send = client._stub.Predict
    monkeypatch.setattr(
        client._stub, "Predict", lambda m, **k: sizes.append(m.ByteSize()) or send(m, **k)
    )
    many = np.concatenate([noise] * 60)  # 7.4 MB
    assert client.features(many).shape == (2400, 8)
    assert len(sizes) == 3
    assert max(sizes) < 4 * 2**20
    client.close()


@pytest.mark.parametrize(
    ("pictures", "words"),
    [([], "at least one"), ("a.jpg", "sequence"), (np.zeros((2, 32, 32, 3)), "uint8"),
     ([np.zeros((32, 32, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)], "one shape"),
     (np.zeros((2, 16, 32, 3), np.uint8), "must have the shape"), ([b"hello"], "Unknown image file format")],
)  # fmt: skip
def test_client_refuses_or_says_what_the_server_refused(client, pictures, words):
    with pytest.raises(ValueError, match=words):
        client.features(pictures)


def test_client_errors(server, noise, tmp_path):
    address = f"localhost:{server.port}"
    with pytest.raises(ValueError, match=r"Servable not found for request: Latest\(nope\)"):
        kssl.FeatureClient(address, "nope").features(noise)
    with pytest.raises(ValueError, match=r"Specific\(rotation_digits, 7\)"):
        kssl.FeatureClient(address, "rotation_digits", version=7).features(noise)
    with pytest.raises(ConnectionError, match="keras-ssl serve"):
        kssl.FeatureClient("localhost:1", "m", retries=0).features(noise)
    with pytest.raises(TimeoutError, match="raise timeout"):
        kssl.FeatureClient(address, "rotation_digits", timeout=1e-6).features(noise)
    with pytest.raises(FileNotFoundError):
        kssl.FeatureClient(address, "rotation_digits").features([tmp_path / "none.jpg"])
    for arguments in ({"batch_size": 0}, {"timeout": 0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            kssl.FeatureClient(address, "m", **arguments)


def test_response_names_what_answered(channel, noise):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    response = stub.Predict(request(noise[:2]), timeout=10)
    assert response.model_spec.name == "rotation_digits"
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == "serving_default"
    assert tf.make_ndarray(response.outputs["features"]).shape == (2, 8)
    filtered = request(noise[:2], signature="stages")
    filtered.output_filter.append("stage1")
    assert list(stub.Predict(filtered, timeout=10).outputs) == ["stage1"]


def bad_requests():
    noise = np.zeros((1, 32, 32, 3), np.uint8)
    filtered = request(noise)
    filtered.output_filter.append("nope")
    extra = request(noise)
    extra.inputs["more"].CopyFrom(tf.make_tensor_proto(1))
    bomb = request(noise)
    bomb.inputs["images"].tensor_content = b""
    bomb.inputs["images"].int_val.append(1)
    bomb.inputs["images"].tensor_shape.dim[0].size = 2**28
    negative = request(noise)
    negative.inputs["images"].tensor_shape.dim[0].size = -7
    strange = request(noise)
    strange.inputs["images"].dtype = 77
    short = request(noise)
    short.inputs["images"].tensor_content = b"123"
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    return [
        (request(noise, name=""), invalid, "Missing ModelSpec"),
        (request(noise, name="m"), grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(m)"),
        (request(noise, version=7), grpc.StatusCode.NOT_FOUND, "Specific(rotation_digits, 7)"),
        (request(noise, signature="x"), grpc.StatusCode.FAILED_PRECONDITION,
         'Serving signature key "x" not found.'),
        (request(), invalid, "input size does not match signature"),
        (extra, invalid, "input size does not match signature"),
        (filtered, invalid, "output tensor alias not found in signature: nope"),
        (request(noise.astype("f4")), invalid, "must be DT_UINT8, got DT_FLOAT"),
        (request(noise[0]), invalid, "must have the shape"),
        (bomb, invalid, "tensor parsing error: images"),
        (short, invalid, "tensor parsing error: images"),
        (negative, invalid, "tensor parsing error: images"),
        (strange, invalid, "must be DT_UINT8, got 77"),
    ]  # fmt: skip


@pytest.mark.parametrize(("message", "code", "words"), bad_requests())
def test_bad_requests_get_the_statuses_of_tensorflow_serving(channel, message, code, words):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    with pytest.raises(grpc.RpcError) as error:
        stub.Predict(message, timeout=10)
    assert error.value.code() == code
    assert words in error.value.details()
    good = stub.Predict(request(np.zeros((1, 32, 32, 3), np.uint8)), timeout=10)
    assert good.outputs["features"].tensor_shape.dim[0].size == 1


def test_metadata_and_status(channel):
    predict = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    models = model_service_pb2_grpc.ModelServiceStub(channel)
    message = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    message.model_spec.name = "rotation_digits"
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert (
        predict.GetModelMetadata(message, timeout=10).metadata["signature_def"].Unpack(signatures)
    )
    assert set(signatures.signature_def) == {
        "__saved_model_init_op", "encoded", "pretext", "serving_default", "stages",
    }  # fmt: skip
    message.metadata_field.append("other")
    with pytest.raises(grpc.RpcError, match="not supported"):
        predict.GetModelMetadata(message, timeout=10)

    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "rotation_digits"
    (version,) = models.GetModelStatus(status, timeout=10).model_version_status
    assert version.version == 1
    assert version.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
    status.model_spec.name = "m"
    with pytest.raises(grpc.RpcError, match="Could not find any versions of model m"):
        models.GetModelStatus(status, timeout=10)


def test_server_refuses(server, exported, tmp_path):
    with pytest.raises(ValueError, match=f"port {server.port} .* cannot be bound"):
        serving.Server(exported, port=server.port)
    with pytest.raises(ValueError, match="no folder"):
        serving.models_in(tmp_path / "none")
    with pytest.raises(ValueError, match="no model"):
        serving.models_in(tmp_path)


def test_the_newest_of_each_model_is_served(exported, tmp_path):
    for name, version in (("a", "2"), ("a", "10"), ("b", "1")):
        shutil.copytree(exported / "1", tmp_path / name / version)
    (tmp_path / "a" / ".export-x").mkdir()
    assert list(serving.models_in(tmp_path)) == ["a", "b"]
    assert list(serving.models_in(tmp_path / "a")) == ["a"]
    with serving.Server(tmp_path) as server:
        assert {name: server.models.versions(name) for name in server.models.names()} == {
            "a": [10],
            "b": [1],
        }


def run_serve(directory, **environment):
    code = f"from keras_ssl.cli import serve; serve.main([{str(directory)!r}, '--port=0'])"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_serve_until_terminated(exported, noise):
    with run_serve(exported, PATH="") as process:
        assert process.stdout.readline() == "rotation_digits version 1\n"
        port = int(process.stdout.readline().split("127.0.0.1:")[1].split()[0])
        client = kssl.FeatureClient(f"localhost:{port}", "rotation_digits")
        assert client.features(noise).shape == (40, 8)
        client.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_serve_becomes_tensorflow_model_server_where_there_is_one(exported, tmp_path):
    stand_in = tmp_path / "tensorflow_model_server"
    stand_in.write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
    stand_in.chmod(0o755)
    with run_serve(exported.parent, PATH=f"{tmp_path}:{os.environ['PATH']}") as process:
        lines = process.stdout.read().splitlines()
        assert process.wait(timeout=20) == 0
    port, config_file = (line.split("=")[1] for line in lines[1:])
    assert int(port) > 0
    config = text_format.Parse(
        Path(config_file).read_text(), model_server_config_pb2.ModelServerConfig()
    )
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path) == ("rotation_digits", str(exported))
    os.remove(config_file)


def test_the_task_itself_can_be_asked(noise, tmp_path):
    """The `pretext` signature over gRPC: small pictures in, large ones out."""
    keras.utils.set_random_seed(0)
    small = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1, 1))
    task = kssl.tasks.SuperResolution(small)
    kssl.export(task, tmp_path / "enlarge")
    with serving.Server(tmp_path) as server:
        client = kssl.FeatureClient(f"localhost:{server.port}", "enlarge", batch_size=16)
        answer = client.pretext(noise)
        with pytest.raises(ValueError, match="pictures must hold at least one picture"):
            client.pretext([])
        with pytest.raises(ValueError, match="must be"):
            client.pretext(noise.astype(np.float32))
        client.close()
    assert set(answer) == {"image"}
    expected = task.prediction(noise)["image"].numpy()
    assert expected.shape == (40, 64, 64, 3)
    # Rounded to whole gray levels: a hair may decide between two.
    assert np.abs(answer["image"].astype(int) - expected).max() <= 1
    assert (answer["image"] == expected).mean() > 0.999


def test_other_tasks_answer_with_what_they_predict(client, task, noise):
    answer = client.pretext(noise)
    assert set(answer) == {"rotation"}
    expected = task.prediction(noise.astype(np.float32))["rotation"]
    np.testing.assert_allclose(answer["rotation"], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="pictures must all have one shape"):
        client.pretext([noise[0], noise[1][:16]])
