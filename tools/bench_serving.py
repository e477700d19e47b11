"""Benchmark of the embedded server: throughput, relative to Session.run on full batches, and latency.

python tools/bench_serving.py [--model saved_models/rotation_cifar10] [--rounds 3] [--seconds 6]

The server has one core and its clients another, so that the fraction shows the overhead of gRPC, of Python
and of batching. All cases are measured in turn in each round, and the medians are printed.
"""

import argparse
import asyncio
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import numpy as np

CONFIG = """max_batch_size {{ value: 64 }}
batch_timeout_micros {{ value: {timeout} }}
max_enqueued_batches {{ value: 100 }}
num_batch_threads {{ value: {threads} }}
"""
PREDICT = "/tensorflow.serving.PredictionService/Predict"


def requests(model, size, kind, batch):
    """Serializes ten different PredictRequests of random images."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    rng = np.random.default_rng(0)
    messages = []
    for _ in range(10):
        # Smooth images, so that their JPEGs are as small as those of photos.
        small = rng.integers(0, 256, (batch, 4, 4, 3)).astype(np.float32)
        images = tf.cast(tf.image.resize(small, size, "bicubic"), tf.uint8).numpy()
        request = predict_pb2.PredictRequest()
        request.model_spec.name = model
        if kind == "jpeg":
            request.model_spec.signature_name = "encoded"
            encoded = [tf.io.encode_jpeg(image).numpy() for image in images]
            request.inputs["encoded"].CopyFrom(tf.make_tensor_proto(encoded))
        else:
            request.inputs["images"].CopyFrom(tf.make_tensor_proto(images))
        request.output_filter.append("features")
        messages.append(request.SerializeToString())
    return messages


async def send(port, messages, clients, seconds):
    """Measures (requests per second, latencies in s) of clients with one request in flight each."""
    latencies = []

    async def one(i):
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            call = channel.unary_unary(PREDICT)  # without serialization, to measure the server only
            await call(messages[0])
            await ready.wait()
            n = i
            while time.perf_counter() < end:
                start = time.perf_counter()
                await call(messages[n % len(messages)])
                latencies.append(time.perf_counter() - start)
                n += 1

    ready = asyncio.Event()
    tasks = [asyncio.create_task(one(i)) for i in range(clients)]
    await asyncio.sleep(1)
    start = time.perf_counter()
    end = start + seconds
    ready.set()
    await asyncio.gather(*tasks)
    return len(latencies) / (time.perf_counter() - start), latencies


def in_process(path, size, kind, core, seconds, connection):
    """Measures Session.run on batches of 64 for each message it receives; sends the images per second."""
    os.sched_setaffinity(0, {core})
    from tensorflow_serving.apis import predict_pb2

    from keras_ssl.serving.server.requests import inputs_of
    from keras_ssl.serving.server.servable import Servable

    servable = Servable(path)
    signature = "encoded" if kind == "jpeg" else "serving_default"
    message = predict_pb2.PredictRequest.FromString(requests("", size, kind, 64)[0])
    inputs = inputs_of(message, servable.inputs[signature])
    while connection.recv():
        for _ in range(3):
            servable.run(inputs, signature, ("features",))
        start, n = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            servable.run(inputs, signature, ("features",))
            n += 64
        connection.send(n / (time.perf_counter() - start))


def serve(path, core, batching):
    """Starts an embedded server on a core and returns (process, port)."""
    command = [Path(sys.executable).with_name("keras-ssl"), "serve", str(path.parent), "--port=0"]
    if batching:
        command += ["--enable_batching", f"--batching_parameters_file={batching}"]
    process = subprocess.Popen(
        [*command, "--tensorflow_session_parallelism=1"], stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )  # fmt: skip
    for line in process.stdout:
        if "listens on" in line:
            return process, int(line.split("127.0.0.1:")[1].split()[0])
    raise RuntimeError(f"the server of {path} did not start")


def image_size(version):
    """Returns [height, width] of the images that an export takes."""
    from keras_ssl.serving.server.servable import Servable

    servable = Servable(version)
    shape = servable.signatures["serving_default"].inputs["images"].tensor_shape
    servable.close()
    return [dim.size for dim in shape.dim][1:3]


def measure(version, kind, servers, core, rounds, seconds):
    """Measures all cases of one kind of input.

    Args:
        version: pathlib.Path of the exported version.
        kind: "uint8" or "jpeg".
        servers: dict of name to (process, port).
        core: int, the servers' core.
        rounds: int.
        seconds: float, time for each measurement.

    Returns:
        dict of (kind, server, clients, batch size) to a list with one tuple per round: images per second
        of Session.run, images per second of the server, p50 and p99 of the latency in ms.
    """
    size = image_size(version)
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    reference = context.Process(target=in_process, args=(version, size, kind, core, seconds, far))
    reference.start()
    cases = [(kind, "batched", n, 1) for n in (1, 8, 32)]
    cases += [(kind, "alone", 32, 1), (kind, "batched", 2, 64)]
    messages = {batch: requests(version.parent.name, size, kind, batch) for batch in (1, 64)}
    rows = {case: [] for case in cases}
    for _ in range(rounds):
        for case in cases:
            near.send(True)
            full = near.recv()
            _, server, clients, batch = case
            port = servers[server][1]
            rate, latencies = asyncio.run(send(port, messages[batch], clients, seconds))
            p50, p99 = np.percentile(np.array(latencies) * 1e3, [50, 99])
            rows[case].append((full, rate * batch, p50, p99))
    near.send(False)
    reference.join()
    return rows


def print_table(rows):
    print("images  server   clients  each  images/s  fraction  p50 ms  p99 ms")
    for (kind, server, clients, batch), measured in rows.items():
        fraction = statistics.median(rate / full for full, rate, _, _ in measured)
        _, rate, p50, p99 = (statistics.median(column) for column in zip(*measured, strict=True))
        print(
            f"{kind:6}  {server:7}  {clients:7}  {batch:4}  {rate:8.0f}  {fraction:8.2f}  {p50:6.1f}  "
            f"{p99:6.1f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="saved_models/rotation_cifar10")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--timeout", type=int, default=0, help="batch_timeout_micros")
    parser.add_argument("--threads", type=int, default=1, help="num_batch_threads")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("this benchmark needs two cores: one for the server and one for its clients")
    server_core, client_core = cores[:2]
    os.sched_setaffinity(0, {client_core})

    from keras_ssl.zoo import versions

    found = versions(Path(args.model).resolve())
    version = found[max(found)]
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        batching = Path(folder) / "batching.config"
        batching.write_text(CONFIG.format(timeout=args.timeout, threads=args.threads))
        servers = {
            "batched": serve(version.parent, server_core, batching),
            "alone": serve(version.parent, server_core, None),
        }
        for kind in ("uint8", "jpeg"):
            rows |= measure(version, kind, servers, server_core, args.rounds, args.seconds)
        for process, _ in servers.values():
            process.terminate()
            process.wait()
    print_table(rows)


if __name__ == "__main__":
    main()
