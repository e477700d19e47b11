"""TensorFlow Serving's REST interface: the same responses as over gRPC, as JSON."""

import http.server
import json
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
from keras_ssl.serving.server.errors import StatusError, from_exception, invalid_argument

MODEL = r"/v1/models(?:/([^/:]+))?(?:/versions/(\d+)|/labels/([^/:]+))?"
GET = re.compile(MODEL + r"(?:/(metadata))?", re.IGNORECASE)
POST = re.compile(MODEL + r":(classify|regress|predict)", re.IGNORECASE)
MAX_BODY = 2**26  # bytes
# Parsed JSON takes ten times the memory of its text, so that only some large bodies are read at once.
LARGE_BODY = 2**20  # bytes
MAX_LARGE_BODIES = 8
MAX_CONNECTIONS = 512  # each has a thread
IDLE_SECONDS = 30.0
SENDING_SECONDS = 1.0  # for responses that are being sent when the server stops

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
        """Starts accepting connections."""
        self._thread.start()

    def close(self):
        """Waits a moment for responses that are being sent, and frees the port."""
        end = time.monotonic() + SENDING_SECONDS
        while self._server.responding and time.monotonic() < end:
            time.sleep(0.01)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, *args):
        self._connections = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.large_bodies = threading.BoundedSemaphore(MAX_LARGE_BODIES)
        self.responding = set()  # ids of threads
        super().__init__(*args)

    def process_request(self, request, client_address):
        if not self._connections.acquire(blocking=False):
            request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request, client_address):
        """Ignores clients that close the connection."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    predictor = seconds = metrics_path = None

    def setup(self):
        super().setup()
        # Header and body are two writes; by default the second waits for the client's ACK.
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

    def log_message(self, *_):
        """Logs nothing: the metrics count requests."""

    def do_GET(self):
        path = urllib.parse.urlsplit(self.path).path
        if path == self.metrics_path:
            self._send(200, self.predictor.metrics.page(), "text/plain; version=0.0.4")
            return
        self._respond(lambda: self._get(path))

    def do_POST(self):
        self._respond(lambda: self._post(urllib.parse.urlsplit(self.path).path))

    def _get(self, path):
        match = GET.fullmatch(path)
        if not match:
            raise invalid_argument(f"Malformed request: GET {path}")
        if not match[1]:
            raise invalid_argument("Missing model name in request.")
        if not match[4]:
            request = get_model_status_pb2.GetModelStatusRequest(model_spec=_model_spec(match))
            return _to_dict(self.predictor.models.status(request.model_spec))
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=_model_spec(match), metadata_field=["signature_def"]
        )
        response = services.metadata(self.predictor.models, request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return {
            "model_spec": _to_dict(response.model_spec),
            "metadata": {"signature_def": _to_dict(signatures)},
        }

    def _post(self, path):
        try:
            length = int(self.headers["Content-Length"])
        except (TypeError, ValueError):
            self.close_connection = True
            raise invalid_argument("a POST needs a Content-Length") from None
        if not 0 <= length <= MAX_BODY:
            self.close_connection = True  # the body is not read
            raise invalid_argument(f"the body must have at most {MAX_BODY} bytes, got {length}")
        if length <= LARGE_BODY:
            return self._predict(path, self.rfile.read(length))
        with self.server.large_bodies:
            return self._predict(path, self.rfile.read(length))

    def _predict(self, path, data):
        match = POST.fullmatch(path)
        if not match or not match[1]:
            raise invalid_argument(f"Malformed request: POST {path}")
        if match[4].lower() != "predict":
            raise StatusError(Code.UNIMPLEMENTED, "models of keras_ssl implement :predict only")
        body = _parse_body(data)
        request = predict_pb2.PredictRequest(model_spec=_model_spec(match))
        try:
            request.model_spec.signature_name = body.get("signature_name", "")
        except ValueError:  # half a surrogate pair
            raise invalid_argument("'signature_name' must be valid Unicode") from None
        deadline = time.monotonic() + self.seconds
        parse = json_tensors.from_rows if "instances" in body else json_tensors.from_columns
        _, _, outputs = self.predictor.predict(
            request,
            lambda _, declared: parse(body, declared),
            "REST",
            lambda: time.monotonic() < deadline,
        )
        columns = {name: json_tensors.to_json(name, array) for name, array in outputs.items()}
        if "instances" in body:
            return {"predictions": _to_rows(columns)}
        return {"outputs": columns if len(columns) > 1 else next(iter(columns.values()))}

    def _respond(self, function):
        """Sends what `function` returns as JSON, or the error that it raises."""
        thread = threading.get_ident()
        self.server.responding.add(thread)
        try:
            try:
                status, content = 200, function()
            except Exception as exception:
                error = from_exception(exception)
                status, content = HTTP_STATUS.get(error.code, 500), {"error": error.message}
            self._send(status, json.dumps(content, indent=1).encode(), "application/json")
        finally:
            self.server.responding.discard(thread)

    def _send(self, status, body, content_type):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _parse_body(data):
    """Parses the JSON of a predict request and checks its keys."""
    try:
        data.decode()  # JSON is UTF-8, but json.loads would also accept other encodings
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise invalid_argument(f"JSON Parse error: {error}") from None
    if not isinstance(body, dict):
        raise invalid_argument("the JSON must be an object with instances or inputs")
    if not isinstance(body.get("signature_name", ""), str):
        raise invalid_argument("'signature_name' key must be a string value.")
    if ("instances" in body) == ("inputs" in body):
        raise invalid_argument("Expecting one of 'instances' and 'inputs', and not both")
    return body


def _to_rows(columns):
    """Converts outputs by name to one entry per image: a value, or a dict if there are several."""
    if len({len(c) if isinstance(c, list) else -1 for c in columns.values()}) > 1:
        raise invalid_argument("the outputs have different batch sizes: use 'inputs' instead")
    if len(columns) == 1:
        return next(iter(columns.values()))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _to_dict(message):
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _model_spec(match):
    """Builds the ModelSpec of a matched path, whose parts may be percent-encoded."""
    spec = model_pb2.ModelSpec(name=urllib.parse.unquote(match[1]))
    if match[2]:
        if int(match[2]) >= 2**63:
            raise invalid_argument(f"Failed to convert version: {match[2]} to numeric.")
        spec.version.value = int(match[2])
    elif match[3]:
        spec.version_label = urllib.parse.unquote(match[3])
    return spec
