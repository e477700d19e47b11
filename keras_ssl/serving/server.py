"""The embedded server: TensorFlow Serving's gRPC protocol on a graph Session."""

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import threading
from concurrent import futures
from pathlib import Path

import grpc
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

from keras_ssl.serving.requests import Refusal, find, inputs_of
from keras_ssl.serving.servable import Servable, versions


def models_in(directory):
    """Models that a directory holds.

    Args:
        directory: a folder of models, or one model (a folder with numeric version directories).

    Returns:
        dict of model name to its absolute pathlib.Path, by name.

    Raises:
        ValueError: there is no such directory or no model in it.

    Example:
        >>> models_in("saved_models")                                   # doctest: +SKIP
        {'rotation_cifar10': PosixPath('/home/me/saved_models/rotation_cifar10')}
    """
    path = Path(directory).resolve()
    if not path.is_dir():
        raise ValueError(f"directory must exist, there is no folder {str(directory)!r}")
    candidates = [path] if versions(path) else sorted(path.iterdir())
    models = {p.name: p for p in candidates if versions(p)}
    if not models:
        raise ValueError(
            f"no model in {str(directory)!r}: expected <model>/<version>/ as keras_ssl.export writes"
        )
    return models


class Server:
    """Serves the newest version of every model over gRPC, from this process.

    It answers PredictionService.Predict and GetModelMetadata and ModelService.GetModelStatus with
    the statuses and words of TensorFlow Serving. A context manager: entering starts, leaving stops.

    Args:
        directory: a folder of models, or one model.
        port: int, 0 for a free one (see the attribute `port`).
        host: address to listen on.
        workers: int, requests that are worked on at a time.

    Raises:
        ValueError: no model that loads in `directory`, or `port` cannot be bound.

    Example:
        >>> with Server("saved_models") as server:                      # doctest: +SKIP
        ...     client = FeatureClient(f"localhost:{server.port}", "rotation_cifar10")
    """

    def __init__(self, directory, port=0, host="127.0.0.1", workers=4):
        self.servables = {
            name: (versions(path)[-1], Servable(path / str(versions(path)[-1])))
            for name, path in models_in(directory).items()
        }
        self._server = grpc.server(
            futures.ThreadPoolExecutor(workers),
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # a second server on the port is an error
            ],
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            _PredictionService(self.servables), self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            _ModelService(self.servables), self._server
        )
        try:
            self.port = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise ValueError(
                f"port {port} on {host} cannot be bound: choose another, or 0 for a free one"
            )

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(grace=5).wait()
        for _, servable in self.servables.values():
            servable.close()


def serve(directory, port=8500, host="127.0.0.1"):
    """Serves every model in a directory until interrupted.

    Where `tensorflow_model_server` is on the PATH this process becomes it (it listens on all
    addresses); otherwise the embedded server runs.

    Args:
        directory: a folder of models, or one model.
        port: int, 0 for a free one.
        host: address the embedded server listens on.

    Raises:
        ValueError: as `Server`.
    """
    models = models_in(directory)
    binary = shutil.which("tensorflow_model_server")
    if binary:
        config = model_server_config_pb2.ModelServerConfig()
        for name, path in models.items():
            config.model_config_list.config.add(
                name=name, base_path=str(path), model_platform="tensorflow"
            )
        with tempfile.NamedTemporaryFile("w", suffix=".config", delete=False) as file:
            file.write(text_format.MessageToString(config))
        port = port or _free_port()
        print(f"{binary} serves {', '.join(models)} on port {port}", flush=True)
        os.execv(binary, [binary, f"--port={port}", f"--model_config_file={file.name}"])

    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with Server(directory, port, host) as server:
        for name, (version, _) in server.servables.items():
            print(f"{name} version {version}", flush=True)
        print(f"embedded server listens on {host}:{server.port} (gRPC); Ctrl-C stops", flush=True)
        stopped.wait()


def _free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def _refusals(context):
    try:
        yield
    except Refusal as refusal:
        context.abort(refusal.code, refusal.words)


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, servables):
        self.servables = servables

    def Predict(self, request, context):
        with _refusals(context):
            version, servable = find(self.servables, request.model_spec)
            name = request.model_spec.signature_name or "serving_default"
            if name not in servable.signatures:
                raise Refusal(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f'Serving signature key "{name}" not found.',
                )
            signature = servable.signatures[name]
            inputs = inputs_of(request, signature)
            for alias in request.output_filter:
                if alias not in signature.outputs:
                    raise Refusal(
                        grpc.StatusCode.INVALID_ARGUMENT,
                        f"output tensor alias not found in signature: {alias}",
                    )
            try:
                outputs = servable.run(inputs, name, request.output_filter)
            except tf.errors.OpError as error:
                # The message alone, without the place in the graph that surrounds it.
                words = error.message.removeprefix("Graph execution error:").strip()
                raise Refusal(_status(error.error_code), words.split("\n")[0]) from None
        response = predict_pb2.PredictResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = version
        response.model_spec.signature_name = name
        for alias, value in outputs.items():
            response.outputs[alias].CopyFrom(tf.make_tensor_proto(value))
        return response

    def GetModelMetadata(self, request, context):
        with _refusals(context):
            version, servable = find(self.servables, request.model_spec)
            if list(request.metadata_field) != ["signature_def"]:
                raise Refusal(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"Metadata field {', '.join(request.metadata_field) or '(none)'} is not "
                    "supported: ask for signature_def",
                )
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in servable.signatures.items():
            signatures.signature_def[name].CopyFrom(signature)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = version
        response.metadata["signature_def"].Pack(signatures)
        return response


class _ModelService(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, servables):
        self.servables = servables

    def GetModelStatus(self, request, context):
        with _refusals(context):
            try:
                version, _ = find(self.servables, request.model_spec)
            except Refusal as refusal:
                if refusal.code == grpc.StatusCode.NOT_FOUND:
                    refusal.words = (
                        f"Could not find any versions of model {request.model_spec.name}"
                    )
                raise
        response = get_model_status_pb2.GetModelStatusResponse()
        response.model_version_status.add(
            version=version, state=get_model_status_pb2.ModelVersionStatus.AVAILABLE
        ).status.error_code = 0
        return response


def _status(code):
    return next(status for status in grpc.StatusCode if status.value[0] == code)
