"""Converts JSON to arrays, from the row and column formats of TensorFlow Serving.

It imports nothing from this package and no TensorFlow, because `json_process` runs it as a separate program,
which has to start quickly.
"""

import base64
import contextlib
import gc
import itertools
import json
import resource
import signal
import sys
from multiprocessing import connection

import numpy as np

MAX_AXES = 32
PARSING_BYTES = 2**28  # memory to parse a body, plus BYTES_PER_BYTE for each of its bytes
BYTES_PER_BYTE = 20


class JsonError(ValueError):
    """A mistake of the client; the message is for the client."""


class Body:
    """The body of a predict request, parsed.

    Args:
        data: bytes or bytearray.

    Attributes:
        signature_name: str, "" for the default one.
        by_row: bool, whether the inputs are {"instances": ...}, not {"inputs": ...}.

    Raises:
        JsonError: the body is not JSON, or its keys are wrong.

    Example:
        >>> body = Body(b'{"instances": [[1, 2], [3, 4]]}')
        >>> body.arrays({"x": "float32"})
        {'x': array([[1., 2.],
               [3., 4.]], dtype=float32)}
    """

    def __init__(self, data):
        try:
            # JSON is UTF-8, but json.loads would also accept other encodings.
            self._values = values = json.loads(data.decode())
        except (ValueError, RecursionError) as error:
            raise JsonError(f"JSON Parse error: {error}") from None
        if not isinstance(values, dict):
            raise JsonError("the JSON must be an object with instances or inputs")
        self.signature_name = values.get("signature_name", "")
        if not isinstance(self.signature_name, str):
            raise JsonError("'signature_name' key must be a string value.")
        self.by_row = "instances" in values
        if self.by_row == ("inputs" in values):
            raise JsonError("Expecting one of 'instances' and 'inputs', and not both")

    def arrays(self, declared):
        """Converts the inputs to arrays.

        Args:
            declared: dict of the names of TensorFlow types by input name.

        Returns:
            dict of arrays by input name, strings as objects of bytes. Types that NumPy does not have,
            such as bfloat16, may be float32 or int64.

        Raises:
            JsonError: the JSON does not match the inputs.
        """
        names = sorted(declared)
        if self.by_row:
            columns = _columns_of_rows(self._values["instances"], names)
        else:
            columns = _columns(self._values["inputs"], names)
        return {name: _to_array(name, columns[name], declared[name]) for name in names}


def _columns_of_rows(rows, names):
    """Converts a list with one entry per image, plain or by input name, to lists by input name."""
    if not isinstance(rows, list) or not rows:
        raise JsonError("Expecting 'instances' to be a list with at least one entry")
    if all(isinstance(row, dict) and set(row) != {"b64"} for row in rows):
        for i, row in enumerate(rows):
            if sorted(row) != names:
                raise JsonError(
                    f"Failed to process element: {i} of 'instances' list: keys must be equal to: "
                    f"{','.join(names)}"
                )
        return {name: [row[name] for row in rows] for name in names}
    if len(names) == 1:
        return {names[0]: rows}
    raise JsonError(
        "instances is a plain list, but expecting list of objects as multiple input tensors "
        f"required: {','.join(names)}"
    )


def _columns(columns, names):
    """Returns one tensor, or a dict of tensors, by input name."""
    if not isinstance(columns, dict) or set(columns) == {"b64"}:
        if len(names) > 1:
            raise JsonError(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                f"required: {','.join(names)}"
            )
        return {names[0]: columns}
    for name in names:
        if name not in columns:
            raise JsonError(f"Missing named input: {name} in 'inputs' object.")
    return columns


def _to_array(name, value, dtype):
    """Converts nested lists to an array of the type that an input declares."""
    # Not by np.array, which pads all strings to the longest: 64 kB of JSON would take gigabytes.
    shape, values = _flatten(name, value)
    if dtype == "string":
        array = np.empty(len(values), object)
        array[:] = [_to_bytes(one, name) for one in values]
    else:
        array = _numbers(name, values, dtype)
    return array.reshape(shape)


def _flatten(name, value):
    """Returns (shape, list of the elements) of nested lists."""
    shape, values = [], [value]
    while list in (types := set(map(type, values))):
        sizes = set(map(len, values)) if types == {list} else ()
        if len(sizes) != 1:
            raise JsonError(f"JSON Value of input {name} has lists of different sizes")
        shape += sizes
        if len(shape) > MAX_AXES:
            raise JsonError(
                f"JSON Value of input {name} has more than {MAX_AXES} levels of nested lists"
            )
        values = list(itertools.chain.from_iterable(values))
    return shape, values


def _numbers(name, values, dtype):
    """Converts a list of numbers or booleans to an array, if the type can represent all of them."""
    wrong = JsonError(f"JSON Value of input {name} is not of expected type: {dtype}")
    floating = "float" in dtype
    allowed = {int, float} if floating else {bool} if dtype == "bool" else {int}
    if not allowed.issuperset(map(type, values)):
        raise wrong
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = np.dtype(np.float32 if floating else np.int64)
    try:
        given = np.array(
            values, np.float64 if floating else np.uint64 if kind == "u8" else np.int64
        )
    except OverflowError:
        raise wrong from None
    with np.errstate(over="ignore"):
        array = given.astype(kind)
    if not floating and not np.array_equal(array, given):
        raise wrong  # out of range, such as 300 for uint8
    return array


def _to_bytes(value, name):
    """Converts a string or {"b64": ...} to bytes."""
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:  # half a surrogate pair
            raise JsonError(f"JSON Value of input {name} must be valid Unicode") from None
    if isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except ValueError:  # binascii.Error, or characters that are not ASCII
            raise JsonError("Unable to base64 decode") from None
    raise JsonError(f"JSON Value of input {name} is not of expected type: string")


def main(pipe):
    """Parses bodies from a pipe until it is closed; the other end is a `json_process.JsonProcess`.

    It sends True when it is ready. For each body it sends (signature_name, by_row), receives a dict of the
    declared inputs or None, and sends the arrays unless it received None. Instead of any of these it may send
    a str, the message of a JsonError. Finally it sends whether it is ready again, and ends if it is not.

    Args:
        pipe: multiprocessing.connection.Connection.
    """
    gc.disable()  # a collection would visit every list that is being parsed
    used = _address_space()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)  # only the superuser may raise it
    ready = True
    with contextlib.suppress(EOFError, ConnectionError):
        while ready:
            # Receiving a body takes memory, too, and the current limit is for the previous body.
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
            pipe.send(True)
            data = pipe.recv()
            limit = used + PARSING_BYTES + BYTES_PER_BYTE * len(data)
            limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
            try:
                _parse(pipe, data)
            except JsonError as error:
                pipe.send(str(error))
            except MemoryError:
                pipe.send("the JSON takes too much memory: send fewer values per request")
            del data
            gc.collect()  # errors have reference cycles that keep everything that was parsed
            ready = _address_space() < used + PARSING_BYTES // 4  # the rest may be fragmented
        pipe.send(False)


def _address_space():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _parse(pipe, data):
    body = Body(data)
    pipe.send((body.signature_name, body.by_row))
    if (declared := pipe.recv()) is not None:
        pipe.send([_packed(name, array) for name, array in body.arrays(declared).items()])


def _packed(name, array):
    """Packs strings as their lengths and their bytes, because millions of objects are slow to send."""
    if array.dtype != object:
        return name, array.shape, None, array
    sizes = np.fromiter(map(len, array.flat), np.int64, array.size)
    return name, array.shape, sizes, b"".join(array.flat)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which closes the pipe
    main(connection.Connection(int(sys.argv[1])))
