"""Runs prediction requests: admission control, model lookup, batching and metrics."""

import contextlib
import threading
import time

import grpc
import tensorflow as tf

from keras_ssl.serving.server.errors import StatusError, from_exception, from_tensorflow
from keras_ssl.serving.server.requests import outputs_of, signature_of


class Predictor:
    """Runs PredictRequests of gRPC and REST on the models, up to `limit` at the same time.

    Args:
        models: Models.
        metrics: Metrics.
        batcher: Batcher, or None to run every request by itself.
        limit: int, maximum number of requests in flight; further ones are RESOURCE_EXHAUSTED.
    """

    def __init__(self, models, metrics, batcher, limit):
        self.models, self.metrics, self.batcher, self.limit = models, metrics, batcher, limit
        self._in_flight, self._draining = 0, False
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def admission(self):
        """Counts a request as in flight for the duration of the context.

        Raises:
            StatusError: RESOURCE_EXHAUSTED if `limit` requests are in flight, UNAVAILABLE if the
                server is shutting down.
        """
        with self._changed:
            if self._draining:
                raise StatusError(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
            if self._in_flight >= self.limit:
                raise StatusError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"{self.limit} requests are in flight already; retry later",
                )
            self._in_flight += 1
        try:
            yield
        finally:
            with self._changed:
                self._in_flight -= 1
                if self._draining:
                    self._changed.notify_all()

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

    def predict(self, request, parse_inputs, entrypoint, is_active):
        """Runs a PredictRequest.

        Args:
            request: PredictRequest. Its inputs are accessed by `parse_inputs` only.
            parse_inputs: function of (request, dict of InputSpec) that returns a dict of arrays.
            entrypoint: "GRPC" or "REST", a label of the metrics.
            is_active: function that returns whether the client still waits for the response.

        Returns:
            (version, name of the signature, dict of arrays).

        Raises:
            StatusError: the status and message for the client.
        """
        start, status, name = time.monotonic(), grpc.StatusCode.OK, request.model_spec.name
        try:
            with self.admission():
                result = self._predict(request, parse_inputs, is_active)
            self.metrics.request(name, "Predict", entrypoint, time.monotonic() - start)
            return result
        except Exception as exception:
            error = from_exception(exception, f"a request to {name!r}")
            status = error.code
            raise error from None
        finally:
            # Models that are not served share one time series: a client could invent millions.
            self.metrics.count(name if self.models.serves(name) else "", status)

    def _predict(self, request, parse_inputs, is_active):
        spec = request.model_spec
        with self.models.lease(spec) as (version, servable):
            signature_name, signature = signature_of(servable, spec.signature_name)
            inputs = parse_inputs(request, servable.inputs[signature_name])
            selected = outputs_of(request, signature)

            def run(inputs):
                start = time.monotonic()
                outputs = servable.run(inputs, signature_name, selected)
                self.metrics.runtime(spec.name, "Predict", time.monotonic() - start)
                return outputs

            try:
                if not is_active():
                    outputs = None
                elif self.batcher is None:
                    outputs = run(inputs)
                else:
                    shapes = tuple((key, array.shape[1:]) for key, array in sorted(inputs.items()))
                    key = (id(servable), signature_name, shapes, selected)
                    outputs = self.batcher.run(key, run, inputs, is_active)
            except tf.errors.OpError as error:
                raise from_tensorflow(error) from None
        if outputs is None:
            raise StatusError(
                grpc.StatusCode.DEADLINE_EXCEEDED, "the client stopped waiting before the run"
            )
        return version, signature_name, outputs
