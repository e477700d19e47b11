"""TensorFlow Serving's gRPC services: prediction and models."""

import functools
import logging

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

from keras_ssl.serving.server.requests import Refusal, answer, inputs_of, invalid

log = logging.getLogger("keras_ssl.serving")
PREDICTION = "tensorflow.serving.PredictionService"
MODELS = "tensorflow.serving.ModelService"


def handlers(predictor, as_content):
    """gRPC handlers of PredictionService and ModelService.

    Args:
        predictor: Predictor.
        as_content: bool, answer in `tensor_content` instead of the typed fields.

    Returns:
        list of grpc.GenericRpcHandler.
    """
    models = predictor.models

    def predict(request, context):
        version, signature, outputs = predictor.predict(
            request, inputs_of, "GRPC", context.is_active
        )
        return answer(request.model_spec.name, version, signature, outputs, as_content)

    def get_model_metadata(request, context):
        return metadata(models, request)

    def get_model_status(request, context):
        return models.status(request.model_spec)

    def reload(request, context):
        with predictor.admission():
            models.reload(request.config)
        return model_management_pb2.ReloadConfigResponse()

    def unimplemented(request, context):
        raise Refusal(
            grpc.StatusCode.UNIMPLEMENTED, "the models of keras_ssl answer Predict: ask for that"
        )

    return [
        grpc.method_handlers_generic_handler(
            PREDICTION,
            {
                "Predict": _handler(predict_pb2.PredictRequest, predict),
                "GetModelMetadata": _handler(
                    get_model_metadata_pb2.GetModelMetadataRequest, get_model_metadata
                ),
                "Classify": _handler(classification_pb2.ClassificationRequest, unimplemented),
                "Regress": _handler(regression_pb2.RegressionRequest, unimplemented),
                "MultiInference": _handler(inference_pb2.MultiInferenceRequest, unimplemented),
            },
        ),
        grpc.method_handlers_generic_handler(
            MODELS,
            {
                "GetModelStatus": _handler(
                    get_model_status_pb2.GetModelStatusRequest, get_model_status
                ),
                "HandleReloadConfigRequest": _handler(
                    model_management_pb2.ReloadConfigRequest, reload
                ),
            },
        ),
    ]


def metadata(models, request):
    """GetModelMetadataResponse with the signatures of a model.

    Args:
        models: Models.
        request: GetModelMetadataRequest.

    Raises:
        Refusal: no or an unknown metadata field, or as `Models.lease`.
    """
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != "signature_def":
            raise invalid(f"Metadata field {field} is not supported")
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
    # Parsed here and not by gRPC, which would answer INTERNAL for bytes that are no such message.
    return grpc.unary_unary_rpc_method_handler(functools.partial(_answer, message, function))


def _answer(message, function, data, context):
    try:
        return function(message.FromString(data), context).SerializeToString()
    except DecodeError:
        code, words = grpc.StatusCode.INVALID_ARGUMENT, f"this is no {message.DESCRIPTOR.name}"
    except Refusal as refusal:
        code, words = refusal.code, refusal.words
    except Exception:
        log.exception("a request failed")
        code, words = grpc.StatusCode.INTERNAL, "internal error: see the server's log"
    context.abort(code, words)
