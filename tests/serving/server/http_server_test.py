"""HTTP from clients that are slow, rude, or leave."""

import asyncio
import contextlib
import errno
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import server_process

from keras_ssl.serving.server import connections, http_server
from keras_ssl.serving.server.connections import Phase
from keras_ssl.serving.server.errors import StatusError

MAX_BODY, READ = 2**20, 2**18  # bytes; asyncio reads up to READ at a time


@contextlib.contextmanager
def serving(respond, per_client=0, max_body=MAX_BODY):
    server = http_server.HttpServer(respond, "127.0.0.1", 0, max_body, per_client)
    server.start()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def echo():
    """A server that responds with the path and the size of the body."""

    async def respond(request):
        size = 0
        try:
            if request.method == "POST":
                size = len(await server.read_body(request))
        except StatusError as error:
            return http_server.error_response(400, error.message)
        return http_server.response(200, f"{request.raw_path} {size}".encode())

    with serving(respond) as server:
        yield server


def connect(server, data=b"", source="127.0.0.1"):
    connection = socket.create_connection(
        ("127.0.0.1", server.port), timeout=10, source_address=(source, 0)
    )
    connection.sendall(data)
    return connection


def read(connection):
    """Returns what arrives until the server closes the connection."""
    with connection, contextlib.suppress(ConnectionResetError):
        return connection.makefile("rb").read()


def fetch(server, method="GET", body=None, source="127.0.0.1"):
    connection = http.client.HTTPConnection(
        "127.0.0.1", server.port, timeout=10, source_address=(source, 0)
    )
    with contextlib.closing(connection):
        connection.request(method, "/x", body)
        response = connection.getresponse()
        return response.status, response.read().decode()


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


def test_a_connection_serves_many_requests(echo):
    connection = http.client.HTTPConnection("127.0.0.1", echo.port, timeout=10)
    with contextlib.closing(connection):
        for body in (None, b"12", None, b"x" * MAX_BODY):
            connection.request("POST" if body else "GET", "/x", body)
            response = connection.getresponse()
            assert response.headers["Server"] == "keras-ssl"
            assert response.read().decode() == f"/x {len(body or '')}"


def test_expect_is_answered(echo):
    head = POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
    with connect(echo, head % 3) as connection:
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abc")
        assert read(connection).endswith(b"/x 3")
    assert b"at most" in read(connect(echo, head % (MAX_BODY + 1)))


@pytest.mark.parametrize("size", [MAX_BODY + 1, 40 * MAX_BODY])
def test_a_client_gets_the_rejection_of_a_body_that_is_too_large(echo, size):
    for _ in range(3):
        assert fetch(echo, "POST", b"x" * size)[0] == 400


def test_heads_that_are_too_large(echo):
    for head in (
        b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 9000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: x\r\n" * 65 + b"\r\n",
    ):
        assert read(connect(echo, head)).startswith(b"HTTP/1.0 400 ")
    assert b"Missing 'Host' header" in read(connect(echo, GET.replace(b"Host", b"X")))
    large = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(
        b"X%d: %s\r\n" % (i, b"x" * 4000) for i in range(9)
    )
    assert b" 431 " in read(connect(echo, large))


def test_slow_heads_and_bodies_are_closed_in_time(echo, monkeypatch):
    monkeypatch.setitem(connections.SECONDS, Phase.HEAD, 1.0)
    monkeypatch.setitem(connections.SECONDS, Phase.BODY, 2.0)
    for data, seconds in ((b"GET / HTTP/1.1\r\nX: ", 1.0), (POST % 100, 2.0)):
        start = time.monotonic()
        with connect(echo, data) as connection, contextlib.suppress(ConnectionError):
            while time.monotonic() < start + 9:
                connection.sendall(b"x")  # does not prolong it
                time.sleep(0.1)
        assert seconds < time.monotonic() - start < seconds + 4
    assert b"408 Request Timeout" in read(connect(echo, POST % 100 + b"x"))


def test_idle_connections_are_closed_without_a_response(echo, monkeypatch):
    monkeypatch.setitem(connections.SECONDS, Phase.IDLE, 1.0)
    assert read(connect(echo)) == b""
    assert read(connect(echo, GET)).count(b"HTTP/1.1") == 1


def test_a_client_that_does_not_read_is_closed_in_time(monkeypatch, wait_for):
    async def respond(request):
        return http_server.response(200, bytes(2**26))

    monkeypatch.setitem(connections.SECONDS, Phase.SENDING, 1.0)
    with serving(respond) as server, connect(server, GET * 3):
        wait_for(lambda: [one.phase for one in server.connections] == [Phase.SENDING])
        wait_for(lambda: list(server.connections) == [])


def test_responses_that_are_not_read_take_a_bounded_amount_of_memory(monkeypatch, wait_for):
    requests = []

    async def respond(request):
        requests.append(request)
        return http_server.response(200, bytes(2**26))

    monkeypatch.setattr(connections, "MAX_UNREAD", 2**27)
    with serving(respond) as server, contextlib.ExitStack() as stack:
        for source in ("127.0.0.2", *["127.0.0.1"] * 4):
            stack.enter_context(connect(server, GET, source))
        wait_for(lambda: len(requests) == 5)
        wait_for(lambda: len(list(server.connections)) == 2)
        assert {one.address for one in server.connections} == {"127.0.0.1", "127.0.0.2"}


def test_the_server_knows_that_a_client_has_left():
    seen, left = [], threading.Event()

    async def respond(request):
        seen.append(request.protocol.is_open)
        while request.protocol.is_open:
            await asyncio.sleep(0.01)
        left.set()
        return http_server.response(200, b"")

    with serving(respond) as server:
        connect(server, GET).close()
        assert left.wait(10)
        assert seen == [True]


def test_a_body_counts_until_its_request_ends_though_its_client_has_left(wait_for):
    waiting, go_on = [], threading.Event()

    async def respond(request):
        waiting.append(await server.read_body(request))
        while not go_on.is_set():
            await asyncio.sleep(0.01)
        return http_server.response(200, b"")

    with serving(respond) as server:
        connect(server, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc").close()
        wait_for(lambda: waiting and not list(server.connections))
        assert server.connections._held == 3
        go_on.set()
        wait_for(lambda: not server.connections._held)
        assert not server.connections._bytes


def test_hundreds_of_slow_clients_do_not_keep_others_out(echo):
    """Heads, bodies and silence from one address; then a client of it, and one of another address."""
    number = echo.connections._number
    starts = (b"", b"GET / HTTP/1.1\r\nX: ", POST % MAX_BODY + b"x")
    slow = [connect(echo, starts[i % 3]) for i in range(min(number, 400))]
    for source in ("127.0.0.1", "127.0.0.2"):
        assert fetch(echo, source=source) == (200, "/x 0")
        assert fetch(echo, "POST", b"x" * MAX_BODY, source) == (200, f"/x {MAX_BODY}")
    for one in slow:
        one.close()


def test_an_address_has_a_maximum_number_of_connections(wait_for):
    async def respond(request):
        return http_server.response(200, b"")

    with serving(respond, per_client=3) as server:
        mine = [connect(server) for _ in range(5)]
        other = connect(server, source="127.0.0.2")
        wait_for(lambda: len(list(server.connections)) == 4)
        for one in mine[:2]:
            assert b" 503 " in read(one)
        for one in (*mine[2:], other):
            one.sendall(GET.replace(b"x\r", b"x\r\nConnection: close\r"))
            assert read(one).startswith(b"HTTP/1.1 200 ")


def test_connections_are_closed_when_no_descriptors_are_left(echo, wait_for):
    """Other parts of the process may have taken them. asyncio reports what `accept` raises."""
    idle = [connect(echo) for _ in range(3)]
    wait_for(lambda: len(list(echo.connections)) == 3)
    context = {"message": "out of system resource", "exception": OSError(errno.EMFILE, "")}
    echo._loop.call_soon_threadsafe(echo._loop.call_exception_handler, context)
    wait_for(lambda: not list(echo.connections))
    for one in idle:
        assert b" 503 " in read(one)
    assert fetch(echo) == (200, "/x 0")


def test_bodies_that_are_not_completed_do_not_take_all_memory(echo, wait_for):
    """Eight bodies are the maximum, four for an address; the oldest incomplete ones give way."""
    data = POST % MAX_BODY + b"x" * (MAX_BODY - 1)
    slow = [connect(echo, data, f"127.0.0.{2 + i % 3}") for i in range(12)]
    wait_for(lambda: sum(one.held for one in echo.connections) > 6 * MAX_BODY)
    # What has just been read is counted before an older body gives way, and another thread may see that.
    assert sum(one.held for one in echo.connections) <= 8 * MAX_BODY + READ
    for source in ("127.0.0.1", "127.0.0.2"):
        assert fetch(echo, "POST", b"x" * MAX_BODY, source) == (200, f"/x {MAX_BODY}")
    for one in slow:
        one.close()
    wait_for(lambda: not list(echo.connections))
    wait_for(lambda: not echo.connections._held)


def test_closing_waits_for_responses(wait_for):
    async def respond(request):
        await asyncio.sleep(0.3)
        return http_server.response(200, b"done")

    with serving(respond) as server:
        busy, idle = connect(server, GET), connect(server)
        wait_for(lambda: Phase.WORKING in [one.phase for one in server.connections])
    assert read(busy).endswith(b"done")
    assert b" 503 " in read(idle)
    with pytest.raises(ConnectionRefusedError):
        connect(server)


def test_a_process_with_few_descriptors_serves_new_clients(counter, program):
    """600 idle connections with `ulimit -n 400`."""
    rest_port = server_process.free_port()
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400));"
    flags = ["serve", counter, "--port=0", f"--rest_api_port={rest_port}"]
    with subprocess.Popen(
        [sys.executable, "-c", limit + program, *flags],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, "PATH": ""},
    ) as process, contextlib.ExitStack() as idle:  # fmt: skip
        idle.callback(process.kill)
        while b"listens on" not in process.stdout.readline():
            assert process.poll() is None
        server = types.SimpleNamespace(port=rest_port)
        for _ in range(600):
            idle.enter_context(connect(server))
        check_new_clients(process, server)


def check_new_clients(process, server):
    """Checks that they get responses, and that the server does not spin."""
    for _ in range(3):
        assert fetch(server)[0] == 400  # Malformed request
    start, seconds = time.monotonic(), cpu_seconds(process.pid)
    time.sleep(2)
    assert cpu_seconds(process.pid) - seconds < 0.4 * (time.monotonic() - start)


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
