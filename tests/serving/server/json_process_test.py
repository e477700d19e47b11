"""The process that parses large bodies: results, errors, its memory, its end."""

import gc
import json
import os
import resource
import signal
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from keras_ssl.serving.server import json_tensors
from keras_ssl.serving.server.errors import StatusError
from keras_ssl.serving.server.json_process import JsonProcess
from keras_ssl.serving.server.json_tensors import JsonError

BODY = 2**23  # bytes


@pytest.fixture
def process():
    process = JsonProcess()
    yield process
    process.close()


def parse(process, data, seconds=60.0, **declared):
    with process.parse(data, time.monotonic() + seconds) as body:
        return body.arrays(declared)


def filled(unit, size=BODY):
    """Repeats a value to a body of about `size` bytes."""
    return b'{"instances":[' + (unit * (size // len(unit)))[:-1] + b"]}"


def test_the_result_is_that_of_this_process(process):
    values = {"x": [[1, 2], [3, 4]], "s": ["a", {"b64": "AAE="}], "e": []}
    data = json.dumps({"inputs": values, "signature_name": "f"}).encode()
    declared = {"x": "float32", "s": "string", "e": "int32"}
    with process.parse(data, time.monotonic() + 60) as body:
        assert (body.signature_name, body.by_row) == ("f", False)
        arrays = body.arrays(declared)
    for name, array in json_tensors.Body(data).arrays(declared).items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_errors_and_bodies_that_are_not_converted(process):
    for _ in range(2):
        with pytest.raises(JsonError, match="JSON Parse error"):
            parse(process, b"{")
        with pytest.raises(JsonError, match="Missing named input: y"):
            parse(process, b'{"inputs": {"x": 1}}', y="int32")
        with pytest.raises(KeyError), process.parse(b'{"inputs": 1}', time.monotonic() + 60):
            raise KeyError  # the model is not known, for example
        assert parse(process, b'{"inputs": [5]}', y="int32")["y"].tolist() == [5]


def test_the_memory_of_a_small_body_does_not_bound_the_next_one(process):
    parse(process, b'{"inputs": [5]}', y="int32")
    running = process._process
    size = json_tensors.PARSING_BYTES // 2  # which is copied when it is received
    assert parse(process, b'{"inputs": "%s"}' % bytes(size).replace(b"\0", b"a"), y="string")
    assert process._process is running


def test_a_process_that_was_killed_is_replaced(process):
    parse(process, b'{"inputs": [5]}', y="int32")
    process._process.kill()
    with pytest.raises(StatusError, match="retry later") as error:
        parse(process, b'{"inputs": [5]}', y="int32")
    assert error.value.code == grpc.StatusCode.UNAVAILABLE
    assert parse(process, b'{"inputs": [5]}', y="int32")["y"].tolist() == [5]


def test_a_process_that_dies_while_no_arrays_are_needed_is_replaced(process):
    """A broken pipe is a ConnectionError, which REST takes for a client that has left."""
    with process.parse(b'{"inputs": 1}', time.monotonic() + 60):
        process._process.kill()
        process._process.wait()
    assert parse(process, b'{"inputs": [5]}', y="int32")["y"].tolist() == [5]


def test_closing_does_not_wait_for_a_body(process, wait_for):
    parse(process, b'{"inputs": [5]}', y="int32")
    pid, errors = process._process.pid, []
    os.kill(pid, signal.SIGSTOP)  # so that it takes forever

    def work():
        with pytest.raises(StatusError) as error:
            parse(process, b'{"inputs": [5]}', seconds=10, y="int32")
        errors.append(error.value.code)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for(process._turn.locked)
    process.close()
    for thread in threads:
        thread.join(20)
    assert errors == [grpc.StatusCode.UNAVAILABLE] * 3
    assert not Path(f"/proc/{pid}").exists()
    assert process._process is None


def test_a_body_that_takes_too_long_is_given_up(process):
    with pytest.raises(StatusError, match="before its time was over"):
        parse(process, filled(b"[],"), seconds=0.05, x="float32")
    assert process._process is None  # nobody waits for its result
    with process.parse(b'{"inputs": [5]}', time.monotonic() + 60):
        late = []
        thread = threading.Thread(target=lambda: late.append(_code(process)))
        thread.start()
        thread.join(10)
    assert late == [grpc.StatusCode.DEADLINE_EXCEEDED]


def _code(process):
    with pytest.raises(StatusError) as error:
        parse(process, b'{"inputs": [5]}', seconds=0.1)
    return error.value.code


BOMBS = {
    "empty lists": (b"[],", ""),
    "empty objects": (b"{},", "keys must be equal"),
    "objects": (b'{"":{"":{"":{"":0}}}},', "keys must be equal"),
    "nested lists": (b"[" * 500 + b"]" * 500 + b",", "levels of nested lists"),
    "lists of one": (b"[1],", ""),
    "ragged": (b"[1],[1,2],", "different sizes"),
    "numbers": (b"1,", ""),
    "infinities": (b"1e999,", ""),
    "NaN": (b"NaN,", ""),
    "long integers": (b"1" * 4000 + b",", "not of expected type"),
    "strings": (b'"ab",', "not of expected type"),
    "keys": (b'{"a":1,"b":2},', "keys must be equal"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_json_takes_no_more_memory_than_its_size_is_worth(process, bomb):
    """256 MiB, and 20 bytes for each byte."""
    unit, message = BOMBS[bomb]
    parse(process, b'{"inputs": [5]}', x="int32")
    before = _peak(process)
    data = filled(unit)
    if message:
        with pytest.raises(JsonError, match=message):
            parse(process, data, x="float32")
    else:
        parse(process, data, x="float32")
    assert _peak(process) - before < 2**28 + 20 * len(data)


def test_memory_is_limited(process):
    """A list in a list takes 44 bytes for each byte, more than its share."""
    with pytest.raises(JsonError, match="takes too much memory"):
        parse(process, filled(b"[" * 500 + b"]" * 500 + b",", 3 * BODY), x="float32")
    assert parse(process, b'{"inputs": [5]}', y="int32")["y"].tolist() == [5]


def _peak(process):
    status = Path(f"/proc/{process._process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def test_rejected_bodies_leave_no_memory(process):
    """Errors have cycles, and the process has no garbage collector."""
    for unit in (b'"ab",', b"[1],[1,2],", b"1" * 4000 + b",", b"[" * 500 + b"]" * 500 + b","):
        for _ in range(3):
            with pytest.raises(JsonError, match="expected type|different sizes|levels"):
                parse(process, filled(unit), x="float32")
    for _ in range(3):
        assert len(parse(process, filled(b"[],"), x="float32")["x"]) > 2**21


def test_it_ends_with_its_server(process):
    parse(process, b'{"inputs": [5]}', x="int32")
    pid = process._process.pid
    process._pipe.close()  # as if this process had died
    assert os.waitpid(pid, 0) == (pid, 0)


@pytest.mark.parametrize("hard", [resource.RLIM_INFINITY, 2**50, 2**20])
def test_the_hard_limit_of_a_container_is_kept(monkeypatch, hard):
    limits, sent = [], []

    class Pipe:
        bodies = [b"{"]
        send = staticmethod(sent.append)

        def recv(self):
            if not self.bodies:
                raise EOFError
            return self.bodies.pop()

    monkeypatch.setattr(resource, "getrlimit", lambda _: (hard, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    try:
        json_tensors.main(Pipe())
    finally:
        gc.enable()
    lifted, (soft, kept), again = limits
    assert lifted == again == (hard, hard)
    assert kept == hard
    assert soft == 2**20 if hard == 2**20 else 2**28 < soft < 2**50
    assert "JSON Parse error" in sent[1]
