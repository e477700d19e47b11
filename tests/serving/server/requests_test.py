"""Requests that do not match the model get the statuses and messages of TensorFlow Serving."""

import grpc
import numpy as np
import pytest
import soak_serving
import tensorflow as tf

ZEROS = np.zeros((1, 32, 32, 3), np.uint8)


def request(images=None, model="rotation_digits", signature="", version=None):
    """Builds a PredictRequest."""
    message = soak_serving.request(model, **({} if images is None else {"images": images}))
    message.model_spec.signature_name = signature
    if version is not None:
        message.model_spec.version.value = version
    return message


def invalid_requests():
    """Returns (request, status, message) for each way in which a request can be invalid."""
    filtered = request(ZEROS)
    filtered.output_filter.append("nope")
    extra = request(ZEROS)
    extra.inputs["more"].CopyFrom(tf.make_tensor_proto(1))
    bomb = request(ZEROS)
    bomb.inputs["images"].tensor_content = b""
    bomb.inputs["images"].int_val.append(1)
    bomb.inputs["images"].tensor_shape.dim[0].size = 2**28
    negative = request(ZEROS)
    negative.inputs["images"].tensor_shape.dim[0].size = -7
    strange = request(ZEROS)
    strange.inputs["images"].dtype = 77
    short = request(ZEROS)
    short.inputs["images"].tensor_content = b"123"
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    return [
        (request(ZEROS, model=""), invalid, "Missing ModelSpec"),
        (request(ZEROS, model="m"), grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(m)"),
        (request(ZEROS, version=7), grpc.StatusCode.NOT_FOUND, "Specific(rotation_digits, 7)"),
        (request(ZEROS, signature="x"), grpc.StatusCode.FAILED_PRECONDITION,
         'Serving signature key "x" not found.'),
        (request(), invalid, "input size does not match signature"),
        (extra, invalid, "input size does not match signature"),
        (filtered, invalid, "output tensor alias not found in signature: nope"),
        (request(ZEROS.astype("f4")), invalid, "must be DT_UINT8, got DT_FLOAT"),
        (request(ZEROS[0]), invalid, "must have the shape"),
        (bomb, invalid, "tensor parsing error: images"),
        (short, invalid, "tensor parsing error: images"),
        (negative, invalid, "tensor parsing error: images"),
        (strange, invalid, "must be DT_UINT8, got 77"),
    ]  # fmt: skip


@pytest.mark.parametrize(("message", "code", "details"), invalid_requests())
def test_invalid_requests_get_the_statuses_of_tensorflow_serving(stub, message, code, details):
    with pytest.raises(grpc.RpcError) as error:
        stub.Predict(message, timeout=10)
    assert error.value.code() == code
    assert details in error.value.details()
    good = stub.Predict(request(ZEROS), timeout=10)
    assert good.outputs["features"].tensor_shape.dim[0].size == 1
