"""The embedded server: TensorFlow Serving's contract on graph Sessions, in this process."""

import logging
import threading
from concurrent import futures
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tensorflow_serving.config import model_server_config_pb2

from keras_ssl.serving.server import services
from keras_ssl.serving.server.batching import Batcher
from keras_ssl.serving.server.configs import config_of, models_in, read
from keras_ssl.serving.server.metrics import Metrics
from keras_ssl.serving.server.models import Models
from keras_ssl.serving.server.predictor import Predictor
from keras_ssl.serving.server.requests import Refusal
from keras_ssl.serving.server.rest import RestServer

log = logging.getLogger("keras_ssl.serving")
METRICS_PATH = "/monitoring/prometheus/metrics"
DRAIN_SECONDS = 8.0  # what requests in flight have at the end
SPARE_THREADS = 16  # health, status and refusals are answered while all places are taken


class Server:
    """Serves models over gRPC and REST, from this process.

    PredictionService Predict and GetModelMetadata, ModelService GetModelStatus and
    HandleReloadConfigRequest, with the statuses and words of TensorFlow Serving; health checking and
    reflection. Folders are looked at every `poll_seconds`: a new version takes over when it is loaded and
    warmed up; one that does not load is passed over, with its reason in GetModelStatus.

    A context manager: entering starts, leaving finishes the requests in flight and stops.

    Args:
        directory: a folder of models, or one model, of which the newest versions are served; or None for
            the models of `config`.
        port: int, gRPC port, 0 for a free one (see the attribute `port`), None for none.
        host: address to listen on.
        rest_port: int, port of REST and metrics, 0 for a free one (see `rest_port`), None for none.
        socket_path: path of a UNIX socket for gRPC, too; or None.
        config: ModelServerConfig proto, or the path of a file that holds one.
        config_poll_seconds: float, how often the file `config` is read again; 0 for never.
        poll_seconds: float, how often the folders are looked at; 0 for never again.
        batching: BatchingParameters proto to run requests that arrive together as one batch; or None.
        monitoring: MonitoringConfig proto; or None for no metrics page.
        tls: SSLConfig proto, with the PEM texts themselves; or None.
        rest_timeout: float, seconds that a REST request may take.
        tensor_content: bool, answer in `tensor_content` instead of the typed fields.
        limit: int, requests that are worked on or wait for a batch; more are RESOURCE_EXHAUSTED.
        channel_arguments: dict of gRPC channel arguments.
        session_config: tf.compat.v1.ConfigProto of the Sessions; or None.
        any_labels: bool, let a new label name a version that is not available yet.

    Raises:
        ValueError: no model that loads, a port that cannot be bound, or an argument that makes no sense.

    Example:
        >>> with Server("saved_models") as server:                      # doctest: +SKIP
        ...     client = FeatureClient(f"localhost:{server.port}", "rotation_cifar10")
    """

    def __init__(
        self, directory=None, port=0, host="127.0.0.1", rest_port=None, socket_path=None, config=None,
        config_poll_seconds=0.0, poll_seconds=1.0, batching=None, monitoring=None, tls=None,
        rest_timeout=30.0, tensor_content=False, limit=128, channel_arguments=None,
        session_config=None, any_labels=False,
    ):  # fmt: skip
        if (directory is None) == (config is None):
            raise ValueError("give one of directory and config: what is to be served")
        if port is None and socket_path is None:
            raise ValueError("port and socket_path are both None: there is nothing to listen on")
        if limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        if not rest_timeout > 0:
            raise ValueError(
                f"rest_timeout must be a positive number of seconds, got {rest_timeout}"
            )
        self._directory, self._config = directory, config
        self._poll_seconds, self._config_poll_seconds = poll_seconds, config_poll_seconds
        self._current = self._wanted()
        prometheus = monitoring.prometheus_config if monitoring else None
        metrics_path = None
        if prometheus and prometheus.enable:
            metrics_path = prometheus.path or METRICS_PATH
        pool = batching.thread_pool_name.value if batching is not None else ""
        metrics = Metrics(*filter(None, [pool]))
        batcher = Batcher(batching, metrics.queued) if batching is not None else None
        self._server = grpc.server(
            futures.ThreadPoolExecutor(limit + SPARE_THREADS, "grpc"),
            options=list(
                {
                    "grpc.max_receive_message_length": -1,
                    "grpc.max_send_message_length": -1,
                    "grpc.so_reuseport": 0,  # a second server on the port is an error
                    "grpc.max_concurrent_streams": 1024,  # what waits, waits at the client
                    **(channel_arguments or {}),
                }.items()
            ),
        )
        self.models = None
        try:
            # Bound before models are loaded: a port that is taken must not cost that time.
            self.port = self._listen(f"{host}:{port}", tls) if port is not None else None
            if socket_path is not None:
                self._listen(f"unix:{socket_path}", tls)
            self.models = Models(self._current, session_config, any_labels)
            if not self.models.names():
                listed = self._current.model_config_list.config
                raise ValueError(
                    "no model that loads: " + "; ".join(self.models.why_not(m.name) for m in listed)
                )
            self._predictor = Predictor(self.models, metrics, batcher, limit)
            self._rest = self._rest_server(host, rest_port, rest_timeout, metrics_path)
        except BaseException:
            self._server.stop(None)
            if batcher is not None:
                batcher.close()
            if self.models is not None:
                self.models.close()
            raise
        self.rest_port = self._rest.port if self._rest else None
        self._server.add_generic_rpc_handlers(services.handlers(self._predictor, tensor_content))
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (services.PREDICTION, services.MODELS)
        for name in ("", *names):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        reflection.enable_server_reflection(
            (*names, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        self._stopped = threading.Event()
        self._poller = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self):
        if self._rest is not None:
            self._rest.start()
        self._server.start()
        self._poller.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self, seconds=DRAIN_SECONDS):
        """Finishes the requests in flight and stops.

        Health is NOT_SERVING and new requests are UNAVAILABLE from now on.

        Args:
            seconds: float, what the requests in flight have; then they are cut off.

        Returns:
            bool, whether all were finished.
        """
        self._stopped.set()
        self._health.enter_graceful_shutdown()
        finished = self._predictor.drain(seconds)
        if self._rest is not None:
            self._rest.close()
        self._server.stop(1.0 if finished else None).wait()
        self._poller.join(1.0)  # it may be loading a model: nobody waits for that now
        if finished:
            if self._predictor.batcher is not None:
                self._predictor.batcher.close()
            self.models.close()
        return finished

    def _listen(self, address, tls):
        try:
            if tls is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, _credentials(tls))
        except RuntimeError:
            port = 0
        if not port:
            place = address.removeprefix("unix:")
            what = f"port {place.rpartition(':')[2]} on {place.rpartition(':')[0]}"
            if place != address:
                what = f"socket_path {place!r}"
            raise ValueError(
                f"{what} cannot be bound: choose another, or 0 for a free one"
                + (" (or the certificates of tls are none)" if tls else "")
            )
        return port

    def _rest_server(self, host, port, timeout, metrics_path):
        if port is None:
            return None
        try:
            return RestServer(self._predictor, host, port, timeout, metrics_path)
        except OSError as error:
            raise ValueError(
                f"rest_port {port} on {host} cannot be bound ({error}): choose another, or 0 for a "
                "free one"
            ) from None

    def _wanted(self):
        """ModelServerConfig of what is to be served, as the folder or the file has it now."""
        if self._directory is not None:
            return config_of(models_in(self._directory))
        if isinstance(self._config, str | Path):
            return read(self._config, model_server_config_pb2.ModelServerConfig)
        return self._config

    def _poll(self):
        from_file = self._directory is None
        wait = self._config_poll_seconds if from_file else self._poll_seconds
        waited = 0.0
        while self._poll_seconds > 0 or wait > 0:
            step = min(seconds for seconds in (self._poll_seconds, wait) if seconds > 0)
            if self._stopped.wait(step):
                return
            waited += step
            try:
                if 0 < wait <= waited:
                    waited, wanted = 0.0, self._wanted()
                    if wanted != self._current:
                        self.models.reload(wanted)
                        self._current = wanted
                if self._poll_seconds > 0:
                    self.models.update()
            except (ValueError, Refusal, OSError) as error:
                log.error("what is to be served could not be changed: %s", error)
            except Exception:  # whatever it was, the models that answer go on
                log.exception("looking for new versions failed")


def _credentials(tls):
    """grpc.ServerCredentials of an SSLConfig."""
    if not tls.server_key or not tls.server_cert:
        raise ValueError("tls needs server_key and server_cert, the PEM texts themselves")
    if tls.client_verify and not tls.custom_ca:
        raise ValueError("tls with client_verify needs custom_ca: who signs the clients")
    return grpc.ssl_server_credentials(
        [(tls.server_key.encode(), tls.server_cert.encode())],
        tls.custom_ca.encode() or None,
        tls.client_verify,
    )
