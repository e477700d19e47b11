"""The deadline of a request over REST while its run lasts, or while its response waits to be encoded."""

import gc
import http.client
import json
import logging
import threading

import pytest

from keras_ssl.serving.server import json_outputs
from keras_ssl.serving.server.servable import Servable

TOO_LATE = (504, {"error": "the request has waited for too long"})
SECONDS = 1.5  # of a deadline that passes; the machine may be busy
OK = (200, {"predictions": [[4.0]]})


@pytest.fixture(autouse=True)
def loaded(server):
    assert send(server, 1) == OK  # the first run takes longer


@pytest.fixture
def go_on():
    go_on = threading.Event()
    yield go_on
    go_on.set()


def send(server, value):
    """Returns (status, parsed JSON) of a request to the counter; its client waits for ten seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=10)
    connection.request("POST", "/v1/models/counter:predict", json.dumps({"instances": [[value]]}))
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, json.loads(content)


@pytest.mark.parametrize("value", [1, -1])  # the run succeeds; it fails
def test_a_run_keeps_its_place_after_the_deadline_of_its_request(
    server, monkeypatch, go_on, value, wait_for, caplog
):
    running, run = [], Servable.run

    def wait(*args):
        running.append(args)
        assert go_on.wait(20)
        return run(*args)

    monkeypatch.setattr(Servable, "run", wait)
    monkeypatch.setattr(server._rest, "_seconds", SECONDS)
    wait_for(lambda: not server._predictor._in_flight)
    assert send(server, value) == TOO_LATE
    assert len(running) == 1
    assert server._predictor._in_flight == 1
    assert server._predictor._by_client == {"127.0.0.1": 1}
    go_on.set()
    wait_for(lambda: not server._predictor._in_flight)
    monkeypatch.undo()
    assert send(server, 1) == OK
    gc.collect()  # asyncio logs errors that nobody has retrieved
    assert [one for one in caplog.records if one.levelno >= logging.ERROR] == []


def test_nothing_is_encoded_after_the_deadline(server, monkeypatch, go_on):
    encoded, encode = [], json_outputs.encode
    monkeypatch.setattr(json_outputs, "encode", lambda *args: encoded.append(1) or encode(*args))
    for _ in range(server._rest._encoders._free):
        server._rest._encoders.submit("127.0.0.1", go_on.wait, 20)
    with monkeypatch.context() as patch:
        patch.setattr(server._rest, "_seconds", SECONDS)
        timer = threading.Timer(SECONDS + 1, go_on.set)
        timer.start()
        assert send(server, 1) == TOO_LATE
        timer.join()
    assert not encoded
    assert send(server, 1) == OK
    assert encoded == [1]
