"""What a request asks for, in the statuses and words of TensorFlow Serving."""

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2

TYPES = {number: name for name, number in types_pb2.DataType.items()}
MAX_FILL = 2**24  # elements that a tensor may declare beyond the values it carries
WORDS = 1024  # TensorFlow Serving cuts its messages here


class Refusal(Exception):
    """A request that gets a status instead of an answer."""

    def __init__(self, code, words):
        super().__init__(words)
        self.code, self.words = code, words[:WORDS]


def find(servables, spec):
    """(version, Servable) that a ModelSpec asks for."""
    if not spec.name:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "Missing ModelSpec")
    version, servable = servables.get(spec.name, (None, None))
    wanted = spec.version.value if spec.HasField("version") else None
    if servable is None or (wanted is not None and wanted != version) or spec.version_label:
        request = f"Latest({spec.name})" if wanted is None else f"Specific({spec.name}, {wanted})"
        raise Refusal(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {request}")
    return version, servable


def inputs_of(request, signature):
    """Arrays of a request, checked against the signature before anything is allocated."""
    if set(request.inputs) != set(signature.inputs):
        missing = sorted(set(signature.inputs) - set(request.inputs))
        extra = sorted(set(request.inputs) - set(signature.inputs))
        raise Refusal(
            grpc.StatusCode.INVALID_ARGUMENT,
            "input size does not match signature: "
            f"{len(request.inputs)}!={len(signature.inputs)} len({{{','.join(request.inputs)}}}) "
            f"!= len({{{','.join(signature.inputs)}}}). Sent extra: {{{','.join(extra)}}}. "
            f"Missing but required: {{{','.join(missing)}}}.",
        )
    arrays = {}
    for alias, proto in request.inputs.items():
        declared = signature.inputs[alias]
        if proto.dtype != declared.dtype:
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"input {alias} must be {TYPES[declared.dtype]}, got "
                f"{TYPES.get(proto.dtype, proto.dtype)}",
            )
        sizes = [dim.size for dim in proto.tensor_shape.dim]
        if proto.tensor_shape.unknown_rank or min(sizes, default=0) < 0:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"tensor parsing error: {alias}")
        shape = tf.TensorShape(sizes)
        if not tf.TensorShape(declared.tensor_shape).is_compatible_with(shape):
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"input {alias} must have the shape {tf.TensorShape(declared.tensor_shape)}, got "
                f"{shape}",
            )
        arrays[alias] = _array(alias, proto, shape)
    return arrays


def _array(alias, proto, shape):
    dtype = tf.as_dtype(proto.dtype)
    malformed = Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"tensor parsing error: {alias}")
    number = shape.num_elements()
    if proto.tensor_content:
        # Exactly as many bytes as declared: 30 bytes must not ask for gigabytes.
        if dtype == tf.string or len(proto.tensor_content) != number * dtype.size:
            raise malformed
    elif number > MAX_FILL:
        raise malformed
    try:
        return np.asarray(tf.make_ndarray(proto))
    except (ValueError, TypeError):
        raise malformed from None
