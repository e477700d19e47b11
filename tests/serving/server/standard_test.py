"""Health checks, also of services that are watched, and reflection."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from keras_ssl import serving
from keras_ssl.serving.server import calls

Status = health_pb2.HealthCheckResponse


@pytest.fixture
def other(counter):
    """A server without reflection, and a connection to it."""
    server = serving.Server(counter, reflection=False).__enter__()
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"localhost:{server.port}", options) as channel:
        yield server, channel
    server.stop()


def listing():
    return iter([reflection_pb2.ServerReflectionRequest(list_services="")])


def test_watched_services_change_when_the_server_stops(other):
    server, channel = other
    health = health_pb2_grpc.HealthStub(channel)
    known = health.Watch(health_pb2.HealthCheckRequest())
    unknown = health.Watch(health_pb2.HealthCheckRequest(service="none"))
    assert next(known).status == Status.SERVING
    assert next(unknown).status == Status.SERVICE_UNKNOWN
    with pytest.raises(grpc.RpcError) as error:
        health.Check(health_pb2.HealthCheckRequest(service="none"), timeout=5)
    assert error.value.code() == grpc.StatusCode.NOT_FOUND
    server._health.stop()
    assert next(known).status == Status.NOT_SERVING
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=5).status == Status.NOT_SERVING


def test_watching_is_bounded_in_bytes_and_streams(other):
    server, channel = other
    health = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.RpcError) as error:
        next(health.Watch(health_pb2.HealthCheckRequest(service="x" * 10**7), timeout=5))
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(error.value.details()) < 200
    held = [
        health.Watch(health_pb2.HealthCheckRequest())
        for _ in range(calls.MAX_STREAMS_PER_CONNECTION)
    ]
    assert [next(call).status for call in held] == [Status.SERVING] * len(held)
    with pytest.raises(grpc.RpcError) as error:
        next(health.Watch(health_pb2.HealthCheckRequest(), timeout=5))
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in held:
        call.cancel()
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=5).status == Status.SERVING
    assert next(health.Watch(health_pb2.HealthCheckRequest(), timeout=5)).status == Status.SERVING
    assert len(server._health._watches) == 1  # nothing is kept of those that were cancelled


def test_reflection_is_optional(other, channel):
    for connection, expected in ((channel, True), (other[1], False)):
        stub = reflection_pb2_grpc.ServerReflectionStub(connection)
        if expected:
            answers = list(stub.ServerReflectionInfo(iter([*listing(), *listing()]), timeout=5))
            assert [len(a.list_services_response.service) for a in answers] == [4, 4]
        else:
            with pytest.raises(grpc.RpcError) as error:
                next(stub.ServerReflectionInfo(listing(), timeout=5))
            assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED
