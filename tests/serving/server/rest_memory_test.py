"""What REST keeps of a body after its request: nothing."""

import gc
import http.client
import socket
import weakref

from keras_ssl.serving.server import memory, rest

PATH = "/v1/models/{}:predict"


def send(server, body, model="counter"):
    """Sends a body and returns the status of the response."""
    connection = http.client.HTTPConnection("localhost", server.rest_port, timeout=10)
    connection.request("POST", PATH.format(model), body)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


class Body(bytearray):
    """A body of which a test can see whether it is alive."""

    alive = weakref.WeakSet()

    __hash__ = object.__hash__

    def __reduce_ex__(self, protocol):
        return bytes, (bytes(self),)  # for the process that parses


def test_no_body_stays_after_its_error(server, monkeypatch, wait_for):
    """Exceptions, tracebacks and frames refer to each other."""
    read_body, large = server._rest._http.read_body, b'"' + b"a" * rest.LARGE_BODY + b'"'

    async def read(request):
        body = Body(await read_body(request))
        Body.alive.add(body)
        return body

    monkeypatch.setattr(server._rest._http, "read_body", read)
    values = [b"[[1]]", b"[[-1]]", b"[[1], [1, 2]]", b'["a"]', large]
    bodies = [b"{", b'{"x": %s}' % large, *(b'{"inputs": %s}' % one for one in values)]
    gc.disable()
    try:
        for body in bodies:
            for model in ("counter", "rotation_digits", "nope"):
                assert send(server, body, model) in (200, 400, 404)
        wait_for(lambda: not Body.alive)
    finally:
        gc.enable()


def test_memory_is_trimmed_after_large_bodies(server, monkeypatch, wait_for):
    trims = []
    monkeypatch.setattr(memory, "trim", lambda: trims.append(server._predictor._in_flight))
    for size in (2**21, 2**22):
        assert send(server, b'{"x": "%s"}' % (b"a" * size)) == 400
        wait_for(lambda: not server._predictor._in_flight)
    wait_for(lambda: trims == [0])


def test_no_part_of_a_body_stays_when_the_client_leaves(server, wait_for):
    def is_kept():
        # Not by Python's own access: a list that another thread is about to fill crashes the process.
        members = gc.get_referents(*(one for one in gc.get_objects() if type(one) is list))
        return any(type(x) is bytes and b"a-part" in x for x in members)

    gc.disable()
    try:
        with socket.create_connection(("localhost", server.rest_port), timeout=10) as raw:
            head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\na-part"
            raw.sendall(head.encode())
            wait_for(is_kept)
        wait_for(lambda: not is_kept())
    finally:
        gc.enable()
