"""JSON that is costly to parse, and the conversion of nested lists."""

import json

import ml_dtypes
import numpy as np
import pytest

from keras_ssl.serving.server.json_tensors import Body, JsonError


def arrays(values, **declared):
    return Body(json.dumps({"inputs": values}).encode()).arrays(declared)


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([[1, 2], [3, 4]], "uint8", np.array([[1, 2], [3, 4]], np.uint8)),
        (7, "float32", np.array(7, np.float32)),
        ([1, 2.5], "float32", np.array([1, 2.5], np.float32)),
        ([2**63, 0], "uint64", np.array([2**63, 0], np.uint64)),
        ([True], "bool", np.array([True])),
        ([float("nan"), float("-inf")], "float32", np.array([np.nan, -np.inf], np.float32)),
        ([1e39], "float32", np.array([np.inf], np.float32)),
        ([[], []], "float32", np.zeros((2, 0), np.float32)),
        (["a", {"b64": "AA=="}], "string", np.array([b"a", b"\0"], object)),
        ([[[["é"]]]], "string", np.array([[[["é".encode()]]]], object)),
    ],
)
def test_values_become_arrays(values, dtype, expected):
    array = arrays(values, x=dtype)["x"]
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)


def test_types_that_only_tensorflow_has_are_converted_without_loss():
    array = arrays([1.5, -3], x="bfloat16")["x"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(array.astype(float), [1.5, -3])


WRONG = "not of expected type"
DEEP = "more than 32 levels of nested lists"
SIZES = "lists of different sizes"


@pytest.mark.parametrize(
    ("text", "dtype", "message"),
    [
        ("[true, 1]", "int32", WRONG),
        ("[1]", "bool", WRONG),
        ('["1"]', "float32", WRONG),
        ("[-1]", "uint64", WRONG),
        ("[300]", "uint8", WRONG),
        ("[9223372036854775808]", "int64", WRONG),
        (f"[{10**4000}]", "float32", WRONG),
        (f"[{10**4000}]", "int32", WRONG),
        ("[{}]", "string", WRONG),
        ('[{"b64": "\\u00e9"}]', "string", "Unable to base64 decode"),
        ("[[1], 2]", "float32", SIZES),
        ("[[1], [2, 3]]", "float32", SIZES),
        ("[[[1]], [2]]", "float32", SIZES),
        ("[" * 33 + "]" * 33, "float32", DEEP),
        ("[" * 500 + "1" + "]" * 500, "float32", DEEP),
        ("[" * 900 + "]" * 900, "string", DEEP),
    ],
)
def test_values_that_do_not_match_are_rejected(text, dtype, message):
    body = Body(f'{{"inputs": {text}}}'.encode())
    with pytest.raises(JsonError, match=message):
        body.arrays({"x": dtype})


@pytest.mark.parametrize(
    "text", ["[" * 5000, "1" * 5000, '{"inputs": [' + "1" * 5000 + "]}", "\ud800x", "{'a': 1}"]
)
def test_texts_that_are_not_json_are_rejected(text):
    with pytest.raises(JsonError, match="JSON Parse error: "):
        Body(text.encode(errors="surrogatepass"))


def test_the_last_of_two_equal_keys_counts():
    assert Body(b'{"inputs": [1], "inputs": [2]}').arrays({"x": "int32"})["x"].tolist() == [2]


def test_strings_are_not_padded_to_the_longest():
    """np.array would need 4 GB for these 100 kB."""
    values = ["a" * 50_000, *(["a"] * 12_000)]
    with pytest.raises(JsonError, match=WRONG):
        arrays(values, x="float32")
    assert arrays(values, x="string")["x"][1:].tolist() == [b"a"] * 12_000
