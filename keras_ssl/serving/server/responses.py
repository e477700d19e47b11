"""Builds PredictResponses from arrays."""

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

# The TensorProto field that holds the values of a type.
FIELDS = {
    "bool": "bool_val",
    "int64": "int64_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    **dict.fromkeys(["int32", "int16", "int8", "uint16", "uint8"], "int_val"),
    **dict.fromkeys(["float16", "bfloat16"], "half_val"),
}
# For types whose packed values are the bytes of the array (little endian): the field's tag.
RAW_FIELDS = {"float32": b"\x2a", "float64": b"\x32", "complex64": b"\x4a", "complex128": b"\x62"}


def predict_response(name, version, signature, outputs, as_content=False):
    """Builds a PredictResponse with one TensorProto per output.

    Args:
        name: str, the model.
        version: int.
        signature: str.
        outputs: dict of arrays by output name.
        as_content: bool, write the values to `tensor_content` instead of the typed fields.

    Returns:
        PredictResponse proto.
    """
    response = predict_pb2.PredictResponse()
    spec = response.model_spec
    spec.name, spec.signature_name, spec.version.value = name, signature, version
    for alias, value in outputs.items():
        fill_tensor(response.outputs[alias], value, as_content)
    return response


def fill_tensor(proto, array, as_content=False):
    """Writes an array into a TensorProto, by default into its typed field as TensorFlow Serving does.

    Args:
        proto: empty TensorProto.
        array: numpy array.
        as_content: bool, write the bytes to `tensor_content` instead.

    Example:
        >>> from tensorflow.core.framework.tensor_pb2 import TensorProto
        >>> proto = TensorProto()
        >>> fill_tensor(proto, np.array([1.5, 2], np.float32))
        >>> list(proto.float_val)
        [1.5, 2.0]
    """
    array = np.asarray(array)
    dtype = tf.as_dtype(array.dtype)
    proto.dtype = dtype.as_datatype_enum
    dims = proto.tensor_shape.dim
    for size in array.shape:
        dims.add(size=size)
    if dtype == tf.string:
        proto.string_val.extend(array.ravel().tolist())
    elif as_content:
        proto.tensor_content = array.tobytes()
    elif dtype.name in RAW_FIELDS:
        # A packed field is serialized as its tag, its length and the bytes of its values. Parsing
        # these takes 2 us for 256 floats, where float_val.extend takes 20.
        raw = array.tobytes()
        proto.MergeFromString(RAW_FIELDS[dtype.name] + _varint(len(raw)) + raw)
    else:
        if FIELDS[dtype.name] == "half_val":
            array = array.view(np.uint16)
        getattr(proto, FIELDS[dtype.name]).extend(array.ravel().tolist())


def _varint(number):
    """Encodes a number as protobuf does: 7 bits per byte, lowest first."""
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])
