"""Runs prediction requests: admission control, model lookup, batching and metrics."""

import collections
import contextlib
import threading
import time

import grpc
import numpy as np
import tensorflow as tf

from keras_ssl.serving.server import memory
from keras_ssl.serving.server.errors import StatusError, from_exception, from_tensorflow
from keras_ssl.serving.server.file_costs import FileCosts
from keras_ssl.serving.server.requests import outputs_of, signature_of

MAX_RUN_ROWS = 64  # per request and run; between two runs other requests get their turn
MAX_BYTES = 2**29  # of large messages, from their arrival to the end of their run
TRIM_BYTES = 2**22  # size of a message after which freed memory is returned to the system


class Predictor:
    """Runs PredictRequests of gRPC and REST on the models, up to `limit` at the same time.

    A client may have no more requests in flight than there are places left: a single client gets half of the
    places, two clients get a third each. So there is always a place for another client. The bytes of large
    messages are limited in the same way.

    Args:
        models: Models.
        metrics: Metrics.
        runner: Batcher, or Runner to run every request by itself.
        limit: int, maximum number of requests in flight; further ones are RESOURCE_EXHAUSTED.
        max_rows: int, maximum size of an input on axis 0; requests with more are INVALID_ARGUMENT.
    """

    def __init__(self, models, metrics, runner, limit, max_rows):
        self.models, self.metrics, self.runner = models, metrics, runner
        self.limit, self.max_rows = limit, max_rows
        self.costs = FileCosts()
        self._in_flight, self._draining = 0, False
        self._by_client, self._bytes = collections.Counter(), collections.Counter()
        self._changed = threading.Condition()

    def admit(self, client, name="", size=0):
        """Counts a request as in flight until its place is closed; to be called before the request is queued.

        Args:
            client: str, the client: a connection, or the address of one.
            name: str, its model, if known; a label of the metrics.
            size: int, bytes of a message that is kept in memory meanwhile.

        Returns:
            contextlib.ExitStack, the place.

        Raises:
            StatusError: RESOURCE_EXHAUSTED if `limit` requests are in flight, or if those of this client are
                too many or too large; UNAVAILABLE if the server is shutting down.
        """
        with self._changed:
            try:
                self._check_room(client, size)
            except StatusError as error:
                self.count(name, error.code)
                raise
            self._in_flight += 1
            self._by_client[client] += 1
            self._bytes[client] += size
        place = contextlib.ExitStack()
        place.callback(self._leave, client, size)
        return place

    def _check_room(self, client, size):
        self.check_open()
        mine, left = self._by_client[client], self.limit - self._in_flight
        if left <= 0:
            raise _exhausted(f"{self.limit} requests are in flight already")
        if mine > left:
            raise _exhausted(
                f"{mine} requests of this client are in flight already, and few places are left"
            )
        if size and (held := self._bytes.total()):
            mine = self._bytes[client]
            if mine + size > MAX_BYTES - held:
                raise _exhausted(
                    f"requests of {held} bytes are in flight already, of this client {mine}"
                )

    def _leave(self, client, size):
        with self._changed:
            self._in_flight -= 1
            self._by_client[client] -= 1
            self._bytes[client] -= size
            if not self._by_client[client]:
                del self._by_client[client], self._bytes[client]
            idle = size >= TRIM_BYTES and not self._bytes.total()
            if self._draining:
                self._changed.notify_all()
        if idle:
            memory.trim()

    def check_open(self):
        """Raises UNAVAILABLE if the server is shutting down; for requests that have waited for their turn."""
        if self._draining:
            raise StatusError(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")

    def count(self, name, status):
        """Counts a request in the metrics, by its model and its grpc.StatusCode."""
        # Models that are not served share one time series: a client could invent millions.
        self.metrics.count(name if self.models.serves(name) else "", status)

    def drain(self, seconds):
        """Rejects new requests and waits for those in flight.

        Args:
            seconds: float, how long to wait.

        Returns:
            bool, whether all requests have finished.
        """
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not self._in_flight, seconds)

    def submit(self, client, request, parse_inputs, entrypoint, place, is_active, done):
        """Starts to run a PredictRequest.

        Args:
            client: str, as in `admit`.
            request: PredictRequest. Its inputs are accessed by `parse_inputs` only.
            parse_inputs: function of (request, dict of InputSpec, most rows) that returns a dict of arrays.
            entrypoint: "GRPC" or "REST", a label of the metrics.
            place: contextlib.ExitStack, from `admit`; it is closed before `done` is called.
            is_active: function that returns whether the client still waits for the response.
            done: function of (result, StatusError), of which one is None, that is called once, in this
                thread or in another one. The result is (version, name of the signature, dict of arrays).
        """
        _Prediction(self, client, request, entrypoint, place, is_active, done).start(parse_inputs)


class _Prediction:
    """A request between its admission and its response, which is run in slices of rows."""

    def __init__(self, predictor, client, request, entrypoint, place, is_active, done):
        self._predictor, self._client, self._entrypoint = predictor, client, entrypoint
        self._request, self._held = request, place
        self._is_active, self._done = is_active, done
        self._name, self._began = request.model_spec.name, time.monotonic()
        # Outputs of the slices that have run, and where the next one begins.
        self._parts, self._row = [], 0

    def start(self, parse_inputs):
        try:
            self._prepare(parse_inputs)
            strings = [array for array in self._inputs.values() if array.dtype.kind == "O"]
            if self._rows > self._step and strings and self._servable.decodes_images:
                # The check takes its turn, too, since it takes up to 0.5 s. It has no inputs, so that no
                # batch waits to be filled.
                check = self._predictor.costs.check
                self._run_in_turn(None, lambda _: check(strings) or {}, {}, self._checked)
            else:
                self._submit_slice()
        except Exception as exception:
            self._finish(exception)

    def _prepare(self, parse_inputs):
        predictor, spec = self._predictor, self._request.model_spec
        self._version, servable = self._held.enter_context(predictor.models.lease(spec))
        self._signature, signature = signature_of(servable, spec.signature_name)
        if not self._is_active():
            raise left()
        declared = servable.inputs[self._signature]
        self._inputs = inputs = parse_inputs(self._request, declared, predictor.max_rows)
        self._servable, self._outputs = servable, outputs_of(self._request, signature)
        shapes = tuple((name, array.shape[1:]) for name, array in sorted(inputs.items()))
        self._key = (id(servable), self._signature, shapes, self._outputs)
        self._request = None  # frees what the arrays do not use
        lengths = {len(array) if np.ndim(array) else 0 for array in inputs.values()}
        self._rows = lengths.pop() if len(lengths) == 1 else 0
        self._step = min(MAX_RUN_ROWS, predictor.runner.max_batch_size)
        if self._rows > self._step and not servable.sliceable(self._signature, self._outputs):
            self._step = self._rows

    def _submit_slice(self):
        if not self._is_active():
            raise left()
        inputs = self._inputs
        if self._rows > self._step:
            end = self._row + self._step
            inputs = {name: array[self._row : end] for name, array in inputs.items()}
        self._run_in_turn(self._key, self._run, inputs, self._ran)

    def _run_in_turn(self, key, run, inputs, done):
        runner = self._predictor.runner
        runner.submit(self._client, key, run, inputs, self._is_active, done)

    def _checked(self, outputs, error):
        try:
            if error is not None:
                raise error
            if outputs is None:
                raise left()
            self._submit_slice()
        except Exception as exception:
            self._finish(exception)

    def _run(self, inputs):
        start = time.monotonic()
        outputs = self._servable.run(inputs, self._signature, self._outputs)
        self._predictor.metrics.runtime(self._name, "Predict", time.monotonic() - start)
        return outputs

    def _ran(self, outputs, error):
        try:
            if error is None:
                if outputs is None:
                    raise left()
                self._row += self._step
                self._parts.append(outputs)
                if self._row < self._rows:
                    self._submit_slice()
                    return
        except Exception as exception:
            error = exception
        self._finish(error)

    def _finish(self, error=None):
        metrics, name = self._predictor.metrics, self._name
        result, status = None, grpc.StatusCode.OK
        try:
            self._held.close()
            if error is None:
                outputs = _joined(self._parts)
                metrics.request(name, "Predict", self._entrypoint, time.monotonic() - self._began)
                result = (self._version, self._signature, outputs)
        except Exception as exception:  # the client still waits for `done`
            error = exception
        if error is not None:
            if isinstance(error, tf.errors.OpError):
                error = from_tensorflow(error)
            error = from_exception(error, f"a request to {name!r}")
            status = error.code
        self._predictor.count(name, status)
        self._done(result, error)


def _joined(parts):
    """Concatenates the outputs of slices, dicts of arrays."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _exhausted(message):
    return StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{message}; retry later")


def left():
    """Returns the error of a request whose client has left, or whose deadline has passed."""
    return StatusError(
        grpc.StatusCode.DEADLINE_EXCEEDED, "the client stopped waiting before the run"
    )
