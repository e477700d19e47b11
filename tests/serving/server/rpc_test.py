"""The gRPC server itself: calls that send nothing, connections that idle, and messages that are too large."""

import asyncio
import contextlib
import resource
import socket
import statistics
import time

import grpc
import hostile_grpc
import pytest
import soak_serving
from grpc_health.v1 import health_pb2

from keras_ssl.serving.server import rpc
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


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_calls_and_their_statuses(echo):
    server, address = echo()
    with connected(address) as call:
        assert call(b"abc") == b"abc"
        assert code(call, b"why", "Fail") == (grpc.StatusCode.INVALID_ARGUMENT, "why")
        assert code(call, b"", "Missing")[0] == grpc.StatusCode.UNIMPLEMENTED
        assert code(call, b"", "Never", timeout=0.2)[0] == grpc.StatusCode.DEADLINE_EXCEEDED
        assert code(call, b"x" * 2**17)[0] == grpc.StatusCode.RESOURCE_EXHAUSTED  # of this method
    wait_until(lambda: not server._calls)
    assert not server._waiting


def test_details_are_small_whatever_the_client_sent(echo):
    """gRPC writes what is not ASCII in three bytes, and clients refuse more than 8 KiB."""
    with connected(echo()[1]) as call:
        status, details = code(call, ("ä" * 10_000).encode(), "Fail")
    assert status == grpc.StatusCode.INVALID_ARGUMENT
    assert details == "ä" * 512


def test_compressed_messages_are_refused(echo):
    server, address = echo()
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


def test_a_message_that_does_not_arrive_ends_its_call(echo, monkeypatch):
    monkeypatch.setattr(rpc, "MESSAGE_SECONDS", 0.5)
    server, address = echo()

    async def hold():
        async with hostile_grpc.channel(address) as connection:
            return await connection.stream_unary("/test.Service/Echo")().code()

    assert asyncio.run(asyncio.wait_for(hold(), 10)) == grpc.StatusCode.DEADLINE_EXCEEDED
    assert not server._waiting


def test_only_the_newest_calls_without_a_message_are_kept(echo, monkeypatch):
    monkeypatch.setattr(rpc, "MAX_WAITING", 50)
    server, address = echo()

    async def hold():
        async with hostile_grpc.channel(address) as connection:
            calls = [connection.stream_unary("/test.Service/Echo")() for _ in range(80)]
            while sum(call.done() for call in calls) < 30:
                await asyncio.sleep(0.01)
            assert await connection.unary_unary("/test.Service/Echo")(b"x", timeout=5) == b"x"
            codes = [await call.code() for call in calls if call.done()]
            assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * len(codes)
            assert len(server._waiting) <= 50

    asyncio.run(asyncio.wait_for(hold(), 20))


def test_stop_waits_for_calls_and_frees_the_port(echo):
    server, address = echo()
    late = []
    server.methods["/test.Service/Late"] = rpc.Method(lambda data, call: late.append(call))
    with grpc.insecure_channel(address) as channel:
        finished = channel.unary_unary("/test.Service/Late").future(b"")
        cancelled = channel.unary_unary("/test.Service/Never").future(b"")
        wait_until(lambda: late and len(server._calls) == 2)
        late[0].respond(b"done")
        server.stop(0.2)
        assert finished.result(timeout=5) == b"done"
        assert cancelled.exception(timeout=5) is not None
    late[0].respond(b"again")  # does nothing
    with socket.create_server(("127.0.0.1", int(address.split(":")[1]))):
        pass


@pytest.mark.parametrize("path", [hostile_grpc.PREDICT, hostile_grpc.REFLECTION])
def test_calls_that_send_nothing_hold_no_place(server, predict_request, path):
    """The short form of `tools/hostile_grpc.py`."""
    address = f"127.0.0.1:{server.port}"
    message = predict_request("counter", x=[[1.0]]).SerializeToString()

    async def hold():
        seconds = []
        async with contextlib.AsyncExitStack() as stack:
            for i in range(200):
                if i % 50 == 0:
                    connection = await stack.enter_async_context(hostile_grpc.channel(address))
                connection.stream_unary(path)()
            other = await stack.enter_async_context(hostile_grpc.channel(address))
            for _ in range(20):
                start = time.monotonic()
                await other.unary_unary(hostile_grpc.CHECK)(b"", timeout=5)
                seconds.append(time.monotonic() - start)
                await other.unary_unary(hostile_grpc.PREDICT)(message, timeout=5)
        return statistics.median(seconds)

    assert asyncio.run(hold()) < 0.1
    wait_until(lambda: not server._server._waiting and not server._server._streams)


def test_idle_connections_make_room_for_new_clients(counter, monkeypatch):
    """600 connections to a server that may open 400 files."""
    monkeypatch.setenv("PATH", "")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1000:
        pytest.skip(f"needs 1000 file descriptors, and this process may open {soft}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    try:
        served = soak_serving.Served(
            counter, "--grpc_channel_arguments=grpc.max_connection_idle_ms=1000"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with served, contextlib.ExitStack() as stack:
        for _ in range(600):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            with contextlib.suppress(OSError):
                idle.send(hostile_grpc.HANDSHAKE)
        for _ in range(2):
            with served.channel() as channel:
                check = channel.unary_unary(hostile_grpc.CHECK)
                check(
                    health_pb2.HealthCheckRequest().SerializeToString(),
                    timeout=20,
                    wait_for_ready=True,
                )
