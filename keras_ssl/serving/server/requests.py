"""What a request asks for and how it is answered, in the words of TensorFlow Serving."""

import math
import typing

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import predict_pb2

TYPES = {number: name for name, number in types_pb2.DataType.items()}
MAX_FILL = 2**22  # elements that a tensor may declare beyond the values it carries
WORDS = 1024  # TensorFlow Serving cuts its messages here
DEFAULT_SIGNATURE = "serving_default"
METHODS = tuple(f"tensorflow/serving/{kind}" for kind in ("predict", "classify", "regress"))

# The field of a TensorProto that holds a type's values, and for types whose packed values are the
# array's own bytes (little endian) the tag that stands before them.
RAW_FIELDS = {"float32": b"\x2a", "float64": b"\x32", "complex64": b"\x4a", "complex128": b"\x62"}
FIELDS = {
    "bool": "bool_val",
    "int64": "int64_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    **dict.fromkeys(["int32", "int16", "int8", "uint16", "uint8"], "int_val"),
    **dict.fromkeys(["float16", "bfloat16"], "half_val"),
}


class Refusal(Exception):
    """A request that gets a status instead of an answer."""

    def __init__(self, code, words):
        super().__init__(words)
        self.code, self.words = code, words[:WORDS]


def invalid(words):
    """A Refusal for what the client got wrong."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, words)


def signature_of(servable, name):
    """(name, SignatureDef) that a request asks for; the default one for no name."""
    name = name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise Refusal(
            grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.'
        )
    signature = servable.signatures[name]
    if signature.method_name not in METHODS:
        raise Refusal(
            grpc.StatusCode.FAILED_PRECONDITION,
            "Expected prediction signature method_name to be one of "
            f"{{{', '.join(METHODS)}}}. Was: {signature.method_name}",
        )
    return name, signature


def outputs_of(request, signature):
    """Names of the outputs that a request wants; empty for all."""
    seen = set()
    for alias in request.output_filter:
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in "
                f"the set {{{','.join(sorted(signature.outputs))}}}."
            )
        if alias in seen:
            raise invalid(f"duplicate output tensor alias: {alias}")
        seen.add(alias)
    return tuple(request.output_filter)


class Input(typing.NamedTuple):
    """What a signature declares of an input, in plain Python: protobuf is slow to ask."""

    type: int  # a tensorflow DataType
    dtype: np.dtype
    sizes: tuple | None  # -1 where any will do; None for any number of axes


def declared_inputs(signature):
    """Dict of Input by name, of a SignatureDef."""
    return {
        alias: Input(
            info.dtype,
            np.dtype(tf.as_dtype(info.dtype).as_numpy_dtype),
            None
            if info.tensor_shape.unknown_rank
            else tuple(dim.size for dim in info.tensor_shape.dim),
        )
        for alias, info in signature.inputs.items()
    }


def inputs_of(request, declared):
    """Arrays of a request, checked against its signature's inputs before anything is allocated."""
    sent = dict(request.inputs)
    if sent.keys() != declared.keys():
        missing, extra = declared.keys() - sent.keys(), sent.keys() - declared.keys()
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(declared)} "
            f"len({{{','.join(sorted(sent))}}}) != len({{{','.join(sorted(declared))}}}). Sent "
            f"extra: {{{','.join(sorted(extra))}}}. Missing but required: "
            f"{{{','.join(sorted(missing))}}}."
        )
    arrays = {}
    for alias, proto in sent.items():
        wanted = declared[alias]
        if proto.dtype != wanted.type:
            raise invalid(
                f"input {alias} must be {TYPES[wanted.type]}, got "
                f"{TYPES.get(proto.dtype, proto.dtype)}"
            )
        shape = proto.tensor_shape
        sizes = [dim.size for dim in shape.dim]
        if shape.unknown_rank or min(sizes, default=0) < 0:
            raise invalid(f"tensor parsing error: {alias}")
        check_shape(alias, sizes, wanted)
        arrays[alias] = _array(alias, proto, sizes, wanted.dtype)
    return arrays


def check_shape(alias, sizes, declared):
    """Refuses a shape of pictures that an input does not take.

    Some graphs would abort the process: oneDNN's convolutions do, for a wrong rank. Inputs declared with
    fewer than three axes are left to the graph, as TensorFlow Serving leaves all: a vector for a column
    (None, 1) is fine there, and old models declare () for any shape.
    """
    wanted = declared.sizes
    if wanted is None or len(wanted) < 3:
        return
    if len(sizes) != len(wanted) or any(
        w not in (-1, s) for w, s in zip(wanted, sizes, strict=True)
    ):
        shape = ", ".join("None" if size == -1 else str(size) for size in wanted)
        raise invalid(f"input {alias} must have the shape ({shape}), got {tuple(sizes)}")


def _array(alias, proto, sizes, dtype):
    number = math.prod(sizes)
    try:
        if content := proto.tensor_content:
            # Exactly as many bytes as declared: 30 bytes must not ask for gigabytes.
            if dtype.kind != "O" and len(content) == number * dtype.itemsize:
                return np.frombuffer(content, dtype).reshape(sizes)
        elif dtype.kind == "O" and len(proto.string_val) == number:
            return np.array(proto.string_val, object).reshape(sizes)
        elif number <= MAX_FILL or number <= proto.ByteSize():
            return np.asarray(tf.make_ndarray(proto))
    except (ValueError, TypeError, OverflowError):
        pass
    raise invalid(f"tensor parsing error: {alias}")


def fill(proto, array, as_content=False):
    """Puts an array into a TensorProto: into its type's field, as TensorFlow Serving answers.

    Args:
        proto: empty TensorProto.
        array: numpy array.
        as_content: bool, put the bytes into `tensor_content` instead.

    Example:
        >>> from tensorflow.core.framework.tensor_pb2 import TensorProto
        >>> proto = TensorProto()
        >>> fill(proto, np.array([1.5, 2], np.float32))
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
        # A packed field is a tag, the length and the values' bytes: 256 floats in 2 us, where
        # float_val.extend needs 20.
        raw = array.tobytes()
        proto.MergeFromString(RAW_FIELDS[dtype.name] + _varint(len(raw)) + raw)
    else:
        if FIELDS[dtype.name] == "half_val":
            array = array.view(np.uint16)
        getattr(proto, FIELDS[dtype.name]).extend(array.ravel().tolist())


def _varint(number):
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def answer(name, version, signature, outputs, as_content=False):
    """PredictResponse that names what answered, with a TensorProto an output."""
    response = predict_pb2.PredictResponse()
    spec = response.model_spec
    spec.name, spec.signature_name, spec.version.value = name, signature, version
    for alias, value in outputs.items():
        fill(response.outputs[alias], value, as_content)
    return response
