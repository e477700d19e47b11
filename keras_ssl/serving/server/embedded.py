"""The embedded server: TensorFlow Serving's interface on graph Sessions in this process."""

import contextlib
import os
import sys

import grpc
from grpc_health.v1 import health

from keras_ssl.serving.server import services, standard, unix_socket
from keras_ssl.serving.server.administration import RELOADS, Administration
from keras_ssl.serving.server.batching import Batcher, Runner
from keras_ssl.serving.server.metrics import Metrics
from keras_ssl.serving.server.models import Models
from keras_ssl.serving.server.polling import ConfigSource, Poller
from keras_ssl.serving.server.predictor import Predictor
from keras_ssl.serving.server.rest import RestServer
from keras_ssl.serving.server.rpc import RpcServer

METRICS_PATH = "/monitoring/prometheus/metrics"
DRAIN_SECONDS = 8.0  # for the requests in flight when the server stops
MAX_REST_REQUEST_BYTES = 2**30
# The time after which a thread that checks a message or writes a response lets another thread run. Python's
# default is 5 ms. A health check is answered in several steps, and each of them waits that long.
SWITCH_SECONDS = 0.0005
RUN_THREADS = 4 * (os.cpu_count() or 1)  # without batching, as many as TensorFlow Serving has
SERVICES = (services.PREDICTION, services.MODELS)


class Server:
    """Serves models over gRPC and REST from this process.

    Implements Predict and GetModelMetadata of PredictionService, GetModelStatus and
    HandleReloadConfigRequest of ModelService, with the statuses and messages of TensorFlow Serving,
    and the gRPC services for health checks and reflection. Folders are polled every `poll_seconds`: a
    new version is loaded and warmed up before it replaces the old one. A version that cannot be loaded
    is skipped, and GetModelStatus reports the reason. HandleReloadConfigRequest is refused unless `reload`
    allows it.

    It is a context manager: it starts on entry; on exit it finishes the requests in flight and stops. While
    it runs, Python's threads take turns every half millisecond (`sys.setswitchinterval`).

    Args:
        directory: a folder of models or the folder of one model, whose newest versions are served; or
            None to serve the models of `config`.
        port: int, gRPC port, 0 for a free one (see the attribute `port`), None for no TCP port.
        host: address to listen on.
        rest_port: int, port for REST and metrics, 0 for a free one (see the attribute `rest_port`),
            None for no REST.
        socket_path: path of a UNIX socket for gRPC in addition to `port`, with the mode 0660; or None.
        config: ModelServerConfig proto, or the path of a file with one.
        config_poll_seconds: float, interval between two readings of the file `config`; 0 for never.
        poll_seconds: float, interval between two checks for new versions; 0 for never.
        batching: BatchingParameters proto to batch concurrent requests; or None.
        monitoring: MonitoringConfig proto; None for no metrics page.
        tls: SSLConfig proto, which contains the PEM texts themselves; or None.
        rest_timeout: float, seconds that a REST request may take.
        rest_max_request_bytes: int, maximum size of the body of a REST request.
        rest_max_connections_per_client: int, maximum number of REST connections of a client address; 0
            for half of all connections. A proxy has one address for all its clients.
        tensor_content: bool, respond with `tensor_content` instead of the typed fields.
        limit: int, maximum number of requests that run or wait, to be parsed or for a batch; further ones
            are RESOURCE_EXHAUSTED.
        max_rows: int, maximum number of images in a request, or maximum size of its inputs on axis 0;
            requests with more are INVALID_ARGUMENT.
        reflection: bool, serve gRPC's reflection service, which lists the methods for clients.
        channel_arguments: dict of gRPC channel arguments, which replace those of `rpc.RpcServer`; for
            example "grpc.max_receive_message_length", 64 MiB by default.
        session_config: tf.compat.v1.ConfigProto of the Sessions; or None.
        any_labels: bool, allow a new label for a version that is not available yet.
        reload: which clients may replace the configuration by HandleReloadConfigRequest: "off" for nobody,
            "socket" for clients of `socket_path`, "all" for everybody who reaches a gRPC port.
        reload_roots: sequence of paths of folders. A reload may name folders inside these or inside
            `directory`, and folders that are served now or were served at the start.

    Raises:
        ValueError: no model can be loaded, a port cannot be bound, or an argument is invalid.

    Example:
        >>> with Server("saved_models") as server:                      # doctest: +SKIP
        ...     client = FeatureClient(f"localhost:{server.port}", "rotation_cifar10")
    """

    def __init__(
        self, directory=None, port=0, host="127.0.0.1", rest_port=None, socket_path=None, config=None,
        config_poll_seconds=0.0, poll_seconds=1.0, batching=None, monitoring=None, tls=None,
        rest_timeout=30.0, tensor_content=False, limit=128, max_rows=1024, reflection=True,
        channel_arguments=None, session_config=None, any_labels=False, rest_max_request_bytes=2**23,
        rest_max_connections_per_client=0, reload="off", reload_roots=(),
    ):  # fmt: skip
        _check_arguments(
            directory, config, port, socket_path, limit, max_rows, rest_timeout, reload
        )
        _check_rest_limits(rest_max_request_bytes, rest_max_connections_per_client)
        source = ConfigSource(directory, config)
        model_config = source.read()
        with contextlib.ExitStack() as cleanup:
            metrics = _metrics(batching)
            runner = Runner(RUN_THREADS) if batching is None else Batcher(batching, metrics.queued)
            cleanup.callback(runner.close)
            self._server = RpcServer(channel_arguments)
            cleanup.callback(self._server.stop)
            # Bound before the models are loaded, so that a taken port is reported without that delay.
            self.port = self._bind(f"{host}:{port}", tls) if port is not None else None
            if socket_path is not None:
                with unix_socket.claimed(socket_path):
                    self._bind(f"unix:{socket_path}", tls)
            self.models = _load(model_config, session_config, any_labels)
            cleanup.callback(self.models.close)
            metrics.load_attempts = self.models.load_attempts
            self._predictor = Predictor(self.models, metrics, runner, limit, max_rows)
            self._rest = _rest_server(
                self._predictor, host, rest_port, rest_timeout, _metrics_path(monitoring),
                rest_max_request_bytes, rest_max_connections_per_client,
            )  # fmt: skip
            cleanup.pop_all()  # nothing failed: `stop` cleans up
        self.rest_port = self._rest.port if self._rest else None
        roots = [*reload_roots, *([] if directory is None else [directory])]
        administration = Administration(self.models, reload, roots)
        self._services = services.Services(self._predictor, tensor_content, administration)
        self._health = standard.Health(SERVICES)
        self._server.methods.update(self._services.methods() | self._health.methods())
        if reflection:
            names = (*SERVICES, health.SERVICE_NAME)
            self._server.methods.update(standard.reflection_methods(names, self._server.receive))
        interval = poll_seconds if directory is not None else config_poll_seconds
        self._poller = Poller(self.models, source, poll_seconds, interval)
        self._usual_interval = sys.getswitchinterval()

    def __enter__(self):
        sys.setswitchinterval(min(self._usual_interval, SWITCH_SECONDS))
        if self._rest is not None:
            self._rest.start()
        self._server.start()
        self._poller.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self, seconds=DRAIN_SECONDS):
        """Finishes the requests in flight and stops.

        From now on health checks respond NOT_SERVING and new requests UNAVAILABLE.

        Args:
            seconds: float, time for the requests in flight; those that take longer are aborted.

        Returns:
            bool, whether all requests have finished and no model is being loaded.
        """
        self._poller.stop()
        self.models.stop_loading()
        self._health.stop()
        finished = self._predictor.drain(seconds)
        if self._rest is not None:
            self._rest.close()
        self._server.stop(1.0 if finished else 0.0)
        self._services.close()
        sys.setswitchinterval(self._usual_interval)
        # Not longer: it may be loading a model that nobody needs any more.
        idle = self._poller.join(1.0)
        if finished:
            self._predictor.runner.close()
            self._predictor.costs.close()
            self.models.close()
        return finished and idle

    def _bind(self, address, tls):
        """Adds an address to listen on and returns its port."""
        try:
            port = self._server.bind(address, _credentials(tls) if tls is not None else None)
        except RuntimeError:
            port = 0
        if not port:
            if address.startswith("unix:"):
                what = f"socket_path {address.removeprefix('unix:')!r}"
            else:
                host, _, number = address.rpartition(":")
                what = f"port {number} on {host}"
            raise ValueError(
                f"{what} cannot be bound: choose another, or 0 for a free one"
                + (" (or the certificates of tls are invalid)" if tls else "")
            )
        return port


def _check_arguments(directory, config, port, socket_path, limit, max_rows, rest_timeout, reload):
    if (directory is None) == (config is None):
        raise ValueError("give either directory or config to say which models to serve")
    if port is None and socket_path is None:
        raise ValueError("port and socket_path are both None: there is nothing to listen on")
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if max_rows < 1:
        raise ValueError(f"max_rows must be at least 1, got {max_rows}")
    if not rest_timeout > 0:
        raise ValueError(f"rest_timeout must be a positive number of seconds, got {rest_timeout}")
    if reload not in RELOADS:
        raise ValueError(f"reload must be one of {', '.join(RELOADS)}, got {reload!r}")
    if reload == "socket" and socket_path is None:
        raise ValueError("reload is 'socket', but there is none: set socket_path, too")


def _check_rest_limits(max_request_bytes, max_connections_per_client):
    if not 0 < max_request_bytes <= MAX_REST_REQUEST_BYTES:
        raise ValueError(
            f"rest_max_request_bytes must be in 1..{MAX_REST_REQUEST_BYTES}, got {max_request_bytes}"
        )
    if max_connections_per_client < 0:
        raise ValueError(
            "rest_max_connections_per_client must be a positive number, or 0 for half of all "
            f"connections, got {max_connections_per_client}"
        )


def _metrics(batching):
    """Creates Metrics, labeled with the name of the batching thread pool if that is configured."""
    name = batching.thread_pool_name.value if batching is not None else ""
    return Metrics(name) if name else Metrics()


def _metrics_path(monitoring):
    """Returns the path of the metrics page that a MonitoringConfig enables, or None."""
    if not (monitoring and monitoring.prometheus_config.enable):
        return None
    return monitoring.prometheus_config.path or METRICS_PATH


def _load(config, session_config, any_labels):
    """Loads the models of a config; raises ValueError if there is none that can be loaded."""
    models = Models(config, session_config, any_labels)
    if not models.names():
        reasons = [models.why_unavailable(m.name) for m in config.model_config_list.config]
        models.close()
        raise ValueError("no model can be loaded: " + "; ".join(reasons))
    return models


def _rest_server(predictor, host, port, *arguments):
    if port is None:
        return None
    try:
        return RestServer(predictor, host, port, *arguments)
    except OSError as error:
        raise ValueError(
            f"rest_port {port} on {host} cannot be bound ({error}): choose another, or 0 for a free "
            "one"
        ) from None


def _credentials(tls):
    """Converts an SSLConfig to grpc.ServerCredentials."""
    if not tls.server_key or not tls.server_cert:
        raise ValueError("tls needs server_key and server_cert, as PEM texts and not as paths")
    if tls.client_verify and not tls.custom_ca:
        raise ValueError("tls with client_verify needs custom_ca, the authority of the clients")
    return grpc.ssl_server_credentials(
        [(tls.server_key.encode(), tls.server_cert.encode())],
        tls.custom_ca.encode() or None,
        tls.client_verify,
    )
