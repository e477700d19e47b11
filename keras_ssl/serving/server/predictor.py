"""One request from its model's name to its arrays, the same for gRPC and REST."""

import contextlib
import logging
import threading
import time

import grpc
import tensorflow as tf

from keras_ssl.serving.server.requests import Refusal, outputs_of, signature_of
from keras_ssl.serving.server.servable import first_line

log = logging.getLogger("keras_ssl.serving")
STATUSES = {status.value[0]: status for status in grpc.StatusCode}


class Predictor:
    """Runs requests on the models, not too many at once.

    Args:
        models: Models.
        metrics: Metrics.
        batcher: Batcher, or None to run each request by itself.
        limit: int, requests inside at most; more are refused with RESOURCE_EXHAUSTED.
    """

    def __init__(self, models, metrics, batcher, limit):
        self.models, self.metrics, self.batcher, self.limit = models, metrics, batcher, limit
        self._inside, self._draining = 0, False
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def admission(self):
        """A place inside, for as long as the context lasts.

        Raises:
            Refusal: RESOURCE_EXHAUSTED when all are taken, UNAVAILABLE when the server shuts down.
        """
        with self._changed:
            if self._draining:
                raise Refusal(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
            if self._inside >= self.limit:
                raise Refusal(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"{self.limit} requests are being worked on: ask again later",
                )
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                if self._draining:
                    self._changed.notify_all()

    def drain(self, seconds):
        """Takes no more requests; returns whether those inside are done within so many seconds."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not self._inside, seconds)

    def predict(self, request, inputs_for, entrypoint, alive):
        """Runs a PredictRequest.

        Args:
            request: PredictRequest; its inputs are read by `inputs_for` alone.
            inputs_for: function of (request, the signature's declared inputs) to a dict of checked
                arrays.
            entrypoint: "GRPC" or "REST", for the metrics.
            alive: function, whether somebody still waits for the answer.

        Returns:
            (version, name of the signature, dict of arrays).

        Raises:
            Refusal: with the status and the words that the client gets.
        """
        start, status, name = time.monotonic(), grpc.StatusCode.OK, request.model_spec.name
        try:
            with self.admission():
                answer = self._predict(request, inputs_for, alive)
            self.metrics.request(name, "Predict", entrypoint, time.monotonic() - start)
            return answer
        except Refusal as refusal:
            status = refusal.code
            raise
        except Exception:  # its text is for the log, not for the client
            log.exception("a request to %r failed", name)
            status = grpc.StatusCode.INTERNAL
            raise Refusal(status, "internal error: see the server's log") from None
        finally:
            # Names that are not served are one series together: a client could invent millions.
            self.metrics.count(name if self.models.serves(name) else "", status)

    def _predict(self, request, inputs_for, alive):
        spec = request.model_spec
        with self.models.lease(spec) as (version, servable):
            signature_name, signature = signature_of(servable, spec.signature_name)
            inputs = inputs_for(request, servable.inputs[signature_name])
            wanted = outputs_of(request, signature)

            def run(inputs):
                start = time.monotonic()
                outputs = servable.run(inputs, signature_name, wanted)
                self.metrics.runtime(spec.name, "Predict", time.monotonic() - start)
                return outputs

            try:
                if not alive():
                    outputs = None
                elif self.batcher is None:
                    outputs = run(inputs)
                else:
                    shapes = tuple((key, array.shape[1:]) for key, array in sorted(inputs.items()))
                    key = (id(servable), signature_name, shapes, wanted)
                    outputs = self.batcher.run(key, run, inputs, alive)
            except tf.errors.OpError as error:
                raise Refusal(STATUSES[error.error_code], first_line(error)) from None
        if outputs is None:
            raise Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "nobody waits for the answer any more")
        return version, signature_name, outputs
