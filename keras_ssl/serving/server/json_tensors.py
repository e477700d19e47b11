"""Arrays from JSON and back, in TensorFlow Serving's row and column form."""

import base64
import binascii

import numpy as np
import tensorflow as tf

from keras_ssl.serving.server.requests import check_shape, invalid


def from_rows(body, declared):
    """Arrays of {"instances": [...]}: one entry a picture, plain or by input name."""
    rows = body["instances"]
    if not isinstance(rows, list) or not rows:
        raise invalid("Expecting 'instances' to be a list with at least one entry")
    names = sorted(declared)
    if all(isinstance(row, dict) and set(row) != {"b64"} for row in rows):
        for i, row in enumerate(rows):
            if sorted(row) != names:
                raise invalid(
                    f"Failed to process element: {i} of 'instances' list: keys must be equal to: "
                    f"{','.join(names)}"
                )
        columns = {name: [row[name] for row in rows] for name in names}
    elif len(names) == 1:
        columns = {names[0]: rows}
    else:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            f"required: {','.join(names)}"
        )
    return {name: _array(name, columns[name], declared[name]) for name in names}


def from_columns(body, declared):
    """Arrays of {"inputs": ...}: a whole tensor, or one by input name."""
    columns, names = body["inputs"], sorted(declared)
    if not isinstance(columns, dict) or set(columns) == {"b64"}:
        if len(names) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                f"required: {','.join(names)}"
            )
        columns = {names[0]: columns}
    for name in names:
        if name not in columns:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: _array(name, columns[name], declared[name]) for name in names}


def _array(name, value, declared):
    """Array of nested lists, of the type and shape that an input has."""
    dtype = tf.as_dtype(declared.type)
    wrong = invalid(f"JSON Value of input {name} is not of expected type: {dtype.name}")
    if dtype == tf.string:
        array = np.array(_bytes(value, name), dtype=object)
    else:
        try:
            given = np.array(value)
        except (ValueError, OverflowError, RecursionError):
            raise invalid(f"JSON Value of input {name} has lists of different sizes") from None
        kinds = "b" if dtype.is_bool else "iuf" if dtype.is_floating else "iu"
        if given.dtype.kind not in kinds and given.size:
            raise wrong
        array = given.astype(dtype.as_numpy_dtype)
        if dtype.is_integer and not np.array_equal(array, given):
            raise wrong  # 300 is no uint8
    check_shape(name, array.shape, declared)
    return array


def _bytes(value, name):
    if isinstance(value, list):
        parts = [_bytes(one, name) for one in value]
        if len({len(p) if isinstance(p, list) else -1 for p in parts}) > 1:
            raise invalid(f"JSON Value of input {name} has lists of different sizes")
        return parts
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:  # half a surrogate pair
            raise invalid(f"JSON Value of input {name} must be valid Unicode") from None
    if isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except binascii.Error:
            raise invalid("Unable to base64 decode") from None
    raise invalid(f"JSON Value of input {name} is not of expected type: string")


def values(name, array):
    """Nested lists for JSON; float32 with no more digits than it has."""
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
