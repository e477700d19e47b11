"""Throughput and latency of the embedded server, as a share of Session.run on full batches.

python tools/bench_serving.py [--model saved_models/rotation_cifar10] [--rounds 3] [--seconds 6]

The server has one core and its clients another, so that the share is the price of gRPC, of Python and of
waiting for a batch. Everything is measured anew in each round, in turn; the medians are printed.
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
    """Serialized PredictRequests of random pictures, ten that differ."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    rng = np.random.default_rng(0)
    messages = []
    for _ in range(10):
        # Smooth, so that a JPEG of it is as small as a photo's.
        small = rng.integers(0, 256, (batch, 4, 4, 3)).astype(np.float32)
        pictures = tf.cast(tf.image.resize(small, size, "bicubic"), tf.uint8).numpy()
        request = predict_pb2.PredictRequest()
        request.model_spec.name = model
        if kind == "jpeg":
            request.model_spec.signature_name = "encoded"
            encoded = [tf.io.encode_jpeg(picture).numpy() for picture in pictures]
            request.inputs["encoded"].CopyFrom(tf.make_tensor_proto(encoded))
        else:
            request.inputs["images"].CopyFrom(tf.make_tensor_proto(pictures))
        request.output_filter.append("features")
        messages.append(request.SerializeToString())
    return messages


async def ask(port, messages, clients, seconds):
    """(requests a second, latencies in s) of clients that each wait for their answer."""
    latencies = []

    async def one(i):
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            call = channel.unary_unary(
                PREDICT
            )  # bytes to bytes: the client is not what is measured
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
    """Sends the pictures a second of Session.run on batches of 64, each time it is asked."""
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
    """(process, port) of an embedded server on a core."""
    program = "from keras_ssl.cli import serve; import sys; serve.main(sys.argv[1:])"
    command = [sys.executable, "-c", program, str(path.parent), "--port=0"]
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
        parser.error("two cores are needed: one for the server, one for its clients")
    server_core, client_core = cores[:2]
    os.sched_setaffinity(0, {client_core})

    from keras_ssl.serving.server.servable import Servable, versions

    found = versions(args.model)
    version = found[max(found)]
    servable = Servable(version)
    shape = servable.signatures["serving_default"].inputs["images"].tensor_shape
    size = [dim.size for dim in shape.dim][1:3]
    servable.close()

    path = version.parent.resolve()
    context = multiprocessing.get_context("spawn")
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        batching = Path(folder) / "batching.config"
        batching.write_text(CONFIG.format(timeout=args.timeout, threads=args.threads))
        servers = {
            "batched": serve(path, server_core, batching),
            "alone": serve(path, server_core, None),
        }
        for kind in ("uint8", "jpeg"):
            near, far = context.Pipe()
            reference = context.Process(
                target=in_process, args=(version, size, kind, server_core, args.seconds, far)
            )
            reference.start()
            cases = [(kind, "batched", n, 1) for n in (1, 8, 32)] + [
                (kind, "alone", 32, 1), (kind, "batched", 2, 64),
            ]  # fmt: skip
            messages = {batch: requests(path.name, size, kind, batch) for batch in (1, 64)}
            for _ in range(args.rounds):
                for case in cases:
                    near.send(True)
                    full = near.recv()
                    _, which, clients, batch = case
                    rate, latencies = asyncio.run(
                        ask(servers[which][1], messages[batch], clients, args.seconds)
                    )
                    p50, p99 = np.percentile(np.array(latencies) * 1e3, [50, 99])
                    rows.setdefault(case, []).append((full, rate * batch, p50, p99))
            near.send(False)
            reference.join()
        for process, _ in servers.values():
            process.terminate()
            process.wait()
    print("pictures  server   clients  each  images/s  of full batches  p50 ms  p99 ms")
    for (kind, which, clients, batch), found in rows.items():
        share = statistics.median(rate / full for full, rate, _, _ in found)
        _, rate, p50, p99 = (statistics.median(column) for column in zip(*found, strict=True))
        print(
            f"{kind:8}  {which:7}  {clients:7}  {batch:4}  {rate:8.0f}  {share:15.2f}  {p50:6.1f}  {p99:6.1f}"
        )


if __name__ == "__main__":
    main()
