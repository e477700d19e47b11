"""Attacks an embedded server over gRPC, and measures the cost for the server and for its other clients.

python tools/hostile_grpc.py [--seconds 4] [--address HOST:PORT --pid PID] [attack ...]

Another process attacks, while this process sends requests to the same server: health checks, single images,
and 64 images, whose messages wait for a thread that parses them. Right before each attack, these requests are
measured without it. CPU time includes these requests. The tool prints a table, and fails if an attack costs
more than a request may (`BARS`). Without an address, it starts a server.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import grpc
import hostile_calls
import hostile_http2
import numpy as np
import psutil
from hostile_calls import request
from hostile_http2 import CHECK, MIB, PREDICT, channel
from server_process import Served

ATTACKS = {**hostile_calls.ATTACKS, **hostile_http2.ATTACKS}
BARS = {
    "memory": "256 MiB and 20 times the bytes of a request",
    "cpu": "10 s of CPU time per request",
    "health": "100 ms for health checks (99 of 100)",
    "p99": "twice the p99 of Predict without the attack",
    "large": "1 s more for 64 images (99 of 100) than without the attack",
    "after": "5 % more memory or descriptors than before, or another process",
}


def attacker(address, connection):
    """Runs the attacks whose (name, seconds) it receives, and sends (requests, bytes of the largest)."""
    loop = asyncio.new_event_loop()  # one for all, since grpc.aio fails after its loop has ended
    while attack := connection.recv():
        name, seconds = attack
        connection.send(loop.run_until_complete(ATTACKS[name](address, time.monotonic() + seconds)))


async def observe(address, running):
    """Sends health checks, single images and 64 images while `running()`; returns their latencies in ms."""
    latencies = {"health": [], "one": [], "large": []}

    async def ask(pause, **messages):
        async with channel(address) as connection:
            while running():
                for name, (path, data) in messages.items():
                    start = time.perf_counter()
                    try:
                        await connection.unary_unary(path)(data, timeout=10)
                        latency = time.perf_counter() - start
                    except grpc.RpcError:
                        latency = float("inf")
                    latencies[name].append(latency * 1e3)
                await asyncio.sleep(pause)

    images = [request("serving_default", (number, 32, 32, 3)) for number in (1, 64)]
    await asyncio.gather(
        ask(0, health=(CHECK, b""), one=(PREDICT, images[0])), ask(0.3, large=(PREDICT, images[1]))
    )
    return latencies


class Usage:
    """Memory, CPU time and descriptors of a process."""

    def __init__(self, pid):
        self.process = psutil.Process(pid)
        self._proc = Path(f"/proc/{pid}")
        (self._proc / "clear_refs").write_text("5")  # resets the peak
        self.memory, self.files = self.process.memory_info().rss, self.process.num_fds()
        self.cpu = sum(self.process.cpu_times()[:2])

    def peak(self):
        """Returns the largest growth of the memory in bytes."""
        (line,) = (x for x in (self._proc / "status").read_text().splitlines() if "VmHWM" in x)
        return int(line.split()[1]) * 1024 - self.memory

    def kept(self):
        """Waits for at most 10 s until the process keeps no more than 5 % of its growth.

        Returns:
            (growth, files, kept): growth as a fraction of the memory, descriptors, and whether one is above 5
            %.
        """
        end = time.monotonic() + 10  # for connections that are being closed
        while True:
            time.sleep(1)
            after = Usage(self.process.pid)
            growth, files = after.memory / self.memory - 1, after.files - self.files
            kept = growth > 0.05 or files > 0.05 * self.files
            if not kept or time.monotonic() > end:
                return growth, files, kept


def measure(name, address, pid, seconds, connection, loop):
    """Lets an `attacker` at the other end of a connection run one attack.

    Returns:
        dict: requests, bytes, memory (peak growth in bytes), cpu (s per request), quiet and p99 (of
        Predict, ms), quiet_large and large (64 images), health (p99, ms), growth (fraction, afterwards),
        files (more than before), kept (whether growth or files are above 5 %).
    """
    end = time.monotonic() + seconds
    quiet = loop.run_until_complete(observe(address, lambda: time.monotonic() < end))
    before = Usage(pid)
    connection.send((name, seconds))
    busy = loop.run_until_complete(observe(address, lambda: not connection.poll()))
    number, size = connection.recv()
    row = {"requests": number, "bytes": size, "memory": before.peak()}
    row["cpu"] = (sum(before.process.cpu_times()[:2]) - before.cpu) / max(1, number)
    for key, values, name in (
        ("quiet", quiet, "one"), ("p99", busy, "one"), ("health", busy, "health"),
        ("quiet_large", quiet, "large"), ("large", busy, "large"),
    ):  # fmt: skip
        row[key] = float(np.percentile(values[name], 99, method="higher"))
    row["growth"], row["files"], row["kept"] = before.kept()
    return row


def missed(row):
    """Returns the names of the bars that an attack broke."""
    broken = {
        "memory": row["memory"] > 256 * MIB + 20 * row["bytes"],
        "cpu": row["cpu"] > 10,
        "health": row["health"] > 100,
        "p99": row["p99"] > 2 * row["quiet"],
        "large": row["large"] > 1000 + row["quiet_large"],
        "after": row["kept"],
    }
    return [name for name, is_broken in broken.items() if is_broken]


def run(address, pid, names=tuple(ATTACKS), seconds=4.0):
    """Runs attacks against a server on this machine and prints a table.

    Args:
        address: str, "host:port" of its gRPC; it serves rotation_cifar10.
        pid: int, its process.
        names: sequence of str, keys of ATTACKS.
        seconds: float, duration of each.

    Returns:
        dict from the name of an attack to the names of the bars that it broke.
    """
    loop = asyncio.new_event_loop()
    loop.run_until_complete(ATTACKS["filter orders"](address, time.monotonic() + 5))  # warms up
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=attacker, args=(address, far))
    process.start()
    far.close()  # so that the end of the other process is noticed
    print(
        f"{'attack':28}requests  peak MiB  CPU ms  health ms  quiet  p99 ms  large  after   files  missed"
    )
    broken = {}
    for name in names:
        row = measure(name, address, pid, seconds, near, loop)
        broken[name] = missed(row)
        print(
            f"{name:28}{row['requests']:8}  {row['memory'] / MIB:8.0f}  {1e3 * row['cpu']:6.1f}  "
            f"{row['health']:9.1f}  {row['quiet']:5.1f}  {row['p99']:6.1f}  {row['large']:5.0f}  "
            f"{row['growth']:+5.1%}  {row['files']:+5}  {' '.join(broken[name])}",
            flush=True,
        )
    near.send(None)
    process.join()
    return broken


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("attacks", nargs="*", default=list(ATTACKS), help=", ".join(ATTACKS))
    parser.add_argument("--address")
    parser.add_argument("--pid", type=int)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--model", default="saved_models/rotation_cifar10")
    args = parser.parse_args()
    if (args.address is None) != (args.pid is None):
        parser.error("--address needs --pid, and --pid needs --address")
    with contextlib.ExitStack() as stack:
        if args.address is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            (folder / "rotation_cifar10").symlink_to(Path(args.model).resolve())
            server = stack.enter_context(Served(folder))
            args.address, args.pid = f"127.0.0.1:{server.port}", server.process.pid
        broken = run(args.address, args.pid, args.attacks, args.seconds)
    names = {bar for bars in broken.values() for bar in bars}
    for bar in sorted(names):
        print(f"more than {BARS[bar]}: {', '.join(k for k, v in broken.items() if bar in v)}")
    sys.exit(1 if names else 0)


if __name__ == "__main__":
    main()
