"""gRPC's standard services: health checks and reflection."""

import threading

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from keras_ssl.serving.server.errors import StatusError, parse
from keras_ssl.serving.server.rpc import Method

Status = health_pb2.HealthCheckResponse


class Health:
    """Responds to health checks: SERVING until `stop`.

    Args:
        services: sequence of str, names of the services.
    """

    def __init__(self, services):
        self._services = {"", *services}
        self._status = Status.SERVING
        self._watches = {}  # call -> whether its last response has been sent
        self._lock = threading.Lock()

    def methods(self):
        """Returns the dict of Method by path."""
        service = f"/{health.SERVICE_NAME}"
        return {
            f"{service}/Check": Method(self._check),
            f"{service}/Watch": Method(self._watch, streams=True),
        }

    def stop(self):
        """Sets the status to NOT_SERVING from now on."""
        with self._lock:
            self._status = Status.NOT_SERVING
            idle = [call for call, sent in self._watches.items() if sent]
            self._watches.update(dict.fromkeys(idle, False))
        for call in idle:
            self._send(call)

    def _check(self, data, call):
        if parse(health_pb2.HealthCheckRequest, data).service not in self._services:
            raise StatusError(grpc.StatusCode.NOT_FOUND, "no such service")
        call.respond(Status(status=self._status).SerializeToString())

    def _watch(self, data, call):
        if parse(health_pb2.HealthCheckRequest, data).service not in self._services:
            # According to gRPC's protocol, the stream stays open, since the service could be added later.
            call.send(Status(status=Status.SERVICE_UNKNOWN).SerializeToString(), lambda: None)
            return
        with self._lock:
            self._watches = {other: s for other, s in self._watches.items() if other.is_active()}
            self._watches[call] = False
        self._send(call)

    def _send(self, call):
        status = self._status

        def sent():
            with self._lock:
                self._watches[call] = status == self._status
            if status != self._status:
                self._send(call)

        call.send(Status(status=status).SerializeToString(), sent)


def reflection_methods(services, receive):
    """Creates the methods of the reflection service.

    Args:
        services: sequence of str, names of the services to list.
        receive: function of a Call that waits for its next message.

    Returns:
        dict of Method by path.
    """
    servicer = reflection.ReflectionServicer((*services, reflection.SERVICE_NAME))

    def respond(data, call):
        request = parse(reflection_pb2.ServerReflectionRequest, data)
        (response,) = servicer.ServerReflectionInfo(iter([request]), None)
        call.send(response.SerializeToString(), lambda: receive(call))

    path = f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"
    return {path: Method(respond, streams=True)}
