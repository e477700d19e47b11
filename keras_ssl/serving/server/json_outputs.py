"""Converts arrays to JSON, in the row and column formats of TensorFlow Serving."""

import base64
import json
import math

import numpy as np

from keras_ssl.serving.server.errors import invalid_argument

PIECE = 4096  # elements that are encoded at once, while the other threads wait


def encode(outputs, by_row):
    """Encodes outputs as {"predictions": ...} or {"outputs": ...}.

    Args:
        outputs: dict of arrays by output name.
        by_row: bool, whether to write predictions: one entry per image, an object if there are several
            outputs.

    Returns:
        bytes.

    Raises:
        StatusError: INVALID_ARGUMENT, the outputs have no common axis 0 and cannot be written by row.

    Example:
        >>> encode({"y": np.array([0.1, 2], np.float32)}, by_row=True)
        b'{"predictions": [0.1, 2.0]}'
    """
    if len(outputs) == 1:
        text = _pieces(*next(iter(outputs.items())))
    elif by_row:
        text = _rows(outputs)
    else:
        text = _object(outputs)
    key = "predictions" if by_row else "outputs"
    return "".join([f'{{"{key}": ', *text, "}"]).encode()


def _rows(outputs):
    sizes = {array.shape[0] if array.ndim else -1 for array in outputs.values()}
    if len(sizes) > 1:
        raise invalid_argument("the outputs have different batch sizes: use 'inputs' instead")
    for i in range(sizes.pop()):
        yield ",\n" if i else "["
        yield from _object({name: array[i, ...] for name, array in outputs.items()})
    yield "]"


def _object(outputs):
    for i, (name, array) in enumerate(outputs.items()):
        yield f"{', ' if i else '{'}{json.dumps(name)}: "
        yield from _pieces(name, array)
    yield "}"


def _pieces(name, array):
    """Encodes an array in pieces, because Python's other threads wait while a piece is encoded."""
    size = math.prod(max(1, n) for n in array.shape)
    if size <= PIECE:
        yield json.dumps(to_json(name, array))
        return
    rows = max(1, PIECE * len(array) // size)
    for start in range(0, len(array), rows):
        yield ", " if start else "["
        if rows == 1:
            yield from _pieces(name, array[start, ...])
        else:
            yield json.dumps(to_json(name, array[start : start + rows]))[1:-1]
    yield "]"


def to_json(name, array):
    """Converts an output to nested lists; float32 numbers get no more digits than needed.

    Args:
        name: str, the output. Strings of outputs that end in "_bytes" are encoded as {"b64": ...}.
        array: numpy array.

    Returns:
        nested lists that json.dumps accepts.
    """
    if array.dtype == object:
        encode = (
            (lambda b: {"b64": base64.b64encode(b).decode()})
            if name.endswith("_bytes")
            else (lambda b: b.decode(errors="replace"))
        )
        return np.vectorize(encode, otypes=[object])(array).tolist()
    if array.dtype == np.float32:
        return array.astype("U32").astype(np.float64).tolist()
    return array.tolist()
