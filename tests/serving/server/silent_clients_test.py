"""Clients that hold calls or connections and send nothing do not keep others out."""

import asyncio
import contextlib
import resource
import socket
import statistics
import time

import hostile_calls
import hostile_http2
import pytest
import server_process
from grpc_health.v1 import health_pb2


@pytest.mark.parametrize("path", [hostile_http2.PREDICT, hostile_calls.REFLECTION])
def test_calls_that_send_nothing_hold_no_place(server, predict_request, path, wait_for):
    """The short form of `tools/hostile_grpc.py`."""
    address = f"127.0.0.1:{server.port}"
    message = predict_request("counter", x=[[1.0]]).SerializeToString()

    async def hold():
        seconds = []
        async with contextlib.AsyncExitStack() as stack:
            for i in range(200):
                if i % 50 == 0:
                    connection = await stack.enter_async_context(hostile_http2.channel(address))
                connection.stream_unary(path)()
            other = await stack.enter_async_context(hostile_http2.channel(address))
            for _ in range(20):
                start = time.monotonic()
                await other.unary_unary(hostile_http2.CHECK)(b"", timeout=5)
                seconds.append(time.monotonic() - start)
                await other.unary_unary(hostile_http2.PREDICT)(message, timeout=5)
        return statistics.median(seconds)

    assert asyncio.run(hold()) < 0.1
    wait_for(lambda: not server._server._calls)


def test_idle_connections_make_room_for_new_clients(counter, monkeypatch):
    """600 connections to a server that may open 400 files."""
    monkeypatch.setenv("PATH", "")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1000:
        pytest.skip(f"needs 1000 file descriptors, and this process may open {soft}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    try:
        served = server_process.Served(
            counter, "--grpc_channel_arguments=grpc.max_connection_idle_ms=1000"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with served, contextlib.ExitStack() as stack:
        for _ in range(600):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            with contextlib.suppress(OSError):
                idle.send(hostile_http2.handshake())
        for _ in range(2):
            with served.channel() as channel:
                check = channel.unary_unary(hostile_http2.CHECK)
                check(
                    health_pb2.HealthCheckRequest().SerializeToString(),
                    timeout=20,
                    wait_for_ready=True,
                )
