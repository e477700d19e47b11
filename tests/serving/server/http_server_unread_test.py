"""HTTP clients that do not read, and whose connection is closing or goes on to another request."""

import asyncio
import contextlib
import socket
import threading

import pytest

from keras_ssl.serving.server import connections, http_server
from keras_ssl.serving.server.connections import Phase

# Bytes of a response: more than the sockets hold, less than asyncio does before it pauses.
SIZE = 2**15
GET = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
EXPECT = b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"


@pytest.fixture
def server():
    """A server with small socket buffers; it responds to /wait after `go_on`, until the client has left."""

    async def respond(request):
        if request.method == "POST":
            transport = request.transport  # pauses when `100 Continue` is written
            transport.set_write_buffer_limits(transport.get_write_buffer_size())
            await server.read_body(request)
        while request.raw_path == "/wait" and not server.go_on.is_set():
            await asyncio.sleep(0.01)
        return http_server.response(200, bytes(SIZE))

    server = http_server.HttpServer(respond, "127.0.0.1", 0, 2**20, 0)
    server.go_on = threading.Event()
    server._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**12)
    with contextlib.closing(server), contextlib.ExitStack() as server.clients:
        yield server
        server.go_on.set()


def connect(server, wait_for, source="127.0.0.1"):
    """Returns a client that has not read its first response, and the server's connection."""
    client = server.clients.enter_context(socket.socket())
    client.settimeout(20)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**11)
    client.bind((source, 0))
    client.connect(("127.0.0.1", server.port))
    client.sendall(GET % b"/")
    wait_for(lambda: any(_is_unread(one, source) for one in server.connections))
    return client, next(one for one in server.connections if _is_unread(one, source))


def _is_unread(connection, source):
    return connection.address == source and connection.unread() and connection._waiter


def test_what_is_not_http_after_a_response_that_is_not_read_keeps_no_place(
    server, monkeypatch, wait_for
):
    monkeypatch.setattr(http_server, "available_connections", lambda: 2)
    server.start()
    for source in ("127.0.0.1", "127.0.0.2"):
        client, connection = connect(server, wait_for, source)
        client.sendall(b"BAD\r\n\r\n")
        wait_for(connection.is_closing)
        assert 0 < connection.unread() < 2**16
    wait_for(lambda: [one.phase for one in server.connections] == [Phase.IDLE] * 2)
    connect(server, wait_for, "127.0.0.3")
    assert len(list(server.connections)) == 2
    monkeypatch.setitem(connections.SECONDS, Phase.IDLE, 0.5)
    wait_for(lambda: not list(server.connections))


def test_a_closing_connection_is_closed_in_time_while_its_request_is_processed(
    server, monkeypatch, wait_for
):
    monkeypatch.setattr(connections, "CLOSING_SECONDS", 0.5)
    server.start()
    for is_closing in (False, True):
        client, connection = connect(server, wait_for, f"127.0.0.{2 + is_closing}")
        client.sendall(GET % b"/wait")
        wait_for(lambda connection=connection: connection.phase == Phase.WORKING)
    client.shutdown(socket.SHUT_WR)
    wait_for(connection.is_closing)
    assert connection.is_open
    wait_for(lambda: [one.address for one in server.connections] == ["127.0.0.2"])
    assert not connection.is_open


def test_a_body_has_its_phase_though_an_earlier_response_is_not_read(server, wait_for):
    server.start()
    for reads in (True, False):
        client, connection = connect(server, wait_for, f"127.0.0.{2 + reads}")
        client.sendall(EXPECT)
        wait_for(lambda connection=connection: connection.writing_paused)
        wait_for(lambda connection=connection: connection.phase == Phase.BODY)
        if reads:
            data = b""
            while not data.endswith(b"100 Continue\r\n\r\n"):
                data += client.recv(2**16)
            assert not connection.writing_paused
            assert connection.phase == Phase.BODY
        client.sendall(b"abc")
        if reads:
            assert client.recv(2**16).startswith(b"HTTP/1.1 200 OK")
        else:
            wait_for(lambda connection=connection: connection.unread() > SIZE)
            assert connection.phase == Phase.SENDING  # it counts for MAX_UNREAD
