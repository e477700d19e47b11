"""What waits to be parsed: admission comes first, and clients take turns."""

import collections
import contextlib
import socket
import threading
import types

import grpc
import hostile_bodies
import hostile_calls
import hostile_http2
import numpy as np
import pytest
import server_process

from keras_ssl.serving.server import json_tensors, rest, services, wire
from keras_ssl.serving.server.errors import invalid_argument

POST = b"POST /v1/models/counter:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
GET = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
METRICS = b"/monitoring/prometheus/metrics"


@pytest.fixture
def parsing(monkeypatch):
    """`sizes`: those of what is parsed, or was; it goes on after `go_on`."""
    parsing = types.SimpleNamespace(sizes=[], go_on=threading.Event())
    body = json_tensors.Body

    def wait(data):
        parsing.sizes.append(len(data))
        assert parsing.go_on.wait(20)

    def parse(data):
        wait(data)
        return body(data)

    monkeypatch.setattr(wire, "check", wait)
    monkeypatch.setattr(json_tensors, "Body", parse)
    yield parsing
    parsing.go_on.set()


def calls(server, stack, number, message):
    """Sends a message in several calls of a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{server.port}", options))
    predict = channel.unary_unary(hostile_http2.PREDICT)
    return [predict.future(message, timeout=30) for _ in range(number)]


def connections(server, stack, data, number, source):
    """Opens connections to REST that send a request each."""
    made = []
    for _ in range(number):
        made.append(socket.create_connection(
            ("127.0.0.1", server.rest_port), timeout=20, source_address=(source, 0)
        ))  # fmt: skip
        stack.enter_context(made[-1])
        made[-1].sendall(data)
    return made


@pytest.fixture
def flood(server, parsing):
    """Calls of one connection, more than half of the places, whose messages wait; and an ExitStack."""
    with contextlib.ExitStack() as stack:
        yield calls(server, stack, 100, hostile_calls.padded(b"\x22" + bytes(2**17))), stack


def test_a_large_message_does_not_wait_for_those_of_another_connection(
    server, flood, parsing, wait_for
):
    many, stack = flood
    wait_for(lambda: sum(one.done() for one in many) == 35)  # before the others are parsed
    for one in many:
        if one.done():
            assert one.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "65 requests of this client are in flight already" in one.details()
    assert len(parsing.sizes) == 1
    message = hostile_calls.request("serving_default", (64, 32, 32, 3), model="rotation_digits")
    (other,) = calls(server, stack, 1, message)
    wait_for(lambda: parsing.sizes[1:] == [len(message)])
    parsing.go_on.set()
    assert other.result(timeout=20)
    assert {one.code() for one in many if one.code() != grpc.StatusCode.RESOURCE_EXHAUSTED} == {
        grpc.StatusCode.INVALID_ARGUMENT
    }
    assert len(parsing.sizes) == 66


def test_messages_of_a_client_that_has_left_are_not_parsed(server, flood, parsing, wait_for):
    many, _ = flood
    wait_for(lambda: parsing.sizes and sum(one.done() for one in many) == 35)
    for one in many:
        one.cancel()
    wait_for(lambda: not server._server._calls)
    parsing.go_on.set()
    wait_for(lambda: not server._predictor._in_flight)
    assert len(parsing.sizes) == 1


def test_messages_that_wait_when_the_server_stops_are_unavailable(
    server, flood, parsing, wait_for, monkeypatch
):
    many, _ = flood
    wait_for(lambda: parsing.sizes and sum(one.done() for one in many) == 35)
    monkeypatch.setattr(server._predictor, "_draining", True)
    parsing.go_on.set()
    codes = collections.Counter(one.code() for one in many)
    assert codes[grpc.StatusCode.UNAVAILABLE] == 64
    assert len(parsing.sizes) == 1


def test_small_messages_that_fill_much_are_converted_in_other_threads(server, stub, monkeypatch):
    threads, inputs_of = [], services.inputs_of
    monkeypatch.setattr(
        services,
        "inputs_of",
        lambda *args: threads.append(threading.current_thread().name) or inputs_of(*args),
    )
    for rows in (1, 2**16 + 1):
        message = server_process.request("counter", x=np.ones((1, 1), np.float32))
        message.inputs["x"].tensor_shape.dim[0].size = rows
        with contextlib.suppress(grpc.RpcError):  # too many rows
            stub.Predict(message, timeout=20)
    assert threads[0] == "grpc"
    assert threads[1].startswith("grpc_parse")


def test_bodies_of_an_address_do_not_wait_for_those_of_another(server, parsing, wait_for):
    with contextlib.ExitStack() as stack:
        many = connections(server, stack, post(1000), 70, "127.0.0.1")
        wait_for(lambda: sum(map(_has_data, many)) == 5)  # at once
        assert all(one.recv(100).startswith(b"HTTP/1.1 429 ") for one in many if _has_data(one))
        assert len(parsing.sizes) == 1
        (other,) = connections(server, stack, post(2000), 1, "127.0.0.2")
        wait_for(lambda: parsing.sizes[1:] == [2000])
        parsing.go_on.set()
        assert other.recv(100).startswith(b"HTTP/1.1 200 OK")
    wait_for(lambda: not server._predictor._in_flight)


def test_bodies_of_many_lists_do_not_delay_others(server):
    """The short form of `tools/hostile_bodies.py`. Its clients share Python's lock with this server."""
    times = hostile_bodies.flood(server.rest_port, number=20, seconds=1.0)
    assert max(times["GET"] + times["POST"]) < 3


def test_large_bodies_do_not_wait_while_models_run(server, monkeypatch, wait_for):
    running = []
    monkeypatch.setattr(rest, "LARGE_BODY", 100)
    monkeypatch.setattr(server._predictor, "submit", lambda *args: running.append(args[-1]))
    with contextlib.ExitStack() as stack:
        made = connections(server, stack, post(1000), 20, "127.0.0.1")
        made += connections(server, stack, post(1000), 1, "127.0.0.2")
        wait_for(lambda: len(running) == 21)
        for done in running:
            done(None, invalid_argument("ran"))
        assert all(one.recv(100).startswith(b"HTTP/1.1 400 ") for one in made)


def test_metrics_are_formatted_once_a_second_and_addresses_take_turns(
    server, monkeypatch, wait_for
):
    go_on, pages, page = threading.Event(), [], server._predictor.metrics.page
    monkeypatch.setattr(
        server._predictor.metrics, "page", lambda: pages.append(1) or (go_on.wait(20) and page())
    )
    monkeypatch.setattr(server._rest, "_page_end", 0.0)
    with contextlib.ExitStack() as stack:
        many = connections(server, stack, GET % METRICS, 50, "127.0.0.1")
        wait_for(lambda: pages)
        (other,) = connections(server, stack, GET % b"/v1/models/counter", 1, "127.0.0.2")
        assert other.recv(100).startswith(b"HTTP/1.1 200 OK")
        go_on.set()
        assert all(one.recv(100).startswith(b"HTTP/1.1 200 OK") for one in many)
    assert len(pages) == 1


def post(size):
    body = b'{"instances": [[1]]}'
    return POST % (size, body + b" " * (size - len(body)))


def _has_data(connection):
    connection.setblocking(False)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        connection.settimeout(20)
