"""Converts between JSON and arrays, in the row and column formats of TensorFlow Serving."""

import base64
import binascii

import numpy as np
import tensorflow as tf

from keras_ssl.serving.server.errors import invalid_argument
from keras_ssl.serving.server.requests import check_shape


def from_rows(body, declared):
    """Converts {"instances": [...]}, with one entry per image, plain or by input name.

    Args:
        body: dict, the parsed JSON.
        declared: dict of InputSpec by name.

    Returns:
        dict of arrays by input name.

    Raises:
        StatusError: INVALID_ARGUMENT, the JSON does not match the inputs.
    """
    rows = body["instances"]
    if not isinstance(rows, list) or not rows:
        raise invalid_argument("Expecting 'instances' to be a list with at least one entry")
    names = sorted(declared)
    if all(isinstance(row, dict) and set(row) != {"b64"} for row in rows):
        for i, row in enumerate(rows):
            if sorted(row) != names:
                raise invalid_argument(
                    f"Failed to process element: {i} of 'instances' list: keys must be equal to: "
                    f"{','.join(names)}"
                )
        columns = {name: [row[name] for row in rows] for name in names}
    elif len(names) == 1:
        columns = {names[0]: rows}
    else:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            f"required: {','.join(names)}"
        )
    return {name: _to_array(name, columns[name], declared[name]) for name in names}


def from_columns(body, declared):
    """Converts {"inputs": ...}, one tensor or a dict of tensors by input name.

    Arguments, result and errors are those of `from_rows`.
    """
    columns, names = body["inputs"], sorted(declared)
    if not isinstance(columns, dict) or set(columns) == {"b64"}:
        if len(names) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                f"required: {','.join(names)}"
            )
        columns = {names[0]: columns}
    for name in names:
        if name not in columns:
            raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
    return {name: _to_array(name, columns[name], declared[name]) for name in names}


def _to_array(name, value, spec):
    """Converts nested lists to an array of the type and shape that an input declares."""
    dtype = tf.as_dtype(spec.type)
    wrong_type = invalid_argument(
        f"JSON Value of input {name} is not of expected type: {dtype.name}"
    )
    if dtype == tf.string:
        array = np.array(_decode_strings(value, name), dtype=object)
    else:
        try:
            given = np.array(value)
        except (ValueError, OverflowError, RecursionError):
            raise invalid_argument(
                f"JSON Value of input {name} has lists of different sizes"
            ) from None
        kinds = "b" if dtype.is_bool else "iuf" if dtype.is_floating else "iu"
        if given.dtype.kind not in kinds and given.size:
            raise wrong_type
        array = given.astype(dtype.as_numpy_dtype)
        if dtype.is_integer and not np.array_equal(array, given):
            raise wrong_type  # out of range, such as 300 for uint8
    check_shape(name, array.shape, spec)
    return array


def _decode_strings(value, name):
    """Converts strings and {"b64": ...} in nested lists to bytes."""
    if isinstance(value, list):
        parts = [_decode_strings(one, name) for one in value]
        if len({len(p) if isinstance(p, list) else -1 for p in parts}) > 1:
            raise invalid_argument(f"JSON Value of input {name} has lists of different sizes")
        return parts
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:  # half a surrogate pair
            raise invalid_argument(f"JSON Value of input {name} must be valid Unicode") from None
    if isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except binascii.Error:
            raise invalid_argument("Unable to base64 decode") from None
    raise invalid_argument(f"JSON Value of input {name} is not of expected type: string")


def to_json(name, array):
    """Converts an output to nested lists, float32 with no more digits than it has.

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
