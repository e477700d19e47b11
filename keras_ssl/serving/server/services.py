"""TensorFlow Serving's gRPC services: PredictionService and ModelService."""

import functools

import grpc
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from keras_ssl.serving.server.errors import StatusError, from_exception, invalid_argument
from keras_ssl.serving.server.requests import inputs_of
from keras_ssl.serving.server.responses import predict_response

PREDICTION = "tensorflow.serving.PredictionService"
MODELS = "tensorflow.serving.ModelService"


def handlers(predictor, as_content, administration):
    """Creates the gRPC handlers of PredictionService and ModelService.

    Args:
        predictor: Predictor.
        as_content: bool, respond with `tensor_content` instead of the typed fields.
        administration: Administration, for reloading.

    Returns:
        list of grpc.GenericRpcHandler.
    """
    return [
        grpc.method_handlers_generic_handler(PREDICTION, _prediction(predictor, as_content)),
        grpc.method_handlers_generic_handler(MODELS, _models(predictor, administration)),
    ]


def _prediction(predictor, as_content):
    def predict(request, context):
        version, signature, outputs = predictor.predict(
            request, inputs_of, "GRPC", context.is_active
        )
        name = request.model_spec.name
        return predict_response(name, version, signature, outputs, as_content)

    def get_model_metadata(request, context):
        return metadata(predictor.models, request)

    def unimplemented(request, context):
        raise StatusError(
            grpc.StatusCode.UNIMPLEMENTED, "models of keras_ssl implement Predict only; use Predict"
        )

    return {
        "Predict": _handler(predict_pb2.PredictRequest, predict),
        "GetModelMetadata": _handler(
            get_model_metadata_pb2.GetModelMetadataRequest, get_model_metadata
        ),
        "Classify": _handler(classification_pb2.ClassificationRequest, unimplemented),
        "Regress": _handler(regression_pb2.RegressionRequest, unimplemented),
        "MultiInference": _handler(inference_pb2.MultiInferenceRequest, unimplemented),
    }


def _models(predictor, administration):
    def get_model_status(request, context):
        return predictor.models.status(request.model_spec)

    def reload_config(request, context):
        with predictor.admission():
            administration.reload(request.config, context.peer())
        return model_management_pb2.ReloadConfigResponse()

    return {
        "GetModelStatus": _handler(get_model_status_pb2.GetModelStatusRequest, get_model_status),
        "HandleReloadConfigRequest": _handler(
            model_management_pb2.ReloadConfigRequest, reload_config
        ),
    }


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


def _handler(message, function):
    # Requests are parsed here: for bytes that cannot be parsed gRPC itself would respond INTERNAL.
    return grpc.unary_unary_rpc_method_handler(functools.partial(_respond, message, function))


def _respond(message, function, data, context):
    """Parses a request, calls `function`, and serializes the response or aborts with a status."""
    try:
        return function(message.FromString(data), context).SerializeToString()
    except DecodeError:
        error = invalid_argument(f"cannot parse the request as {message.DESCRIPTOR.name}")
    except Exception as exception:
        error = from_exception(exception)
    context.abort(error.code, error.message)
