"""TensorFlow Serving's gRPC services: PredictionService and ModelService."""

import threading
from concurrent import futures

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    predict_pb2,
)

from keras_ssl.serving.server import wire
from keras_ssl.serving.server.errors import StatusError, from_exception, invalid_argument, parse
from keras_ssl.serving.server.predictor import left
from keras_ssl.serving.server.requests import inputs_of, is_large
from keras_ssl.serving.server.responses import predict_response
from keras_ssl.serving.server.rpc import Method
from keras_ssl.serving.server.turns import Turns

PREDICTION = "tensorflow.serving.PredictionService"
MODELS = "tensorflow.serving.ModelService"
# For messages above wire.SMALL bytes, or that declare more than requests.CHUNK elements.
PARSE_THREADS = 2
MAX_RELOADS = 4  # running or waiting ones; each may load models for minutes


class Services:
    """The methods of PredictionService and ModelService.

    Args:
        predictor: Predictor.
        as_content: bool, respond with `tensor_content` instead of the typed fields.
        administration: Administration, for reloading.
    """

    def __init__(self, predictor, as_content, administration):
        self._predictor, self._as_content = predictor, as_content
        self._administration = administration
        # Everything that may take long has its own thread, so that the server's only thread is never busy for
        # long.
        self._parsers = Turns(PARSE_THREADS, "grpc_parse")
        self._reloader = futures.ThreadPoolExecutor(1, "grpc_reload")
        self._reloads = threading.BoundedSemaphore(MAX_RELOADS)

    def methods(self):
        """Returns the dict of Method by path."""
        unimplemented = ("Classify", "Regress", "MultiInference")
        return {
            f"/{PREDICTION}/Predict": Method(self._predict, 2**31),  # the limit is RpcServer's
            f"/{PREDICTION}/GetModelMetadata": Method(self._metadata),
            **{f"/{PREDICTION}/{name}": Method(_unimplemented, 2**31) for name in unimplemented},
            f"/{MODELS}/GetModelStatus": Method(self._status),
            f"/{MODELS}/HandleReloadConfigRequest": Method(self._reload, 2**20),
        }

    def close(self):
        """Ends the threads once they have nothing to do."""
        self._parsers.close()
        self._reloader.shutdown(wait=False)

    def _predict(self, data, call):
        request = parse(predict_pb2.PredictRequest, data) if len(data) <= wire.SMALL else None
        if request is not None and not is_large(request):
            place = self._predictor.admit(call.connection, request.model_spec.name)
            self._submit(request, call, place)
        else:
            # Before it is queued: a waiting request takes memory, and then costs time in its turn.
            place = self._predictor.admit(call.connection, size=len(data))
            self._parsers.submit(call.connection, self._parse, data, call, place)

    def _parse(self, data, call, place):
        """Parses a large message, or once more a message that declares many elements, and submits it."""
        try:
            self._predictor.check_open()
            if not call.is_active():
                raise left()
            wire.check(data)
            request = parse(predict_pb2.PredictRequest, data)
        except Exception as exception:
            place.close()
            call.fail(from_exception(exception))
        else:
            self._submit(request, call, place)

    def _submit(self, request, call, place):
        """Submits a PredictRequest; the response is sent from another thread."""
        name = request.model_spec.name

        def done(result, error):
            try:
                if error is None:
                    version, signature, outputs = result
                    call.respond(
                        predict_response(
                            name, version, signature, outputs, self._as_content
                        ).SerializeToString()
                    )
                    return
            except Exception as exception:  # such as a response above the 2 GiB of a message
                error = from_exception(exception)
            call.fail(error)

        self._predictor.submit(
            call.connection, request, inputs_of, "GRPC", place, call.is_active, done
        )

    def _metadata(self, data, call):
        request = parse(get_model_metadata_pb2.GetModelMetadataRequest, data)
        call.respond(metadata(self._predictor.models, request).SerializeToString())

    def _status(self, data, call):
        request = parse(get_model_status_pb2.GetModelStatusRequest, data)
        call.respond(self._predictor.models.status(request.model_spec).SerializeToString())

    def _reload(self, data, call):
        self._administration.check_peer(call.connection)
        if not self._reloads.acquire(blocking=False):
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "configs are being loaded already; retry later"
            )
        self._reloader.submit(self._reload_now, data, call)

    def _reload_now(self, data, call):
        try:
            request = parse(model_management_pb2.ReloadConfigRequest, data)
            with self._predictor.admit(call.connection):
                self._administration.reload(request.config)
            call.respond(model_management_pb2.ReloadConfigResponse().SerializeToString())
        except Exception as exception:
            call.fail(from_exception(exception))
        finally:
            self._reloads.release()


def _unimplemented(data, call):
    raise StatusError(
        grpc.StatusCode.UNIMPLEMENTED, "models of keras_ssl implement Predict only; use Predict"
    )


def metadata(models, request):
    """Builds the GetModelMetadataResponse with the signatures of a model.

    Args:
        models: Models.
        request: GetModelMetadataRequest.

    Raises:
        StatusError: the request names no metadata field or an unknown one, or `Models.lease` raises it.
    """
    if not request.metadata_field:
        raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != "signature_def":
            raise invalid_argument(f"Metadata field {field} is not supported")
    signatures = get_model_metadata_pb2.SignatureDefMap()
    with models.lease(request.model_spec) as (version, servable):
        for name, signature in servable.signatures.items():
            signatures.signature_def[name].CopyFrom(signature)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = request.model_spec.name
    response.model_spec.version.value = version
    response.metadata["signature_def"].Pack(signatures)
    return response
