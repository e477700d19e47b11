"""TensorFlow Serving's REST interface: the same responses as over gRPC, as JSON."""

import asyncio
import contextlib
import json
import re
import time
import urllib.parse
from concurrent import futures

import grpc
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
)

from keras_ssl.serving.server import json_outputs, json_tensors, services
from keras_ssl.serving.server.errors import StatusError, from_exception, invalid_argument
from keras_ssl.serving.server.http_server import HttpServer, error_response, response
from keras_ssl.serving.server.json_process import JsonProcess
from keras_ssl.serving.server.predictor import left
from keras_ssl.serving.server.requests import check_rows, check_shape
from keras_ssl.serving.server.turns import Turns

MODEL = r"/v1/models(?:/([^/:]+))?(?:/versions/([0-9]+)|/labels/([^/:]+))?"
GET = re.compile(MODEL + r"(?:/(metadata))?", re.IGNORECASE)
POST = re.compile(MODEL + r":(classify|regress|predict)", re.IGNORECASE)
ORIGIN = re.compile(r"[a-z]+://[^/]*", re.IGNORECASE)
LARGE_BODY = 2**17  # bytes: the parser takes some milliseconds for it, while all other threads wait
PARSE_THREADS = 2  # for bodies that are not large; large ones are parsed one by one
ENCODE_THREADS = 8
STATUS_THREADS = 2
PAGE_SECONDS = 1.0  # maximum age of a metrics page

Code = grpc.StatusCode
HTTP_STATUS = {
    Code.INVALID_ARGUMENT: 400, Code.FAILED_PRECONDITION: 400, Code.OUT_OF_RANGE: 400,
    Code.NOT_FOUND: 404, Code.RESOURCE_EXHAUSTED: 429, Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503, Code.DEADLINE_EXCEEDED: 504,
}  # fmt: skip


class RestServer:
    """Serves REST on a port, from `start` to `close`.

    A request counts as in flight from the moment when its body has arrived. Then client addresses take turns:
    there are threads that parse bodies, a process that parses large ones, threads that encode responses, and
    threads for status, metadata and metrics.

    Args:
        predictor: Predictor.
        host: address to listen on.
        port: int, 0 for a free one (see the attribute `port`).
        timeout: float, seconds that a request may take after its body has arrived.
        metrics_path: path of the Prometheus page, or None for no such page.
        max_body: int, maximum size of the body of a request in bytes.
        per_client: int, maximum number of connections of a client address; 0 for half of all.

    Raises:
        OSError: `port` cannot be bound.
    """

    def __init__(self, predictor, host, port, timeout, metrics_path, max_body, per_client):
        self._predictor, self._seconds, self._metrics_path = predictor, timeout, metrics_path
        self._http = HttpServer(self._respond, host, port, max_body, per_client)
        self.port = self._http.port
        self._json = JsonProcess()
        self._status = Turns(STATUS_THREADS, "rest-status")
        self._parsers = Turns(PARSE_THREADS, "rest-parse")
        self._large = Turns(1, "rest-large")
        self._encoders = Turns(ENCODE_THREADS, "rest-encode")
        self._page, self._page_end = b"", 0.0

    def start(self):
        """Starts accepting connections."""
        self._http.start()

    def close(self):
        """Waits a moment for responses that are being sent, and frees the port."""
        self._json.close()  # first, since parsing a body takes seconds
        self._http.close()
        for threads in (self._status, self._parsers, self._large, self._encoders):
            threads.close()

    async def _respond(self, request):
        try:
            path = ORIGIN.sub("", request.raw_path.partition("?")[0], 1)
            path = path.encode(errors="surrogateescape").decode(errors="replace")
            if request.method == "GET":
                return await _turn(self._status, request.protocol, self._get, path)
            if request.method != "POST":
                return error_response(501, f"Unsupported method ({request.method!r})")
            return await self._post(path, request)
        except ConnectionError:
            raise  # the client has left
        except Exception as exception:
            error = from_exception(exception)
            return error_response(HTTP_STATUS.get(error.code, 500), error.message)

    def _get(self, path):
        if path == self._metrics_path:
            return response(200, self._metrics(), "text/plain; version=0.0.4")
        match = GET.fullmatch(path)
        if not match:
            raise invalid_argument(f"Malformed request: GET {path}")
        if not match[1]:
            raise invalid_argument("Missing model name in request.")
        models = self._predictor.models
        if not match[4]:
            request = get_model_status_pb2.GetModelStatusRequest(model_spec=_model_spec(match))
            return _json_response(_to_dict(models.status(request.model_spec)))
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=_model_spec(match), metadata_field=["signature_def"]
        )
        metadata = services.metadata(models, request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        metadata.metadata["signature_def"].Unpack(signatures)
        return _json_response(
            {
                "model_spec": _to_dict(metadata.model_spec),
                "metadata": {"signature_def": _to_dict(signatures)},
            }
        )

    def _metrics(self):
        now = time.monotonic()
        if now > self._page_end:
            self._page, self._page_end = self._predictor.metrics.page(), now + PAGE_SECONDS
        return self._page

    async def _post(self, path, request):
        data, connection = await self._http.read_body(request), request.protocol
        end = time.monotonic() + self._seconds
        match = POST.fullmatch(path)
        if not match or not match[1]:
            raise invalid_argument(f"Malformed request: POST {path}")
        if match[4].lower() != "predict":
            raise StatusError(Code.UNIMPLEMENTED, "models of keras_ssl implement :predict only")
        request = predict_pb2.PredictRequest(model_spec=_model_spec(match))

        def is_active():
            return connection.is_open and time.monotonic() < end

        finished = futures.Future()
        finished.set_running_or_notify_cancel()  # a run continues even if nobody waits for it any more
        is_large = len(data) > LARGE_BODY
        size = len(data) if is_large else 0
        client = connection.address
        with self._predictor.admit(client, request.model_spec.name, size) as place:
            threads = self._large if is_large else self._parsers
            parsed = _turn(
                threads, connection, self._submit, client, request, data, end, is_active, finished
            )
            del data
            by_row = await parsed
            outputs = await _outputs(finished, end, place)
            encoded = await _turn(self._encoders, connection, _encode, outputs, by_row, is_active)
            return response(200, encoded)

    def _submit(self, client, request, data, end, is_active, finished):
        """Parses a body and submits its request; returns whether it is by row, and finishes a Future."""

        def done(result, error):
            if error is None:
                finished.set_result(result[2])
            else:
                finished.set_exception(error)

        self._predictor.check_open()
        _check_active(is_active)
        with _json_errors(), self._parse(data, end) as body:
            try:
                request.model_spec.signature_name = body.signature_name
            except ValueError:  # half a surrogate pair
                raise invalid_argument("'signature_name' must be valid Unicode") from None
            self._predictor.submit(
                client,
                request,
                lambda _, *limits: _arrays(body, *limits),
                "REST",
                contextlib.ExitStack(),  # `_post` holds the place until the response is encoded
                is_active,
                done,
            )
            return body.by_row

    def _parse(self, data, end):
        if len(data) > LARGE_BODY:
            return self._json.parse(data, end)
        return contextlib.nullcontext(json_tensors.Body(data))


async def _outputs(finished, end, place):
    """Waits for the outputs of a run until a deadline; a run that takes longer keeps its place.

    asyncio.TimeoutError is not the built-in TimeoutError in Python 3.10.
    """
    try:
        return await asyncio.wait_for(asyncio.wrap_future(finished), end - time.monotonic())
    except asyncio.TimeoutError:  # noqa: UP041
        place = place.pop_all()  # otherwise a client could start any number of such runs
        finished.add_done_callback(lambda _: place.close())
        raise _too_late() from None


def _encode(outputs, by_row, is_active):
    _check_active(is_active)
    return json_outputs.encode(outputs, by_row)


def _check_active(is_active):
    if not is_active():
        raise _too_late()


def _too_late():
    return StatusError(Code.DEADLINE_EXCEEDED, "the request has waited for too long")


def _turn(threads, connection, function, *arguments):
    """Runs a function in threads when it is the turn of a client, unless the client has left by then."""

    def run(*arguments):
        if not connection.is_open:
            raise left()
        return function(*arguments)

    return asyncio.wrap_future(threads.submit(connection.address, run, *arguments))


@contextlib.contextmanager
def _json_errors():
    try:
        yield
    except json_tensors.JsonError as error:
        raise invalid_argument(str(error)) from None


def _arrays(body, declared, max_rows):
    """Converts the inputs of a body to arrays of the types and shapes that a signature declares."""
    with _json_errors():
        arrays = body.arrays({name: tf.as_dtype(spec.type).name for name, spec in declared.items()})
    for name, array in arrays.items():
        check_shape(name, array.shape, declared[name])
        check_rows(name, array.shape, max_rows)
        arrays[name] = array.astype(declared[name].dtype, copy=False)
    return arrays


def _json_response(content):
    return response(200, json.dumps(content, indent=1).encode())


def _to_dict(message):
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _model_spec(match):
    """Builds the ModelSpec of a matched path, whose parts may be percent-encoded."""
    spec = model_pb2.ModelSpec(name=urllib.parse.unquote(match[1]))
    if match[2]:
        digits = match[2].lstrip("0") or "0"
        if len(digits) > 19 or int(digits) >= 2**63:
            raise invalid_argument(f"Failed to convert version: {match[2][:40]} to numeric.")
        spec.version.value = int(digits)
    elif match[3]:
        spec.version_label = urllib.parse.unquote(match[3])
    return spec
