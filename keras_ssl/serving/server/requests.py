"""Parses PredictRequests and checks them against the model's signature.

Error messages are those of TensorFlow Serving, if it has one for the case.
"""

import math
import typing

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2

from keras_ssl.serving.server.errors import StatusError, invalid_argument
from keras_ssl.serving.server.json_tensors import MAX_AXES  # more abort TensorFlow

TYPES = {number: name for name, number in types_pb2.DataType.items()}
MAX_FILL = 2**24  # bytes of a tensor that declares more elements than it carries
STRING_BYTES = 64  # per string, in addition to its own: in the array and in TensorFlow's tensor
CHUNK = 2**16  # elements that are converted at once, while no other thread runs
MAX_OTHER_BYTES = 2**20  # of a tensor whose type is not converted in pieces
MAX_COUNTED = 32  # inputs and axes whose elements are counted in the server's only thread
# The TensorProto field that holds the values of a type. TensorFlow converts all other types, such as complex
# numbers and those of quantized models, if there are few values.
VALUE_FIELDS = {
    "float32": "float_val", "float64": "double_val", "int64": "int64_val", "uint32": "uint32_val",
    "uint64": "uint64_val", "bool": "bool_val",
    **dict.fromkeys(["int32", "int16", "int8", "uint16", "uint8"], "int_val"),
    **dict.fromkeys(["float16", "bfloat16"], "half_val"),
}  # fmt: skip
DEFAULT_SIGNATURE = "serving_default"
METHODS = tuple(f"tensorflow/serving/{kind}" for kind in ("predict", "classify", "regress"))


def signature_of(servable, name):
    """Returns (name, SignatureDef) of the signature `name`, or of the default one for ""."""
    name = name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise StatusError(
            grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.'
        )
    signature = servable.signatures[name]
    if signature.method_name not in METHODS:
        raise StatusError(
            grpc.StatusCode.FAILED_PRECONDITION,
            "Expected prediction signature method_name to be one of "
            f"{{{', '.join(METHODS)}}}. Was: {signature.method_name}",
        )
    return name, signature


def outputs_of(request, signature):
    """Returns the names of the outputs that a request selects, a tuple; empty for all."""
    seen = set()
    for alias in request.output_filter:
        if alias not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in "
                f"the set {{{','.join(sorted(signature.outputs))}}}."
            )
        if alias in seen:
            raise invalid_argument(f"duplicate output tensor alias: {alias}")
        seen.add(alias)
    return tuple(sorted(seen))  # each order would need another executor


class InputSpec(typing.NamedTuple):
    """Type and shape of a signature's input in plain Python, because reading protobuf is slow."""

    type: int  # a tensorflow DataType
    dtype: np.dtype
    sizes: tuple | None  # -1 where any size is allowed; None for an unknown rank


def declared_inputs(signature):
    """Returns a dict of InputSpec by name for the inputs of a SignatureDef."""
    return {
        alias: InputSpec(
            info.dtype,
            np.dtype(tf.as_dtype(info.dtype).as_numpy_dtype),
            None
            if info.tensor_shape.unknown_rank
            else tuple(dim.size for dim in info.tensor_shape.dim),
        )
        for alias, info in signature.inputs.items()
    }


def inputs_of(request, declared, max_rows=math.inf):
    """Converts the inputs of a request to arrays.

    Types and shapes are checked before anything is allocated.

    Args:
        request: PredictRequest.
        declared: dict of InputSpec, as `declared_inputs` returns it.
        max_rows: int, maximum number of rows of an input.

    Returns:
        dict of arrays.

    Raises:
        StatusError: INVALID_ARGUMENT, the inputs do not match.
    """
    sent = dict(request.inputs)
    if sent.keys() != declared.keys():
        missing, extra = declared.keys() - sent.keys(), sent.keys() - declared.keys()
        raise invalid_argument(
            f"input size does not match signature: {len(sent)}!={len(declared)} "
            f"len({{{','.join(sorted(sent))}}}) != len({{{','.join(sorted(declared))}}}). Sent "
            f"extra: {{{','.join(sorted(extra))}}}. Missing but required: "
            f"{{{','.join(sorted(missing))}}}."
        )
    arrays = {}
    for alias, proto in sent.items():
        spec = declared[alias]
        if proto.dtype != spec.type:
            raise invalid_argument(
                f"input {alias} must be {TYPES[spec.type]}, got "
                f"{TYPES.get(proto.dtype, proto.dtype)}"
            )
        shape = proto.tensor_shape
        sizes = [dim.size for dim in shape.dim]
        if shape.unknown_rank or min(sizes, default=0) < 0 or len(sizes) > MAX_AXES:
            raise invalid_argument(f"tensor parsing error: {alias}")
        check_shape(alias, sizes, spec)
        check_rows(alias, sizes, max_rows)
        arrays[alias] = _array(alias, proto, sizes, spec.dtype)
    return arrays


def is_large(request):
    """Returns whether it may take long to convert the inputs of a PredictRequest, however small it is."""
    if len(request.inputs) > MAX_COUNTED:
        return True
    shapes = [proto.tensor_shape.dim for proto in request.inputs.values()]
    if any(len(shape) > MAX_COUNTED for shape in shapes):
        return True
    return sum(abs(math.prod(dim.size for dim in shape)) for shape in shapes) > CHUNK


def check_shape(alias, sizes, spec):
    """Raises INVALID_ARGUMENT if a tensor of images or strings does not have the declared shape.

    A wrong rank would abort the process in oneDNN's convolutions, and the limit of rows does not bound
    strings on further axes. TensorFlow Serving does not check shapes, and some clients rely on that: they
    send a vector for a column (None, 1), and old models declare () for tensors of any shape. So numbers that
    are declared with fewer than three axes are not checked here either.
    """
    declared = spec.sizes
    if declared is None or len(declared) < (1 if spec.dtype.kind == "O" else 3):
        return
    if len(sizes) != len(declared) or any(
        size not in (-1, sent) for size, sent in zip(declared, sizes, strict=True)
    ):
        shape = ", ".join("None" if size == -1 else str(size) for size in declared)
        raise invalid_argument(f"input {alias} must have the shape ({shape}), got {tuple(sizes)}")


def check_rows(alias, sizes, limit):
    """Raises INVALID_ARGUMENT if an input of a request has more than `limit` rows, its size on axis 0."""
    if sizes and sizes[0] > limit:
        raise invalid_argument(
            f"input {alias} has {sizes[0]} rows, more than the {limit} of one request; send several "
            "requests, or raise max_rows of the server"
        )


def _array(alias, proto, sizes, dtype):
    """Converts a TensorProto whose type and shape have been checked."""
    number = math.prod(sizes)
    try:
        if number == 0:
            return np.empty(sizes, dtype)
        if content := proto.tensor_content:
            # The number of bytes must be exactly as declared: 30 bytes must not allocate gigabytes.
            if dtype.kind != "O" and len(content) == number * dtype.itemsize:
                return np.frombuffer(content, dtype).reshape(sizes)
        elif dtype.kind == "O":
            values = proto.string_val
            if len(values) == number:
                return np.array(values, object).reshape(sizes)
            # The last value stands for all missing values; TensorFlow copies it for each of them.
            if (number - len(values)) * (len(values[-1]) + STRING_BYTES) <= MAX_FILL:
                return np.asarray(tf.make_ndarray(proto))
        elif dtype.name in VALUE_FIELDS:
            return _values(proto, number, dtype).reshape(sizes)
        elif number <= CHUNK and proto.ByteSize() <= MAX_OTHER_BYTES:
            return np.asarray(tf.make_ndarray(proto))
    except (ValueError, TypeError, OverflowError, IndexError):
        pass
    raise invalid_argument(f"tensor parsing error: {alias}")


def _values(proto, number, dtype):
    """Converts the values of a typed field as tf.make_ndarray does, but lets other threads run meanwhile."""
    field = getattr(proto, VALUE_FIELDS[dtype.name])
    given = len(field)
    # More values than elements are an error, too, but TensorFlow would convert all of them first.
    if given > number or (given < number and number * dtype.itemsize > MAX_FILL):
        raise ValueError
    array = np.empty(number, dtype)
    values = array.view(np.uint16) if VALUE_FIELDS[dtype.name] == "half_val" else array
    for i in range(0, given, CHUNK):
        part = field[i : i + CHUNK]
        values[i : i + len(part)] = part
    # The last value stands for all missing values.
    values[given:] = values[given - 1] if given else 0
    return array
