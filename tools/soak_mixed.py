"""Mixed soak test of the embedded server: load, version swaps, killed clients and attacks at once.

python tools/soak_mixed.py [--minutes 60] [--model saved_models/rotation_cifar10]

Clients accept that the server is busy or has no free places, but they accept no wrong response: each must get
the features of its own images, or the sum of the version that the response names. The test fails if a
response is wrong, if the server ends, or if its memory grows by more than 5 % from the second twelfth of the
time to the last one.
"""

import argparse
import collections
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import grpc
import hostile_calls
import hostile_grpc
import hostile_http2
import numpy as np
import tensorflow as tf
from server_process import Folders, Served, request, run_clients
from soak_serving import Swapper

import keras_ssl as kssl

# gRPC itself responds CANCELLED when thousands of calls wait to be accepted.
BUSY = {"RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}
ATTACK_SECONDS = 4.0
KILL_SECONDS = 5.0  # life of a client that is killed


class Clients:
    """The messages that the clients of a server send, and the responses that they have received."""

    def __init__(self, server, export, counter, swapper):
        self.server, self.counter, self.swapper = server, counter, swapper
        self.name = Path(export).name
        self.images = np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3), np.uint8)
        self.expected = kssl.load(export)(self.images.astype(np.float32)).numpy()
        self.statuses, self.lock = collections.Counter(), threading.Lock()

    def ask(self, stub, message):
        """Returns the response, or None if the server is busy."""
        try:
            response, status = stub.Predict(message, timeout=30), "OK"
        except grpc.RpcError as error:
            response, status = None, error.code().name
            if status not in BUSY:
                raise
            time.sleep(0.05)
        with self.lock:
            self.statuses[status] += 1
        return response

    def work(self, i, running):
        """Sends images and numbers in turn until the end."""
        rng = np.random.default_rng(i)
        with self.server.stub() as stub:
            while running():
                index = rng.integers(0, 256, rng.integers(1, 17))
                response = self.ask(stub, request(self.name, images=self.images[index]))
                if response is not None:
                    features = tf.make_ndarray(response.outputs["features"])
                    np.testing.assert_allclose(features, self.expected[index], rtol=1e-5, atol=1e-5)
                value = np.float32(rng.integers(1000))
                response = self.ask(stub, request(self.counter, x=[[value]]))
                if response is not None:
                    version = response.model_spec.version.value
                    expected = value + self.swapper.offsets[version]
                    assert response.outputs["y"].float_val[0] == expected, (version, response)
                    self.swapper.seen[version] += 1


def flood(address):
    """Sends large requests until it, or the process that started it, is killed."""
    message = hostile_calls.request("serving_default", (64, 32, 32, 3))
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(hostile_http2.PREDICT)
        while multiprocessing.parent_process().is_alive():
            pending = [call.future(message, timeout=30) for _ in range(8)]
            for future in pending:
                future.exception()


def kill_clients(address, running):
    """Starts a client and kills it in the middle of its requests, again and again; returns how many."""
    context, number = multiprocessing.get_context("spawn"), 0
    while running():
        process = context.Process(target=flood, args=(address,), daemon=True)
        process.start()
        time.sleep(KILL_SECONDS)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        number += 1
    return number


def attack(address, running):
    """Runs one attack after another; returns how many."""
    context, number, names = multiprocessing.get_context("spawn"), 0, list(hostile_grpc.ATTACKS)
    near, far = context.Pipe()
    process = context.Process(target=hostile_grpc.attacker, args=(address, far), daemon=True)
    process.start()
    far.close()
    while running():
        near.send((names[number % len(names)], ATTACK_SECONDS))
        near.recv()
        number += 1
    near.send(None)
    process.join()
    return number


def soak(folders, minutes):
    """Runs everything at once; returns the growth of the server's memory."""
    # Links, since the swapper changes the folder of the counter.
    root = folders.swapped.parent
    (root / folders.export.name).symlink_to(folders.export)
    done, memory = {}, []
    with Served(root, "--file_system_poll_wait_seconds=0.2") as server:
        address = f"127.0.0.1:{server.port}"
        seen = collections.Counter()
        with Swapper(server, folders.counter, folders.swapped, 10**6, 20.0, seen) as swapper:
            clients = Clients(server, folders.export, folders.swapped.name, swapper)

            def watch(running):
                start = time.monotonic()
                while running():
                    memory.append((time.monotonic() - start, server.memory()))
                    if len(memory) % 60 == 0:
                        print(
                            f"{memory[-1][0] / 60:5.1f} min, {memory[-1][1] / 2**20:.0f} MiB, "
                            f"{dict(clients.statuses)}, {len(seen)} versions",
                            flush=True,
                        )
                    assert server.process.poll() is None, "the server has ended"
                    time.sleep(1)

            def work(i, running):
                if i == 0:
                    watch(running)
                elif i == 1:
                    done["clients killed"] = kill_clients(address, running)
                elif i == 2:
                    done["attacks"] = attack(address, running)
                else:
                    clients.work(i, running)

            run_clients(11, work, 60 * minutes)
        assert server.process.poll() is None
    # The minimum over a part of the time: the memory between attacks, some of which take 200 MiB.
    part = 60 * minutes / 12
    floors = [min(m for t, m in memory if k * part <= t < (k + 1) * part) for k in (1, 11)]
    growth = floors[1] / floors[0] - 1
    print(
        f"{dict(clients.statuses)}, {len(seen)} versions, {done}: no wrong response; memory "
        f"{floors[0] / 2**20:.0f} to {floors[1] / 2**20:.0f} MiB, {growth:+.1%}"
    )
    return growth


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--model", default="saved_models/rotation_cifar10")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        growth = soak(Folders(place, args.model), args.minutes)
    sys.exit(1 if growth > 0.05 else 0)


if __name__ == "__main__":
    main()
