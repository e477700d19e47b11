"""Requests that do not match the model get the statuses and messages of TensorFlow Serving."""

import time

import grpc
import numpy as np
import pytest
import server_process
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis import predict_pb2

from keras_ssl.serving.server import requests
from keras_ssl.serving.server.errors import StatusError
from keras_ssl.serving.server.responses import fill_tensor

ZEROS = np.zeros((1, 32, 32, 3), np.uint8)


def request(images=None, model="rotation_digits", signature="", version=None):
    """Builds a PredictRequest."""
    message = server_process.request(model, **({} if images is None else {"images": images}))
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
        (bomb, invalid, "input images has 268435456 rows, more than the 1024 of one request"),
        (short, invalid, "tensor parsing error: images"),
        (negative, invalid, "tensor parsing error: images"),
        (strange, invalid, "must be DT_UINT8, got 77"),
    ]  # fmt: skip


def filled(shape, value, dtype):
    """A TensorProto of one value that stands for all elements."""
    proto = tf.make_tensor_proto(np.full((1,), value, dtype))
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    del proto.tensor_shape.dim[0]
    return proto


@pytest.mark.parametrize(
    ("shape", "value", "dtype"),
    [((9, 5), 3, "uint8"), ((700, 300), 2.5, "float32"), ((700, 300), -7, "int64"), ((5,), b"ab", object)],
)  # fmt: skip
def test_one_value_stands_for_all_elements(shape, value, dtype):
    message = predict_pb2.PredictRequest(inputs={"x": filled(shape, value, dtype)})
    spec = requests.InputSpec(message.inputs["x"].dtype, np.dtype(dtype), None)
    array = requests.inputs_of(message, {"x": spec})["x"]
    np.testing.assert_array_equal(array, np.full(shape, value, dtype))


@pytest.mark.parametrize(
    ("shape", "value", "dtype"),
    [((2**23,), 1.5, "float64"), ((2**25,), 1, "uint8"), ((2**18 + 2,), b"", object),
     ((2**14 + 2,), b"x" * 960, object)],
)  # fmt: skip
def test_one_value_does_not_stand_for_16_mib(shape, value, dtype):
    message = predict_pb2.PredictRequest(inputs={"x": filled(shape, value, dtype)})
    spec = requests.InputSpec(message.inputs["x"].dtype, np.dtype(dtype), None)
    with pytest.raises(StatusError, match="tensor parsing error: x"):
        requests.inputs_of(message, {"x": spec})


@pytest.mark.parametrize(
    "dtype",
    ["float32", "float64", "int32", "uint8", "int64", "bool", "uint64", "float16",
     tf.bfloat16.as_numpy_dtype],
)  # fmt: skip
def test_many_values_one_by_one(dtype):
    array = (np.arange(3 * 2**16 + 5) % 200).astype(dtype)
    proto = TensorProto()
    fill_tensor(proto, array)
    message = predict_pb2.PredictRequest(inputs={"x": proto})
    spec = requests.InputSpec(proto.dtype, array.dtype, None)
    np.testing.assert_array_equal(requests.inputs_of(message, {"x": spec})["x"], array)
    if dtype == "uint8":
        message.inputs["x"].int_val[7] = 300
        with pytest.raises(StatusError, match="tensor parsing error: x"):
            requests.inputs_of(message, {"x": spec})


@pytest.mark.parametrize("given", [0, 1, 2**16 - 1, 2**16 + 3, 2**17])
@pytest.mark.parametrize(
    ("dtype", "name"), [("uint8", "int_val"), ("float32", "float_val"), ("float16", "half_val")]
)
def test_the_last_value_stands_for_the_missing_ones_as_in_tensorflow(given, dtype, name):
    proto = TensorProto(dtype=tf.as_dtype(dtype).as_datatype_enum)
    for size in (2, 2**16):
        proto.tensor_shape.dim.add(size=size)
    getattr(proto, name).extend((np.arange(given) % 199 + 1).tolist())
    spec = requests.InputSpec(proto.dtype, np.dtype(dtype), None)
    message = predict_pb2.PredictRequest(inputs={"x": proto})
    array = requests.inputs_of(message, {"x": spec})["x"]
    np.testing.assert_array_equal(array, tf.make_ndarray(proto))


@pytest.mark.parametrize(
    ("dtype", "name", "number"),
    [("uint8", "int_val", 2**22), ("uint8", "int_val", 7), ("float32", "float_val", 2**22),
     ("complex64", "scomplex_val", 2**19)],
)  # fmt: skip
def test_more_values_than_elements_are_not_converted(dtype, name, number, monkeypatch):
    converted = []  # in one call, in which no other thread runs
    monkeypatch.setattr(tf, "make_ndarray", converted.append)
    proto = TensorProto(dtype=tf.as_dtype(dtype).as_datatype_enum)
    proto.tensor_shape.dim.add(size=6)
    getattr(proto, name).extend([1] * number)
    spec = requests.InputSpec(proto.dtype, np.dtype(dtype), None)
    message = predict_pb2.PredictRequest(inputs={"x": proto})
    start = time.thread_time()
    with pytest.raises(StatusError, match="tensor parsing error: x"):
        requests.inputs_of(message, {"x": spec})
    assert not converted
    assert time.thread_time() - start < 0.05


def test_few_complex_values():
    array = np.array([1 + 2j, 3j], np.complex64)
    message = predict_pb2.PredictRequest(inputs={"x": TensorProto(dtype=types_pb2.DT_COMPLEX64)})
    message.inputs["x"].tensor_shape.dim.add(size=2)
    message.inputs["x"].scomplex_val.extend([1, 2, 0, 3])
    spec = requests.InputSpec(types_pb2.DT_COMPLEX64, array.dtype, None)
    np.testing.assert_array_equal(requests.inputs_of(message, {"x": spec})["x"], array)


@pytest.mark.parametrize(("axes", "valid"), [(32, True), (33, False)])
def test_more_axes_would_abort_the_process(axes, valid):
    proto = TensorProto(dtype=types_pb2.DT_STRING, string_val=[b"x"])
    for _ in range(axes):
        proto.tensor_shape.dim.add(size=1)
    message = predict_pb2.PredictRequest(inputs={"x": proto})
    declared = {"x": requests.InputSpec(types_pb2.DT_STRING, np.dtype(object), None)}
    if valid:
        assert requests.inputs_of(message, declared)["x"].shape == (1,) * axes
    else:
        with pytest.raises(StatusError, match="tensor parsing error: x"):
            requests.inputs_of(message, declared)


def test_rows_are_counted_before_they_are_filled(monkeypatch):
    message = predict_pb2.PredictRequest(inputs={"x": filled((1025,), b"", object)})
    declared = {"x": requests.InputSpec(types_pb2.DT_STRING, np.dtype(object), (-1,))}
    monkeypatch.setattr(requests, "_array", lambda *_: pytest.fail("converted"))
    with pytest.raises(StatusError, match="input x has 1025 rows, more than the 1024 of one"):
        requests.inputs_of(message, declared, max_rows=1024)


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), ()])
def test_strings_have_the_declared_rank(shape, monkeypatch):
    """Otherwise the number of rows says nothing about the number of strings."""
    monkeypatch.setattr(requests, "_array", lambda *_: pytest.fail("converted"))
    message = predict_pb2.PredictRequest(inputs={"x": filled(shape, b"ab", object)})
    declared = {"x": requests.InputSpec(types_pb2.DT_STRING, np.dtype(object), (-1,))}
    with pytest.raises(StatusError, match=r"input x must have the shape \(None\), got \("):
        requests.inputs_of(message, declared)


@pytest.mark.parametrize(
    ("shapes", "large"),
    [
        ([(2**16,)], False),
        ([(2**8, 2**8 + 1)], True),
        ([(2**15 + 1,), (2**15,)], True),
        ([(1, -(2**40)), (3,)], True),  # the negative one may be the last that is checked
        ([(3,)] * 32, False),
        ([(0,)] * 33, True),
        ([(1,) * 33], True),
    ],
)
def test_small_messages_that_declare_many_elements_are_large(shapes, large):
    message = predict_pb2.PredictRequest()
    for i, shape in enumerate(shapes):
        for size in shape:
            message.inputs[str(i)].tensor_shape.dim.add(size=size)
    assert requests.is_large(message) == large


def test_an_empty_batch(stub):
    message = request(np.zeros((0, *ZEROS.shape[1:]), np.uint8))
    for values in ([], [0, 0]):
        message.inputs["images"].int_val[:] = values
        with pytest.raises(grpc.RpcError) as error:
            stub.Predict(message, timeout=10)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "images must not be empty" in error.value.details()


def test_names_of_megabytes_are_not_echoed(stub):
    for field in ("model", "signature", "filter", "label"):
        message = request(ZEROS, *(["x" * 10**6] if field == "model" else []))
        if field == "signature":
            message.model_spec.signature_name = "x" * 10**6
        elif field == "filter":
            message.output_filter.append("x" * 10**6)
        elif field == "label":
            message.model_spec.version_label = "x" * 10**6
        with pytest.raises(grpc.RpcError) as error:
            stub.Predict(message, timeout=10)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert len(error.value.details()) <= 1024


@pytest.mark.parametrize(("message", "code", "details"), invalid_requests())
def test_invalid_requests_get_the_statuses_of_tensorflow_serving(stub, message, code, details):
    with pytest.raises(grpc.RpcError) as error:
        stub.Predict(message, timeout=10)
    assert error.value.code() == code
    assert details in error.value.details()
    good = stub.Predict(request(ZEROS), timeout=10)
    assert good.outputs["features"].tensor_shape.dim[0].size == 1
