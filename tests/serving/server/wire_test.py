"""Which messages are rejected before protobuf parses them."""

import numpy as np
import pytest
import server_process
from hostile_calls import field, padded

from keras_ssl.serving.server import wire
from keras_ssl.serving.server.errors import StatusError

HALF = wire.SMALL  # 2-byte fields, so that there are twice as many bytes as `wire.SMALL`


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"\x12\0" * 2 * HALF, "more than 32768 values"),
     (padded(b"\x42\0" * 2 * HALF), "more than 32768 values"),
     (padded(field(2, b"\x12\0" * HALF)), "besides the values"),
     (padded(field(15, b"\x12\0" * HALF)), "besides the values"),
     (field(1, field(1, b"m" * 2 * HALF)), "besides the values"),
     (field(3, b"x" * 2 * HALF), "besides the values"),
     (padded(field(7, b"\1" * (wire.MAX_VARINTS + 1))), "send them as tensor_content"),
     (b"\x7b\x7c" + padded(field(2, b"\x12\0" * HALF)), "cannot parse"),  # a group
     (b"\x12\xff\xff\xff\x7f" + b"\x12\0" * HALF, "cannot parse"),
     (b"\x80" * 2 * HALF, "cannot parse")],
)  # fmt: skip
def test_messages_that_would_take_many_times_their_bytes(data, message):
    with pytest.raises(StatusError, match=message):
        wire.check(data)


@pytest.mark.parametrize(
    "arrays",
    [{"images": np.zeros((64, 96, 96, 3), np.uint8)},
     {"x": np.ones((300, 300), np.float32), "y": np.arange(2**17)},
     {"encoded": np.array([b"x" * 3000] * 1024, object)}],
)  # fmt: skip
def test_requests_of_clients_pass(arrays):
    message = server_process.request("m", **arrays)
    wire.check(message.SerializeToString())
    for name, array in arrays.items():  # the same values one by one
        if array.dtype == np.uint8:
            message.inputs[name].int_val.extend(array.ravel().tolist())
            message.inputs[name].ClearField("tensor_content")
    wire.check(message.SerializeToString())


def test_small_messages_are_not_checked():
    wire.check(b"\x80" * wire.SMALL)
