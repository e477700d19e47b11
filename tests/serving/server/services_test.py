"""The gRPC services: responses, metadata, status, reloading, health checks, reflection, UNIX sockets."""

import shutil
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from keras_ssl import serving
from keras_ssl.serving.server import configs


@pytest.fixture
def other_stub():
    """`other_stub(server)`: the stub of a server that is not the shared one."""
    channels = []

    def connect(server):
        channels.append(grpc.insecure_channel(f"localhost:{server.port}"))
        return prediction_service_pb2_grpc.PredictionServiceStub(channels[-1])

    yield connect
    for channel in channels:
        channel.close()


def test_the_response_names_model_version_and_signature(stub, predict_request, noise):
    response = stub.Predict(predict_request("rotation_digits", images=noise[:2]), timeout=10)
    assert response.model_spec.name == "rotation_digits"
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == "serving_default"
    assert tf.make_ndarray(response.outputs["features"]).shape == (2, 8)
    filtered = predict_request("rotation_digits", "stages", images=noise[:2])
    filtered.output_filter.append("stage1")
    assert list(stub.Predict(filtered, timeout=10).outputs) == ["stage1"]


def test_values_are_in_typed_fields_or_in_tensor_content(
    stub, counter, predict_request, other_stub
):
    response = stub.Predict(predict_request("counter", x=[[1.0], [4.5]]), timeout=10)
    assert list(response.outputs["y"].float_val) == [4, 7.5]
    assert not response.outputs["y"].tensor_content
    with serving.Server(counter, tensor_content=True) as other:
        response = other_stub(other).Predict(predict_request("counter", x=[[1.0]]), timeout=10)
        assert response.outputs["y"].tensor_content == np.float32(4).tobytes()
        assert not response.outputs["y"].float_val


def test_a_vector_is_accepted_for_a_column(tmp_path, predict_request, other_stub):
    add = tf.function(
        lambda x: {"y": x + 3}, input_signature=[tf.TensorSpec((None, 1), tf.float32, "x")]
    )
    tf.saved_model.save(tf.Module(), str(tmp_path / "counter" / "3"), add)
    with serving.Server(tmp_path) as server:
        response = other_stub(server).Predict(predict_request("counter", x=[1.0]), timeout=10)
    assert list(response.outputs["y"].float_val) == [4]
    assert [dim.size for dim in response.outputs["y"].tensor_shape.dim] == [1]


def test_other_methods_are_unimplemented(stub):
    for name, message in (
        ("Classify", classification_pb2.ClassificationRequest()),
        ("Regress", regression_pb2.RegressionRequest()),
        ("MultiInference", inference_pb2.MultiInferenceRequest()),
    ):
        with pytest.raises(grpc.RpcError) as error:
            getattr(stub, name)(message, timeout=10)
        assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_metadata_and_status(stub, channel):
    models = model_service_pb2_grpc.ModelServiceStub(channel)
    message = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    message.model_spec.name = "rotation_digits"
    signatures = get_model_metadata_pb2.SignatureDefMap()
    metadata = stub.GetModelMetadata(message, timeout=10).metadata
    assert metadata["signature_def"].Unpack(signatures)
    assert set(signatures.signature_def) == {
        "__saved_model_init_op", "encoded", "pretext", "serving_default", "stages",
    }  # fmt: skip
    message.metadata_field.append("other")
    with pytest.raises(grpc.RpcError, match="not supported"):
        stub.GetModelMetadata(message, timeout=10)

    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "rotation_digits"
    (version,) = models.GetModelStatus(status, timeout=10).model_version_status
    assert version.version == 1
    assert version.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
    status.model_spec.name = "m"
    with pytest.raises(grpc.RpcError, match="Could not find any versions of model m"):
        models.GetModelStatus(status, timeout=10)


def test_the_unix_socket(server, predict_request):
    with grpc.insecure_channel(f"unix:{server.socket_path}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        response = stub.Predict(predict_request("counter", x=[[1.0]]), timeout=10)
        assert response.model_spec.version.value == 3


def test_health_checks_and_reflection(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "tensorflow.serving.PredictionService"):
        response = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert response.status == health_pb2.HealthCheckResponse.SERVING
    listed = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10
    )
    names = {service.name for service in next(listed).list_services_response.service}
    assert {"tensorflow.serving.ModelService", "grpc.health.v1.Health"} <= names


def test_reloading_over_grpc(counter, tmp_path, predict_request):
    shutil.copytree(counter, tmp_path / "counter")
    with (
        serving.Server(
            config=configs.config_of({"a": tmp_path / "counter"}), reload="all"
        ) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        message = model_management_pb2.ReloadConfigRequest()
        message.config.CopyFrom(configs.config_of({"b": tmp_path / "counter"}))
        response = models.HandleReloadConfigRequest(message, timeout=30)
        assert response.status.error_code == 0
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        predicted = stub.Predict(predict_request("b", x=[[1.0]]), timeout=10)
        assert predicted.outputs["y"].float_val
        message.config.model_config_list.config[0].base_path = "relative"
        with pytest.raises(grpc.RpcError, match="absolute path"):
            models.HandleReloadConfigRequest(message, timeout=30)
        status = get_model_status_pb2.GetModelStatusRequest()
        with pytest.raises(grpc.RpcError, match="Missing ModelSpec"):
            models.GetModelStatus(status, timeout=10)


def test_reloads_do_not_pile_up(counter, monkeypatch):
    loading, go_on = threading.Event(), threading.Event()
    with (
        serving.Server(counter, reload="all") as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        monkeypatch.setattr(
            server._services._administration, "reload", lambda *_: loading.set() or go_on.wait(10)
        )
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        message = model_management_pb2.ReloadConfigRequest()
        waiting = [models.HandleReloadConfigRequest.future(message) for _ in range(4)]
        assert loading.wait(10)
        while server._services._reloads._value:  # until the others have arrived
            time.sleep(0.01)
        with pytest.raises(grpc.RpcError, match="being loaded already") as error:
            models.HandleReloadConfigRequest(message, timeout=10)
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        go_on.set()
        assert all(call.result(timeout=10) is not None for call in waiting)
