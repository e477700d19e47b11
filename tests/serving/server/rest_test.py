"""REST: the responses of gRPC as JSON, errors, and requests that are invalid as HTTP."""

import base64
import http.client
import json
import socket
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from keras_ssl.serving.server import json_outputs
from keras_ssl.serving.server.errors import invalid_argument


def send(server, path, body=None, method=None):
    """Sends a request and returns (status, parsed JSON)."""
    connection = http.client.HTTPConnection("localhost", server.rest_port, timeout=10)
    data = body if isinstance(body, bytes | None) else json.dumps(body)
    connection.request(method or ("GET" if body is None else "POST"), path, data)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, json.loads(content)


PREDICT = "/v1/models/rotation_digits:predict"


def test_rows_and_columns(server, task, noise):
    expected = task.features(noise[:3]).numpy()
    status, response = send(server, PREDICT, {"instances": noise[:3].tolist()})
    assert status == 200
    np.testing.assert_allclose(response["predictions"], expected, rtol=1e-5, atol=1e-5)
    for body in (
        {"inputs": noise[:3].tolist()},
        {"inputs": {"images": noise[:3].tolist()}, "signature_name": "serving_default"},
    ):
        status, response = send(server, PREDICT, body)
        np.testing.assert_allclose(response["outputs"], expected, rtol=1e-5, atol=1e-5)
    named = {"instances": [{"images": image.tolist()} for image in noise[:3]]}
    status, response = send(server, PREDICT, named)
    np.testing.assert_allclose(response["predictions"], expected, rtol=1e-5, atol=1e-5)


def test_encoded_images_and_several_outputs(server, task, noise):
    encoded = [base64.b64encode(tf.io.encode_png(x).numpy()).decode() for x in noise[:2]]
    body = {"signature_name": "encoded", "instances": [{"b64": text} for text in encoded]}
    _, response = send(server, PREDICT, body)
    expected = task.features(noise[:2]).numpy()
    np.testing.assert_allclose(response["predictions"], expected, rtol=1e-5, atol=1e-5)
    body = {"signature_name": "stages", "instances": noise[:2].tolist()}
    _, response = send(server, PREDICT, body)
    assert [set(row) for row in response["predictions"]] == [{"stage1", "stage2", "features"}] * 2
    np.testing.assert_allclose(response["predictions"][1]["features"], expected[1], rtol=1e-5)
    _, response = send(server, PREDICT, {"signature_name": "stages", "inputs": noise[:2].tolist()})
    np.testing.assert_allclose(response["outputs"]["features"], expected, rtol=1e-5, atol=1e-5)


def test_float32_values_have_no_more_digits_than_needed(server):
    _, response = send(server, "/v1/models/counter:predict", {"instances": [[0.1], [2]]})
    assert response == {"predictions": [[3.1], [5.0]]}  # and not 3.0999999046
    assert json_outputs.to_json("y", np.array([np.nan, -np.inf, 1e20], np.float32))[1:] == [
        -np.inf,
        1e20,
    ]
    assert json_outputs.to_json("a_bytes", np.array([b"\0"], object)) == [{"b64": "AA=="}]
    assert json_outputs.to_json("a", np.array([[b"x"], [b"y"]], object)) == [["x"], ["y"]]
    assert json_outputs.to_json("n", np.array([200, 7], np.uint8)) == [200, 7]


def test_status_and_metadata(server):
    for path in ("/v1/models/counter", "/v1/models/counter/versions/3", "/V1/Models/count%65r"):
        status, response = send(server, path)
        assert status == 200
        assert response == {
            "model_version_status": [
                {
                    "version": "3",
                    "state": "AVAILABLE",
                    "status": {"error_code": "OK", "error_message": ""},
                }
            ]
        }
    _, response = send(server, "/v1/models/counter/versions/3/metadata")
    assert response["model_spec"] == {"name": "counter", "signature_name": "", "version": "3"}
    signature = response["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["x"]["tensor_shape"]["dim"][1] == {"size": "1", "name": ""}


def test_metrics(server):
    send(server, "/v1/models/counter:predict", {"instances": [[1]]})
    send(server, "/v1/models/counter:predict", {"instances": [[-1]]})
    send(server, "/v1/models/invented:predict", {"instances": [[1]]})
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


COUNTER = "/v1/models/counter:predict"
REQUESTS = [
    (COUNTER, {"instances": [[-1]]}, 400, "x must not be negative"),
    (COUNTER, {"instances": []}, 400, "at least one entry"),
    (COUNTER, {"instances": 3}, 400, "to be a list"),
    (COUNTER, {"instances": [[1]], "inputs": [[1]]}, 400, "not both"),
    (COUNTER, {}, 400, "Expecting one of"),
    (COUNTER, [1], 400, "must be an object"),
    (COUNTER, b"{", 400, "JSON Parse error"),
    (COUNTER, b"", 400, "JSON Parse error"),
    (COUNTER, b"[" * 100_000, 400, "JSON Parse error"),
    (COUNTER, b"\xff\xfe\x00", 400, "JSON Parse error"),
    (COUNTER, b'{"signature_name": "\\ud800", "inputs": [[1]]}', 400, "valid Unicode"),
    (PREDICT, b'{"signature_name": "encoded", "inputs": ["\\ud800"]}', 400, "valid Unicode"),
    (COUNTER, {"inputs": [[1]], "pad": "x" * 2**21}, 200, ""),
    (COUNTER, {"instances": [[10**400]]}, 400, "not of expected type"),
    (COUNTER, {"instances": [[1], [1, 2]]}, 400, "lists of different sizes"),
    (COUNTER, {"instances": [["a"]]}, 400, "not of expected type: float32"),
    (COUNTER, {"instances": [[None]]}, 400, "not of expected type: float32"),
    (COUNTER, {"instances": [{"z": 1}]}, 400, "keys must be equal to: x"),
    (COUNTER, {"inputs": {"z": 1}}, 400, "Missing named input: x"),
    (COUNTER, {"signature_name": 3, "inputs": [[1]]}, 400, "must be a string"),
    (COUNTER, {"signature_name": "no", "inputs": [[1]]}, 400, 'Serving signature key "no" not found.'),
    (PREDICT, {"instances": [[[[300, 0, 0]]]]}, 400, "not of expected type: uint8"),
    (PREDICT, {"instances": [[[[1.5, 0, 0]]]]}, 400, "not of expected type: uint8"),
    (PREDICT, {"instances": [[[[3, 0, 0]]]]}, 400, "must have the shape"),
    (PREDICT, {"signature_name": "encoded", "inputs": [{"b64": "?"}]}, 400, "base64"),
    (PREDICT, {"signature_name": "encoded", "inputs": [3]}, 400, "expected type: string"),
    (PREDICT, {"signature_name": "encoded", "inputs": ["not an image"]}, 400, "Unknown image file"),
    ("/v1/models/nope:predict", {"inputs": [[1]]}, 404, "Servable not found for request: Latest(nope)"),
    ("/v1/models/counter/versions/9:predict", {"inputs": [[1]]}, 404, "Specific(counter, 9)"),
    ("/v1/models/counter/labels/x:predict", {"inputs": [[1]]}, 400, "version label: x"),
    ("/v1/models/counter:classify", {"examples": []}, 501, ":predict"),
    ("/v1/models/..%2F..%2Fetc:predict", {"inputs": [[1]]}, 404, "Latest(../../etc)"),
    ("/v1/models/counter:destroy", {}, 400, "Malformed request: POST"),
    ("/v1/models/nope", None, 404, "Could not find any versions of model nope"),
    ("/v1/models/counter/versions/9", None, 404, "Could not find version 9 of model counter"),
    (f"/v1/models/counter/versions/{10**30}", None, 400, "Failed to convert version"),
    (f"/v1/models/counter/versions/1{'0' * 5000}", None, 400, "Failed to convert version: 1000"),
    (f"/v1/models/counter/versions/{'0' * 30}3", None, 200, ""),
    (COUNTER, b'{"instances": [' + b"1" * 5000 + b"]}", 400, "Exceeds the limit"),
    (COUNTER, b'{"instances": ' + b"[" * 600 + b"1" + b"]" * 600 + b"}", 400, "more than 32 levels"),
    (PREDICT, b'{"signature_name": "encoded", "inputs": ' + b"[" * 900 + b"]" * 900 + b"}", 400, "32 levels"),
    (COUNTER, b'{"instances": [' + b"[]," * 2**17 + b"[1]]}", 400, "lists of different sizes"),
    ("/v1/models", None, 400, "Missing model name"),
    ("/elsewhere", None, 400, "Malformed request: GET"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "message"), REQUESTS)
def test_errors_are_json(server, path, body, status, message):
    found, response = send(server, path, body, "POST" if body is not None else None)
    assert found == status
    assert message in response.get("error", "")
    assert send(server, COUNTER, {"instances": [[1]]}) == (200, {"predictions": [[4.0]]})


def test_content_length_is_checked(server):
    for header, message in (
        ("Content-Length: 99999999999", "at most 8388608 bytes"),
        ("Content-Length: -1", "Invalid character in Content-Length"),
        ("Content-Length:", "Empty Content-Length"),
        ("Transfer-Encoding: chunked", "needs a Content-Length"),
        ("Content-Length: many", "Invalid character in Content-Length"),
        ("Content-Length: 2\r\nContent-Length: 2", "Content-Length"),
        ("Content-Length: 2\r\nTransfer-Encoding: chunked", "Transfer-Encoding can't be present"),
    ):
        with socket.create_connection(("localhost", server.rest_port), timeout=10) as raw:
            raw.sendall(f"POST {COUNTER} HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())
            response = raw.makefile("rb").read()  # to the end: the server closes the connection
            assert b" 400 " in response.splitlines()[0]
            assert message in json.loads(response.split(b"\r\n\r\n")[1])["error"]


def test_other_methods(server):
    assert send(server, COUNTER, b"{}", "PUT") == (501, {"error": "Unsupported method ('PUT')"})
    assert send(server, "http://x/v1/models/counter?a=b")[0] == 200


def test_deadline(server, monkeypatch):
    monkeypatch.setattr(server._rest, "_seconds", 0.0)
    status, response = send(server, COUNTER, {"instances": [[1]]})
    assert (status, response["error"]) == (504, "the request has waited for too long")


def test_a_request_does_not_run_for_a_client_that_has_left(server, monkeypatch):
    """The client leaves while its request waits for a thread."""
    names, release = [], threading.Event()

    def submit(client, request, *_):
        names.append(request.model_spec.name)
        raise invalid_argument("submitted")

    monkeypatch.setattr(server._predictor, "submit", submit)
    server._rest._parsers.submit("127.0.0.1", release.wait, 20)
    body = b'{"instances": [[1]]}'
    for name in ("gone", "counter"):
        raw = socket.create_connection(("localhost", server.rest_port), timeout=10)
        head = f"POST /v1/models/{name}:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
        raw.sendall(head.encode() + b"\r\n\r\n" + body)
        if name == "gone":
            raw.close()
    time.sleep(0.5)
    release.set()
    assert b" 400 " in raw.recv(1000)
    raw.close()
    assert names == ["counter"]


def test_nothing_is_looked_up_or_encoded_for_clients_that_have_left(server, monkeypatch, wait_for):
    release, paths, get, encode = threading.Event(), [], server._rest._get, json_outputs.encode
    monkeypatch.setattr(server._rest, "_get", lambda path: paths.append(path) or get(path))
    monkeypatch.setattr(
        json_outputs, "encode", lambda *args: paths.append("encode") or encode(*args)
    )
    for turns in (server._rest._status, server._rest._encoders):
        for _ in range(turns._free):
            turns.submit("127.0.0.1", release.wait, 20)
    body = b'{"instances": [[1]]}'
    post = (
        f"POST {COUNTER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )
    for data in (post, b"GET /v1/models/gone HTTP/1.1\r\nHost: x\r\n\r\n"):
        with socket.create_connection(("localhost", server.rest_port), timeout=10) as raw:
            raw.sendall(data)
            time.sleep(0.2)
    time.sleep(0.2)
    release.set()
    assert send(server, "/v1/models/counter")[0] == 200
    assert send(server, COUNTER, {"instances": [[1]]})[0] == 200
    wait_for(lambda: not server._predictor._in_flight)
    assert paths == ["/v1/models/counter", "encode"]


def test_status_and_metrics_are_answered_while_json_is_parsed(server):
    """A body of 8 MiB would keep Python's lock for a second."""
    body = b'{"instances":[' + (b"[" * 30 + b"]" * 30 + b",") * 130_000 + b"1]}"
    responses, done = [], threading.Event()

    def work():
        responses.append(send(server, COUNTER, body))
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    number = 0
    while not done.is_set():
        assert send(server, "/v1/models/counter")[0] == 200
        number += 1
    thread.join()
    assert responses == [(400, {"error": "JSON Value of input x has lists of different sizes"})]
    assert number >= 5
