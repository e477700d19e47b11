"""TensorFlow Serving's REST interface: the same answers as over gRPC, in JSON."""

import http.server
import json
import logging
import re
import socket
import threading
import time
import urllib.parse

import grpc
from google.protobuf import json_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
)

from keras_ssl.serving.server import json_tensors, services
from keras_ssl.serving.server.requests import Refusal, invalid

log = logging.getLogger("keras_ssl.serving")
MODEL = r"/v1/models(?:/([^/:]+))?(?:/versions/(\d+)|/labels/([^/:]+))?"
GET = re.compile(MODEL + r"(?:/(metadata))?", re.IGNORECASE)
POST = re.compile(MODEL + r":(classify|regress|predict)", re.IGNORECASE)
MAX_BODY = 2**26  # bytes
LARGE_BODY = 2**20  # bytes, from which on
LARGE_BODIES = 8  # are read at a time: JSON grows tenfold in memory
CONNECTIONS = 512  # each has a thread
IDLE_SECONDS = 30.0
SENDING_SECONDS = 1.0  # for answers that are under way when the server stops

Code = grpc.StatusCode
HTTP_STATUS = {
    Code.INVALID_ARGUMENT: 400, Code.FAILED_PRECONDITION: 400, Code.OUT_OF_RANGE: 400,
    Code.NOT_FOUND: 404, Code.RESOURCE_EXHAUSTED: 429, Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503, Code.DEADLINE_EXCEEDED: 504,
}  # fmt: skip


class RestServer:
    """Serves REST on a port, from `start` to `close`.

    Args:
        predictor: Predictor.
        host: address to listen on.
        port: int, 0 for a free one (see the attribute `port`).
        timeout: float, seconds that a request may take.
        metrics_path: path of the Prometheus page, or None for no such page.

    Raises:
        OSError: `port` cannot be bound.
    """

    def __init__(self, predictor, host, port, timeout, metrics_path):
        handler = type(
            "Handler",
            (_Handler,),
            {"predictor": predictor, "seconds": timeout, "metrics_path": metrics_path},
        )
        self._server = _Server((host, port), handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def start(self):
        """Takes connections from now on."""
        self._thread.start()

    def close(self):
        """Takes no more connections, frees the port, and lets answers that are under way be sent."""
        end = time.monotonic() + SENDING_SECONDS
        while self._server.answering and time.monotonic() < end:
            time.sleep(0.01)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, *args):
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        self.large_bodies = threading.BoundedSemaphore(LARGE_BODIES)
        self.answering = set()  # threads
        super().__init__(*args)

    def process_request(self, request, client_address):
        if not self._places.acquire(blocking=False):
            request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request, client_address):
        """A client that went away is no event."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    predictor = seconds = metrics_path = None

    def setup(self):
        super().setup()
        # Header and body are two writes: without this the second waits for the client's ACK.
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

    def log_message(self, *_):
        """Says nothing: the metrics count requests."""

    def do_GET(self):
        path = urllib.parse.urlsplit(self.path).path
        if path == self.metrics_path:
            self._send(200, self.predictor.metrics.page(), "text/plain; version=0.0.4")
            return
        self._answer(lambda: self._get(path))

    def do_POST(self):
        self._answer(lambda: self._post(urllib.parse.urlsplit(self.path).path))

    def _get(self, path):
        match = GET.fullmatch(path)
        if not match:
            raise invalid(f"Malformed request: GET {path}")
        if not match[1]:
            raise invalid("Missing model name in request.")
        if match[4]:
            request = get_model_metadata_pb2.GetModelMetadataRequest(
                model_spec=_spec(match), metadata_field=["signature_def"]
            )
            response = services.metadata(self.predictor.models, request)
            signatures = get_model_metadata_pb2.SignatureDefMap()
            response.metadata["signature_def"].Unpack(signatures)
            return {
                "model_spec": _json(response.model_spec),
                "metadata": {"signature_def": _json(signatures)},
            }
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=_spec(match))
        return _json(self.predictor.models.status(request.model_spec))

    def _post(self, path):
        try:
            length = int(self.headers["Content-Length"])
        except (TypeError, ValueError):
            self.close_connection = True
            raise invalid("a POST needs a Content-Length") from None
        if not 0 <= length <= MAX_BODY:
            self.close_connection = True  # what it sends is not read
            raise invalid(f"the body must have at most {MAX_BODY} bytes, got {length}")
        if length <= LARGE_BODY:
            return self._predict(path, self.rfile.read(length))
        with self.server.large_bodies:
            return self._predict(path, self.rfile.read(length))

    def _predict(self, path, body):
        match = POST.fullmatch(path)
        if not match or not match[1]:
            raise invalid(f"Malformed request: POST {path}")
        if match[4].lower() != "predict":
            raise Refusal(Code.UNIMPLEMENTED, "the models of keras_ssl answer :predict")
        try:
            body.decode()  # JSON is UTF-8; json.loads would guess
            body = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise invalid(f"JSON Parse error: {error}") from None
        if not isinstance(body, dict):
            raise invalid("the JSON must be an object with instances or inputs")
        name = body.get("signature_name", "")
        if not isinstance(name, str):
            raise invalid("'signature_name' key must be a string value.")
        if ("instances" in body) == ("inputs" in body):
            raise invalid("Expecting one of 'instances' and 'inputs', and not both")
        request = predict_pb2.PredictRequest(model_spec=_spec(match))
        try:
            request.model_spec.signature_name = name
        except ValueError:  # half a surrogate pair
            raise invalid("'signature_name' must be valid Unicode") from None
        deadline = time.monotonic() + self.seconds
        rows = "instances" in body
        read = json_tensors.from_rows if rows else json_tensors.from_columns
        _, _, outputs = self.predictor.predict(
            request,
            lambda _, declared: read(body, declared),
            "REST",
            lambda: time.monotonic() < deadline,
        )
        values = {name: json_tensors.values(name, array) for name, array in outputs.items()}
        if not rows:
            return {"outputs": values if len(values) > 1 else next(iter(values.values()))}
        if len({len(value) if isinstance(value, list) else -1 for value in values.values()}) > 1:
            raise invalid("the outputs have different batch sizes: ask with 'inputs'")
        if len(values) == 1:
            return {"predictions": next(iter(values.values()))}
        return {
            "predictions": [
                dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)
            ]
        }

    def _answer(self, function):
        thread = threading.get_ident()
        self.server.answering.add(thread)
        try:
            try:
                status, answer = 200, function()
            except Refusal as refusal:
                status, answer = HTTP_STATUS.get(refusal.code, 500), {"error": refusal.words}
            except Exception:
                log.exception("a request failed")
                status, answer = 500, {"error": "internal error: see the server's log"}
            self._send(status, json.dumps(answer, indent=1).encode(), "application/json")
        finally:
            self.server.answering.discard(thread)

    def _send(self, status, body, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _json(message):
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _spec(match):
    """ModelSpec of a matched path; parts of it may be percent-encoded."""
    spec = model_pb2.ModelSpec(name=urllib.parse.unquote(match[1]))
    if match[2]:
        if int(match[2]) >= 2**63:
            raise invalid(f"Failed to convert version: {match[2]} to numeric.")
        spec.version.value = int(match[2])
    elif match[3]:
        spec.version_label = urllib.parse.unquote(match[3])
    return spec
