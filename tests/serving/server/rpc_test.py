"""The gRPC server itself: calls that send nothing, connections that idle, and messages that are too large."""

import asyncio
import contextlib
import os
import socket
import threading
import time

import grpc
import hostile_http2
import pytest

from keras_ssl.serving.server import calls, memory, rpc
from keras_ssl.serving.server.errors import invalid_argument


@pytest.fixture
def echo():
    """`echo(**channel_arguments)`: starts a server of a method that echoes; returns it and its address."""
    started = []

    def start(**arguments):
        server = rpc.RpcServer({f"grpc.{key}": value for key, value in arguments.items()})
        server.methods["/test.Service/Echo"] = rpc.Method(lambda data, call: call.respond(data))
        server.methods["/test.Service/Never"] = rpc.Method(lambda data, call: None)
        server.methods["/test.Service/Fail"] = rpc.Method(fail)
        port = server.bind("127.0.0.1:0")
        server.start()
        started.append(server)
        return server, f"127.0.0.1:{port}"

    def fail(data, call):
        raise invalid_argument(data.decode())

    yield start
    for server in started:
        server.stop()


@contextlib.contextmanager
def connected(address):
    """Opens a connection and yields a function that calls a method with bytes."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(address, options) as channel:

        def call(data, method="Echo", **options):
            return channel.unary_unary(f"/test.Service/{method}")(
                data, **{"timeout": 10, **options}
            )

        yield call


def code(function, *args, **options):
    """Returns the status and the details with which a call fails."""
    with pytest.raises(grpc.RpcError) as error:
        function(*args, **options)
    return error.value.code(), error.value.details()


@contextlib.contextmanager
def raw(address, settings=b""):
    """Opens a socket, and finishes the handshake of HTTP/2."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(hostile_http2.handshake(settings))
        yield client


def received(client, what):
    """Reads from a socket until some bytes have come, and returns everything."""
    data = b""
    while what not in data:
        part = client.recv(2**16)
        assert part
        data += part
    return data


def test_calls_and_their_statuses(echo, wait_for):
    server, address = echo()
    with connected(address) as call:
        assert call(b"abc") == b"abc"
        assert code(call, b"why", "Fail") == (grpc.StatusCode.INVALID_ARGUMENT, "why")
        assert code(call, b"", "Missing")[0] == grpc.StatusCode.UNIMPLEMENTED
        assert code(call, b"", "Never", timeout=0.2)[0] == grpc.StatusCode.DEADLINE_EXCEEDED
        assert code(call, b"x" * 2**17)[0] == grpc.StatusCode.RESOURCE_EXHAUSTED  # of this method
    wait_for(lambda: not server._calls)


def test_details_are_small_whatever_the_client_sent(echo):
    """gRPC writes what is not ASCII in three bytes, and clients refuse more than 8 KiB."""
    with connected(echo()[1]) as call:
        status, details = code(call, ("ä" * 10_000).encode(), "Fail")
    assert status == grpc.StatusCode.INVALID_ARGUMENT
    assert details == "ä" * 512


def test_compressed_messages_are_refused(echo):
    _, address = echo()
    with connected(address) as call:
        for compression in grpc.Compression.Gzip, grpc.Compression.Deflate:
            assert code(call, bytes(2**15), compression=compression)[0] == (
                grpc.StatusCode.UNIMPLEMENTED
            )
        assert call(b"abc") == b"abc"


def test_the_limit_of_a_message_holds_after_decompression(echo):
    server, address = echo(
        max_receive_message_length=2**20, compression_enabled_algorithms_bitset=7
    )
    server.methods["/test.Service/Large"] = rpc.Method(
        lambda data, call: call.respond(b"ok"), 2**31
    )
    with connected(address) as call:
        for compression in grpc.Compression.Gzip, grpc.Compression.Deflate:
            assert call(bytes(2**19), "Large", compression=compression) == b"ok"
            status, _ = code(call, bytes(2**24), "Large", compression=compression)
            assert status == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_message_that_does_not_arrive_ends_its_call(echo, monkeypatch, wait_for):
    monkeypatch.setattr(calls, "MESSAGE_SECONDS", 0.5)
    server, address = echo()

    async def hold():
        async with hostile_http2.channel(address) as connection:
            return await connection.stream_unary("/test.Service/Echo")().code()

    assert asyncio.run(asyncio.wait_for(hold(), 10)) == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_for(lambda: not server._calls)


def test_a_call_that_ends_within_its_message_is_the_fault_of_the_client(echo):
    with raw(echo()[1]) as client:
        client.sendall(hostile_http2.opened(1, "/test.Service/Echo"))
        client.sendall(hostile_http2.frame(0, 1, 1, b"\0\0\0\0\x09half"))
        assert b"send exactly one message" in received(client, b"grpc-message")


def test_responses_that_are_not_read_end(echo, monkeypatch, wait_for):
    monkeypatch.setattr(calls, "READ_SECONDS", 2.0)
    monkeypatch.setattr(calls, "MAX_UNREAD", 2**20)
    server, address = echo()
    server.methods["/test.Service/Large"] = rpc.Method(
        lambda data, call: call.respond(bytes(2**19))
    )
    with raw(address, hostile_http2.NOTHING) as client:
        for i in range(5):
            client.sendall(hostile_http2.opened(2 * i + 1, "/test.Service/Large", b""))
        wait_for(lambda: len(server._calls) == 5)
        wait_for(lambda: len(server._calls) == 2)  # 1 MiB
        wait_for(lambda: not server._calls)


@pytest.fixture
def held(echo):
    """`held(other)`: opens 60 calls of one connection; `other` is called with the server and its address.

    Returns:
        the status codes of those that have ended.
    """

    def hold(other):
        server, address = echo()

        async def run():
            async with hostile_http2.channel(address) as connection:
                open_calls = [connection.stream_unary("/test.Service/Echo")() for _ in range(60)]
                while len(server._calls) < 60:
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(other, server, address)
                await asyncio.sleep(0.2)
                return [await call.code() for call in open_calls if call.done()]

        return asyncio.run(asyncio.wait_for(run(), 20))

    return hold


def test_the_connection_with_the_most_calls_loses_its_oldest(held, monkeypatch, wait_for):
    def slow(server, address):
        with raw(address) as client:
            message = hostile_http2.opened(1, "/test.Service/Echo", b"x")
            client.sendall(message[:-1])
            wait_for(lambda: len(server._calls) == 61)
            monkeypatch.setattr(calls, "MAX_CALLS", 61)
            with connected(address) as call:
                assert [call(b"") for _ in range(10)] == [b""] * 10
            client.sendall(message[-1:])
            assert b"x" in received(client, b"grpc-status")

    codes = held(slow)
    assert 0 < len(codes) <= 10
    assert set(codes) == {grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_messages_that_arrive_slowly_end_when_they_take_too_much_memory(
    held, monkeypatch, wait_for
):
    def short(server, address):
        time.sleep(1.3)
        assert len(server._calls) == 60
        monkeypatch.setattr(memory, "MAX_GROWTH", -(2**40))
        wait_for(lambda: not server._calls)

    assert held(short) == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 60


def test_a_connection_that_opens_calls_and_cancels_them_is_closed(echo):
    with raw(echo()[1]) as client, contextlib.suppress(ConnectionError):
        for i in range(10_000):
            client.sendall(
                hostile_http2.opened(2 * i + 1, "/test.Service/Echo")
                + hostile_http2.frame(3, 0, 2 * i + 1, b"\0\0\0\x08")
            )
        while client.recv(2**16):
            pass


def test_connections_without_a_message_make_room(echo, monkeypatch, wait_for):
    monkeypatch.setattr(rpc, "available_connections", lambda: len(os.listdir("/dev/fd")) + 40)
    server, address = echo()
    with contextlib.ExitStack() as stack, connected(address) as call:
        assert call(b"a") == b"a"
        late = stack.enter_context(connected(address))
        finished = []
        server.methods["/test.Service/Late"] = rpc.Method(lambda data, one: finished.append(one))
        for _ in range(80):
            client = stack.enter_context(raw(address))
            with contextlib.suppress(OSError):
                client.sendall(hostile_http2.opened(1, "/test.Service/Echo"))
        waits = threading.Thread(target=lambda: late(b"", "Late", timeout=10))
        time.sleep(1)
        waits.start()
        wait_for(lambda: finished)
        with connected(address) as new:
            assert new(b"b", wait_for_ready=True) == b"b"
        assert call(b"c") == b"c"
        finished[0].respond(b"")
        waits.join()


def test_stop_waits_for_calls_and_frees_the_port(echo, wait_for):
    server, address = echo()
    late = []
    server.methods["/test.Service/Late"] = rpc.Method(lambda data, call: late.append(call))
    with grpc.insecure_channel(address) as channel:
        finished = channel.unary_unary("/test.Service/Late").future(b"")
        cancelled = channel.unary_unary("/test.Service/Never").future(b"")
        wait_for(lambda: late and len(server._calls) == 2)
        late[0].respond(b"done")
        server.stop(0.2)
        assert finished.result(timeout=5) == b"done"
        assert cancelled.exception(timeout=5) is not None
    late[0].respond(b"again")  # does nothing
    with socket.create_server(("127.0.0.1", int(address.split(":")[1]))):
        pass
