"""Checks the wire format of PredictRequests before protobuf allocates memory for them."""

from keras_ssl.serving.server.errors import invalid_argument

SMALL = 2**16  # bytes of a message that is harmless whatever it contains
MAX_FIELDS = 2**15  # such as 1,024 rows of 30 strings; each takes a microsecond of Python
MAX_VARINTS = 2**23  # bytes of values that protobuf decodes one by one, while no other thread runs
# Numbers of fields: of PredictRequest, of an entry of its map of inputs, and of TensorProto.
INPUTS, TENSOR = 2, 2
BULK = {4, 5, 6, 8, 9, 12, 18}  # tensor_content, string_val, and values of fixed size
VARINTS = {7, 10, 11, 13, 16, 17}  # int_val and others
SIZES = {1: 8, 5: 4}  # bytes of the wire types for values of fixed size


def check(data):
    """Rejects a PredictRequest that would take many times its bytes, or seconds, to parse.

    An empty entry of the map of inputs has two bytes and takes 128 in memory.

    Args:
        data: bytes.

    Raises:
        StatusError: INVALID_ARGUMENT, with a message that says what to do.
    """
    if len(data) <= SMALL:
        return
    count = _Count()
    for number, start, end in count.fields(data, 0, len(data)):
        if number != INPUTS:
            count.add_other(end - start)
            continue
        for key, first, last in count.fields(data, start, end):
            if key == TENSOR:
                _check_tensor(count, data, first, last)
            else:
                count.add_other(last - first)


def _check_tensor(count, data, start, end):
    for number, first, last in count.fields(data, start, end):
        if number in VARINTS:
            count.varints += last - first
            if count.varints > MAX_VARINTS:
                raise invalid_argument(
                    f"the inputs have more than {MAX_VARINTS} bytes of int_val or similar values; send "
                    "them as tensor_content"
                )
        elif number not in BULK:
            count.add_other(last - first)


class _Count:
    """Counts what has been found in a message so far."""

    def __init__(self):
        self.number = self.varints = self.other = 0

    def add_other(self, size):
        """Counts the bytes of names, shapes and unused fields."""
        self.other += size
        if self.other > SMALL:
            raise invalid_argument(
                f"the request has more than {SMALL} bytes besides the values of its inputs; shorten it"
            )

    def fields(self, data, start, end):
        """Yields (number, start, end) of the fields in a part of the data."""
        while start < end:
            self.number += 1
            if self.number > MAX_FIELDS:
                raise invalid_argument(
                    f"the request has more than {MAX_FIELDS} values; send numbers as tensor_content, and "
                    "strings in several requests"
                )
            tag, start = _varint(data, start, end)
            first = start
            if tag & 7 == 0:
                _, start = _varint(data, start, end)
            elif tag & 7 == 2:
                size, first = _varint(data, start, end)
                start = first + size
            else:
                start += SIZES.get(
                    tag & 7, end
                )  # groups, which proto3 does not have, are malformed
            if start > end:
                # Not left to protobuf, which could find more fields in it than were checked here.
                raise invalid_argument("cannot parse the request as PredictRequest")
            yield tag >> 3, first, start


def _varint(data, start, end):
    """Returns (number, end of its bytes), which is beyond `end` if the number is not complete."""
    value = shift = 0
    while start < end and shift < 70:
        byte = data[start]
        start += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, start
        shift += 7
    return 0, end + 1
