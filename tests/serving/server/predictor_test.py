"""Admission control and deadlines of requests."""

import time

import grpc
import pytest
from tensorflow_serving.apis import prediction_service_pb2_grpc

from keras_ssl import serving
from keras_ssl.serving.server import configs


@pytest.fixture
def batching_server(counter):
    """`batching_server(micros, limit)`: starts a server and returns it with its stub."""
    opened = []

    def start(micros, limit=128):
        batching = configs.BatchingParameters()
        batching.batch_timeout_micros.value = micros
        server = serving.Server(counter, batching=batching, limit=limit).__enter__()
        channel = grpc.insecure_channel(f"localhost:{server.port}")
        opened.extend([channel.close, server.stop])
        return server, prediction_service_pb2_grpc.PredictionServiceStub(channel)

    yield start
    for close in opened:
        close()


def test_requests_beyond_the_limit_are_rejected(batching_server, predict_request):
    message = predict_request("counter", x=[[1.0]])
    _, stub = batching_server(10**6, limit=2)  # two requests wait for a second
    first = [stub.Predict.future(message) for _ in range(2)]
    time.sleep(0.3)
    with pytest.raises(grpc.RpcError, match="2 requests are in flight") as error:
        stub.Predict(message, timeout=10)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert all(f.result().outputs["y"].float_val[0] == 4 for f in first)


def test_a_request_whose_deadline_passes_in_the_queue_is_not_run(
    batching_server, predict_request, monkeypatch
):
    server, stub = batching_server(500_000)
    sizes = []
    with server.models.lease(predict_request("counter").model_spec) as (_, servable):
        run = servable.run
        monkeypatch.setattr(
            servable,
            "run",
            lambda inputs, *a: sizes.append(len(inputs["x"])) or run(inputs, *a),
        )
    late = stub.Predict.future(predict_request("counter", x=[[1.0]] * 7), timeout=0.1)
    in_time = stub.Predict.future(predict_request("counter", x=[[1.0]]), timeout=10)
    assert late.exception().code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert in_time.result().outputs["y"].float_val[0] == 4
    assert sizes == [1]
