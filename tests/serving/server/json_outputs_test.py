"""Responses as JSON: by row and by output, in pieces."""

import json

import numpy as np
import pytest

from keras_ssl.serving.server import json_outputs
from keras_ssl.serving.server.errors import StatusError


@pytest.mark.parametrize(
    "shape", [(), (0,), (5,), (3, 0), (2, 3), (7, 2, 5), (10_000,), (2, 9000), (1, 3, 5000)]
)
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_arrays_of_all_shapes(shape, dtype):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    text = json_outputs.encode({"y": array}, by_row=False)
    assert json.loads(text) == {"outputs": array.tolist()}


def test_several_outputs():
    outputs = {
        "y": np.arange(6, dtype=np.float32).reshape(3, 2),
        "n": np.array([1, 2, 3]),
        "s_bytes": np.array([b"a", b"\0", b""], object),
        "t": np.array([[b"a"], [b"b"], [b"c"]], object),
    }
    rows = json.loads(json_outputs.encode(outputs, by_row=True))["predictions"]
    assert rows[1] == {"y": [2.0, 3.0], "n": 2, "s_bytes": {"b64": "AA=="}, "t": ["b"]}
    columns = json.loads(json_outputs.encode(outputs, by_row=False))["outputs"]
    assert columns["y"] == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert columns["s_bytes"][1] == {"b64": "AA=="}


def test_outputs_without_a_common_batch_size_cannot_be_written_by_row():
    outputs = {"y": np.zeros(3), "n": np.zeros(())}
    with pytest.raises(StatusError, match="use 'inputs' instead"):
        json_outputs.encode(outputs, by_row=True)
    assert json.loads(json_outputs.encode(outputs, by_row=False))["outputs"]["n"] == 0.0


def test_no_piece_is_large(monkeypatch):
    sizes = []
    original = json_outputs.to_json

    def to_json(name, array):
        sizes.append(array.size)
        return original(name, array)

    monkeypatch.setattr(json_outputs, "to_json", to_json)
    for shape in ((100_000,), (3, 50_000), (400, 1000), (9, 1, 70_000)):
        json_outputs.encode({"y": np.zeros(shape, np.float32)}, by_row=True)
    assert max(sizes) <= json_outputs.PIECE
    assert len(sizes) < 10_000
