"""Soak test of the embedded server: load, version swaps, overload, malformed requests and attacks.

python tools/soak_serving.py [--seconds 120] [load swaps overload malformed hostile]

The server runs in its own process. Each part prints its measurements, and fails if a response is missing or
wrong, if memory grows, or if a request gets a status that it must not get.
"""

import argparse
import collections
import json
import random
import shutil
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import grpc
import hostile_bodies
import hostile_grpc
import hostile_rest
import numpy as np
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from malformed_requests import malformed
from server_process import Folders, Served, request, run_clients

import keras_ssl as kssl

SECONDS_PER_SWAP = 10.0  # maximum to poll, load and warm up a version
OVERLOAD_STATUSES = {"OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}


def load(server, export, seconds=120, number=32):
    """Sends requests with 1 to 16 images from many clients: each gets the features of its images.

    Args:
        server: Served.
        export: path of an exported model that it serves, for images of 32 x 32 pixels.
        seconds: float.
        number: int, clients.

    Returns:
        int, the number of responses.
    """
    name = Path(export).name
    images = np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3), np.uint8)
    expected = kssl.load(export)(images.astype(np.float32)).numpy()
    responses = [0] * number

    def work(i, running):
        rng = np.random.default_rng(i)
        with server.stub() as stub:
            while running():
                index = rng.integers(0, 256, rng.integers(1, 17))
                response = stub.Predict(request(name, images=images[index]), timeout=60)
                features = tf.make_ndarray(response.outputs["features"])
                np.testing.assert_allclose(features, expected[index], rtol=1e-5, atol=1e-5)
                responses[i] += 1

    run_clients(number, work, seconds)
    print(f"load: {sum(responses)} requests of {number} clients, all with the right features")
    return sum(responses)


class Swapper:
    """Replaces the served version of a model again and again, from a thread.

    Args:
        server: Served.
        source: folder of versions to copy; version n computes x + n.
        served: folder of the model that the server polls; it holds a copy of the first version as 1.
        times: int, swaps.
        interval: float, minimum seconds between two swaps.
        seen: dict with the versions that have responded. Each swap waits until the last version has
            responded, since the server polls and loads at its own pace, and skips versions that are removed
            meanwhile.
    """

    def __init__(self, server, source, served, times, interval, seen):
        self.server, self.served, self.times, self.interval = server, Path(served), times, interval
        self.seen, self.done = seen, False
        self.versions = sorted(Path(source).iterdir(), key=lambda path: int(path.name))
        self.offsets = {1: int(self.versions[0].name)}  # what each served version adds
        self.memory = []  # of the server, after each swap
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        for i in range(self.times):
            version = self.versions[(i + 1) % len(self.versions)]
            self.offsets[i + 2] = int(version.name)
            draft = self.served / f".{i}"
            shutil.copytree(version, draft)
            draft.rename(self.served / str(i + 2))
            shutil.rmtree(self.served / str(i), ignore_errors=True)
            end = time.monotonic() + self.interval
            while i + 2 not in self.seen or time.monotonic() < end:
                if self._stop.wait(0.02):
                    return
            self.memory.append(self.server.memory())
        self.done = True


def swaps(server, source, served, seconds=60, number=16, times=20):
    """Swaps versions under load: there are no errors, and each response is from the version that it names.

    Args:
        server: Served, started with a short --file_system_poll_wait_seconds.
        source, served: as in `Swapper`.
        seconds: float, for all swaps, or longer if the server needs longer to load the versions.
        number: int, clients.
        times: int, swaps.

    Returns:
        float, the relative growth of the server's memory after the first two swaps.
    """
    name = Path(served).name
    seen = collections.Counter()
    with Swapper(server, source, served, times, seconds / (times + 1), seen) as swapper:

        def work(i, running):
            value = np.float32(i)
            with server.stub() as stub:
                while running() and not swapper.done:
                    response = stub.Predict(request(name, x=[[value]]), timeout=30)
                    version = response.model_spec.version.value
                    expected = value + swapper.offsets[version]
                    assert response.outputs["y"].float_val[0] == expected, (version, response)
                    seen[version] += 1

        run_clients(number, work, seconds + SECONDS_PER_SWAP * times)
    memory = swapper.memory
    growth = memory[-1] / memory[min(1, len(memory) - 1)] - 1
    print(
        f"swaps: {sum(seen.values())} requests over {len(seen)} versions, no error; memory "
        f"{memory[-1] / 2**20:.0f} MiB, {growth:+.1%} since the second swap"
    )
    assert swapper.done, f"only {sorted(seen)} of {times + 1} versions responded"
    return growth


def _watch_health(server, running):
    """Checks health and the metrics page until the end; returns the slowest response in seconds."""
    page = f"http://localhost:{server.rest_port}/monitoring/prometheus/metrics"
    slowest = 0.0
    with server.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while running():
            start = time.monotonic()
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=5).status == 1
            between = time.monotonic()
            with urllib.request.urlopen(page, timeout=5) as response:
                assert b"# TYPE" in response.read()
            slowest = max(slowest, between - start, time.monotonic() - between)
            time.sleep(0.2)
    return slowest


def _seconds_until_success(server, message):
    start = time.monotonic()
    with server.stub() as stub:
        while True:
            try:
                stub.Predict(message, timeout=2)
                return time.monotonic() - start
            except grpc.RpcError:
                assert time.monotonic() - start < 30


def overload(server, name, seconds=60, number=320):
    """Overloads a server: expects only the statuses of overload, fast health checks, and quick recovery.

    Args:
        server: Served, started with a --grpc_max_threads well below `number`.
        name: str, an exported model that it serves, for images of 32 x 32 pixels.
        seconds: float.
        number: int, clients.

    Returns:
        (dict of status to number, slowest health check or metrics page in s, recovery in s).
    """
    message = request(name, images=np.zeros((16, 32, 32, 3), np.uint8))
    statuses, slowest = collections.Counter(), []
    lock = threading.Lock()

    def work(i, running):
        if i == 0:
            slowest.append(_watch_health(server, running))
            return
        with server.stub() as stub:
            while running():
                try:
                    stub.Predict(message, timeout=60)
                    code = "OK"
                except grpc.RpcError as error:
                    code = error.code().name
                    time.sleep(0.01 * random.random())
                with lock:
                    statuses[code] += 1

    run_clients(number, work, seconds)
    recovery = _seconds_until_success(server, message)
    print(
        f"overload: {json.dumps(statuses)}; slowest health check or metrics page "
        f"{slowest[0]:.2f} s, recovery {recovery:.2f} s"
    )
    assert set(statuses) <= OVERLOAD_STATUSES, statuses
    return dict(statuses), slowest[0], recovery


def soak_load(folders, **seconds):
    with Served(folders.export.parent) as server:
        load(server, folders.export, **seconds)


def soak_swaps(folders, **seconds):
    with Served(folders.swapped.parent, "--file_system_poll_wait_seconds=0.2") as server:
        growth = swaps(server, folders.counter, folders.swapped, **seconds)
        assert growth < 0.1, growth


def soak_overload(folders, **seconds):
    with Served(folders.export.parent, "--grpc_max_threads=32") as server:
        _, slowest, recovery = overload(server, folders.export.name, **seconds)
        assert slowest < 1, slowest
        assert recovery < 2, recovery


def soak_malformed(folders, **_):
    with Served(folders.export.parent) as server:
        malformed(server, folders.export.name)


def soak_hostile(folders, **seconds):
    with Served(folders.export.parent) as server:
        broken = hostile_grpc.run(f"127.0.0.1:{server.port}", server.process.pid, **seconds)
        print(f"REST: no wrong response: {hostile_rest.run('127.0.0.1', server.rest_port)}")
        times = hostile_bodies.flood(server.rest_port)
        longest = {name: max(times[name]) for name in ("GET", "POST")}
        print(f"longest response times in s during a flood of bodies of 128 KiB: {longest}")
        assert not any(broken.values()), broken
        assert max(longest.values()) < 1, longest


PARTS = {
    "load": soak_load, "swaps": soak_swaps, "overload": soak_overload, "malformed": soak_malformed,
    "hostile": soak_hostile,
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; default: all")
    parser.add_argument(
        "--seconds", type=float, help="of each part; 120, 60, 60 by default, and 4 of each attack"
    )
    parser.add_argument("--model", default="saved_models/rotation_cifar10")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    seconds = {"seconds": args.seconds} if args.seconds else {}
    with tempfile.TemporaryDirectory() as place:
        folders = Folders(place, args.model)
        for name in args.parts or PARTS:
            PARTS[name](folders, **seconds)


if __name__ == "__main__":
    main()
