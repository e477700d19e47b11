"""REST: the same answers as over gRPC, errors as JSON, and nothing that a client can break."""

import base64
import http.client
import json
import socket

import numpy as np
import pytest
import tensorflow as tf

from keras_ssl.serving import Server
from keras_ssl.serving.server import configs, json_tensors


@pytest.fixture(scope="module")
def server(exported, counter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "rotation_digits").symlink_to(exported)
    (folder / "counter").symlink_to(counter)
    monitoring = configs.MonitoringConfig()
    monitoring.prometheus_config.enable = True
    with Server(folder, rest_port=0, monitoring=monitoring) as server:
        yield server


def ask(server, path, body=None, method=None):
    """(status, parsed JSON) of a request."""
    connection = http.client.HTTPConnection("localhost", server.rest_port, timeout=10)
    data = body if isinstance(body, bytes | None) else json.dumps(body)
    connection.request(method or ("GET" if body is None else "POST"), path, data)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content)


PREDICT = "/v1/models/rotation_digits:predict"


def test_rows_and_columns(server, task, noise):
    expected = task.features(noise[:3]).numpy()
    status, answer = ask(server, PREDICT, {"instances": noise[:3].tolist()})
    assert status == 200
    np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-5, atol=1e-5)
    for body in (
        {"inputs": noise[:3].tolist()},
        {"inputs": {"images": noise[:3].tolist()}, "signature_name": "serving_default"},
    ):
        status, answer = ask(server, PREDICT, body)
        np.testing.assert_allclose(answer["outputs"], expected, rtol=1e-5, atol=1e-5)
    named = {"instances": [{"images": image.tolist()} for image in noise[:3]]}
    status, answer = ask(server, PREDICT, named)
    np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-5, atol=1e-5)


def test_encoded_pictures_and_several_outputs(server, task, noise):
    encoded = [base64.b64encode(tf.io.encode_png(x).numpy()).decode() for x in noise[:2]]
    body = {"signature_name": "encoded", "instances": [{"b64": text} for text in encoded]}
    _, answer = ask(server, PREDICT, body)
    expected = task.features(noise[:2]).numpy()
    np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-5, atol=1e-5)
    body = {"signature_name": "stages", "instances": noise[:2].tolist()}
    _, answer = ask(server, PREDICT, body)
    assert [set(row) for row in answer["predictions"]] == [{"stage1", "stage2", "features"}] * 2
    np.testing.assert_allclose(answer["predictions"][1]["features"], expected[1], rtol=1e-5)
    _, answer = ask(server, PREDICT, {"signature_name": "stages", "inputs": noise[:2].tolist()})
    np.testing.assert_allclose(answer["outputs"]["features"], expected, rtol=1e-5, atol=1e-5)


def test_numbers_are_short(server):
    _, answer = ask(server, "/v1/models/counter:predict", {"instances": [[0.1], [2]]})
    assert answer == {"predictions": [[3.1], [5.0]]}  # and not 3.0999999046
    assert json_tensors.to_json("y", np.array([np.nan, -np.inf, 1e20], np.float32))[1:] == [
        -np.inf,
        1e20,
    ]
    assert json_tensors.to_json("a_bytes", np.array([b"\0"], object)) == [{"b64": "AA=="}]
    assert json_tensors.to_json("a", np.array([[b"x"], [b"y"]], object)) == [["x"], ["y"]]
    assert json_tensors.to_json("n", np.array([200, 7], np.uint8)) == [200, 7]


def test_status_and_metadata(server):
    for path in ("/v1/models/counter", "/v1/models/counter/versions/3", "/V1/Models/count%65r"):
        status, answer = ask(server, path)
        assert status == 200
        assert answer == {
            "model_version_status": [
                {
                    "version": "3",
                    "state": "AVAILABLE",
                    "status": {"error_code": "OK", "error_message": ""},
                }
            ]
        }
    _, answer = ask(server, "/v1/models/counter/versions/3/metadata")
    assert answer["model_spec"] == {"name": "counter", "signature_name": "", "version": "3"}
    signature = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["x"]["tensor_shape"]["dim"][1] == {"size": "1", "name": ""}


def test_metrics(server):
    ask(server, "/v1/models/counter:predict", {"instances": [[1]]})
    ask(server, "/v1/models/counter:predict", {"instances": [[-1]]})
    ask(server, "/v1/models/invented:predict", {"instances": [[1]]})
    connection = http.client.HTTPConnection("localhost", server.rest_port)
    connection.request("GET", "/monitoring/prometheus/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    assert "# TYPE :tensorflow:serving:request_count counter" in page
    counts = dict(line.rsplit(" ", 1) for line in page.splitlines() if "request_count{" in line)
    name = ":tensorflow:serving:request_count"
    assert float(counts[f'{name}{{model_name="counter",status="OK"}}']) >= 1
    assert float(counts[f'{name}{{model_name="counter",status="INVALID_ARGUMENT"}}']) >= 1
    assert "invented" not in page
    latency = ':tensorflow:serving:request_latency_count{API="Predict",entrypoint="REST"'
    assert latency in page


P = "/v1/models/counter:predict"
BAD = [
    (P, {"instances": [[-1]]}, 400, "x must not be negative"),
    (P, {"instances": []}, 400, "at least one entry"),
    (P, {"instances": 3}, 400, "to be a list"),
    (P, {"instances": [[1]], "inputs": [[1]]}, 400, "not both"),
    (P, {}, 400, "Expecting one of"),
    (P, [1], 400, "must be an object"),
    (P, b"{", 400, "JSON Parse error"),
    (P, b"", 400, "JSON Parse error"),
    (P, b"[" * 100_000, 400, "JSON Parse error"),
    (P, b"\xff\xfe\x00", 400, "JSON Parse error"),
    (P, b'{"signature_name": "\\ud800", "inputs": [[1]]}', 400, "valid Unicode"),
    (PREDICT, b'{"signature_name": "encoded", "inputs": ["\\ud800"]}', 400, "valid Unicode"),
    (P, {"inputs": [[1]], "pad": "x" * 2**21}, 200, ""),
    (P, {"instances": [[10**400]]}, 400, "not of expected type"),
    (P, {"instances": [[1], [1, 2]]}, 400, "lists of different sizes"),
    (P, {"instances": [["a"]]}, 400, "not of expected type: float32"),
    (P, {"instances": [[None]]}, 400, "not of expected type: float32"),
    (P, {"instances": [{"z": 1}]}, 400, "keys must be equal to: x"),
    (P, {"inputs": {"z": 1}}, 400, "Missing named input: x"),
    (P, {"signature_name": 3, "inputs": [[1]]}, 400, "must be a string"),
    (P, {"signature_name": "no", "inputs": [[1]]}, 400, 'Serving signature key "no" not found.'),
    (PREDICT, {"instances": [[[[300, 0, 0]]]]}, 400, "not of expected type: uint8"),
    (PREDICT, {"instances": [[[[1.5, 0, 0]]]]}, 400, "not of expected type: uint8"),
    (PREDICT, {"instances": [[[[3, 0, 0]]]]}, 400, "must have the shape"),
    (PREDICT, {"signature_name": "encoded", "inputs": [{"b64": "?"}]}, 400, "base64"),
    (PREDICT, {"signature_name": "encoded", "inputs": [3]}, 400, "expected type: string"),
    (PREDICT, {"signature_name": "encoded", "inputs": ["no picture"]}, 400, "Unknown image file"),
    ("/v1/models/nope:predict", {"inputs": [[1]]}, 404, "Servable not found for request: Latest(nope)"),
    ("/v1/models/counter/versions/9:predict", {"inputs": [[1]]}, 404, "Specific(counter, 9)"),
    ("/v1/models/counter/labels/x:predict", {"inputs": [[1]]}, 400, "version label: x"),
    ("/v1/models/counter:classify", {"examples": []}, 501, ":predict"),
    ("/v1/models/..%2F..%2Fetc:predict", {"inputs": [[1]]}, 404, "Latest(../../etc)"),
    ("/v1/models/counter:destroy", {}, 400, "Malformed request: POST"),
    ("/v1/models/nope", None, 404, "Could not find any versions of model nope"),
    ("/v1/models/counter/versions/9", None, 404, "Could not find version 9 of model counter"),
    (f"/v1/models/counter/versions/{10**30}", None, 400, "Failed to convert version"),
    ("/v1/models", None, 400, "Missing model name"),
    ("/elsewhere", None, 400, "Malformed request: GET"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "words"), BAD)
def test_errors(server, path, body, status, words):
    got, answer = ask(server, path, body, "POST" if body is not None else None)
    assert got == status
    assert words in answer.get("error", "")
    assert ask(server, P, {"instances": [[1]]}) == (200, {"predictions": [[4.0]]})


def test_bodies_without_or_with_too_long_a_length(server):
    for header, words in (
        ("Content-Length: 99999999999", "at most"),
        ("Content-Length: -1", "at most"),
        ("Transfer-Encoding: chunked", "needs a Content-Length"),
        ("Content-Length: many", "needs a Content-Length"),
    ):
        with socket.create_connection(("localhost", server.rest_port), timeout=10) as raw:
            raw.sendall(f"POST {P} HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())
            answer = raw.makefile("rb").read()  # to the end: the server closes
            assert b" 400 " in answer.splitlines()[0]
            assert words.encode() in answer


def test_a_port_that_is_taken(server, counter):
    with (
        pytest.raises(ValueError, match=f"rest_port {server.rest_port} .* cannot be bound"),
        Server(counter, rest_port=server.rest_port),
    ):
        pass
