"""Two workers on a slow network: images/s and bytes sent per step, for larger steps and smaller packs, too.

    sudo python tools/bench_network.py [--gigabits 1] [--delay 5] [--width 32]

The workers are processes in two network namespaces of this machine. Each variant runs with a cable between
them (veth), and with a cable that this process simulates: it takes packets from one end (a TUN device) and
passes them to the other end when they would have arrived. The kernel's own simulation, netem, is missing on
many virtual machines. The runs alternate, so that other load on the machine affects both.
"""

import argparse
import bisect
import collections
import contextlib
import fcntl
import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from keras_ssl.plotting import print_table

STEPS, SKIPPED = 12, 3
PLACES, ENDS = ("keras_ssl_a", "keras_ssl_b"), ("kssl_a", "kssl_b")  # namespaces, devices
MTU = 9000  # bytes of a packet
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000  # of Linux' if_tun.h
PORT = 5055  # nothing else runs in the namespaces
# Images per worker and step; megabytes of gradients that are sent together, 0 for all.
VARIANTS = {"32 images": (32, 0), "128 images": (128, 0), "32 images, packs of 1 MiB": (32, 1)}


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


class SlowCable(threading.Thread):
    """Two TUN devices; what is sent to one arrives at the other.

    Args:
        rate: float, bytes/s in each direction.
        delay: float, seconds.
    """

    def __init__(self, rate, delay):
        super().__init__(daemon=True)
        self._rate, self._delay, self._open = rate, delay, True
        self._ends = [self._device(name) for name in ENDS]

    def _device(self, name):
        end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH14x", name.encode(), IFF_TUN | IFF_NO_PI))
        return end

    def run(self):
        under_way, free_at = collections.deque(), dict.fromkeys(self._ends, 0.0)
        while self._open:
            wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else 0.05
            for end in select.select(self._ends, [], [], wait)[0]:
                for packet in self._packets(end):
                    free_at[end] = max(free_at[end], time.monotonic()) + len(packet) / self._rate
                    other = self._ends[1 - self._ends.index(end)]
                    bisect.insort(under_way, (free_at[end] + self._delay, other, packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, end, packet = under_way.popleft()
                with contextlib.suppress(OSError):  # the other side is gone
                    os.write(end, packet)

    def _packets(self, end):
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):
                yield os.read(end, MTU)

    def close(self):
        self._open = False
        self.join()
        for end in self._ends:
            os.close(end)


@contextlib.contextmanager
def network(slow):
    """Creates two namespaces with a cable, and removes them afterwards; `slow` is (rate, delay) or None."""
    made, cable = [], None
    try:
        for place in PLACES:
            ip("netns", "add", place)
            made.append(place)
        if slow:
            cable = SlowCable(*slow)
            cable.start()
        else:
            ip("link", "add", ENDS[0], "type", "veth", "peer", ENDS[1])
        for k, (place, end) in enumerate(zip(PLACES, ENDS, strict=True)):
            ip("link", "set", end, "netns", place)
            ip("-n", place, "addr", "add", f"10.77.0.{k + 1}/24", "dev", end)
            ip("-n", place, "link", "set", end, "mtu", str(MTU), "up")
            ip("-n", place, "link", "set", "lo", "up")
        yield
    finally:
        if cable:
            cable.close()
        for place in made:
            ip("netns", "del", place)


def run(variant, slow, width):
    """Trains on two workers, and returns the report of the first one, a dict."""
    workers = []
    with network(slow):
        for k, place in enumerate(PLACES):
            config = {
                "cluster": {"worker": [f"10.77.0.{i + 1}:{PORT}" for i in range(2)]},
                "task": {"type": "worker", "index": k},
            }
            environment = {
                **os.environ,
                "TF_CONFIG": json.dumps(config),
                "TF_CPP_MIN_LOG_LEVEL": "2",
            }
            environment |= {"CUDA_VISIBLE_DEVICES": "", "TF_NUM_INTRAOP_THREADS": "1"}
            command = [sys.executable, __file__, "--width", str(width), "--variant", variant]
            workers.append(subprocess.Popen(
                ["ip", "netns", "exec", place, *command], env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            ))  # fmt: skip
        try:
            out = [worker.communicate(timeout=600)[0] for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    if any(worker.returncode for worker in workers):
        raise SystemExit(
            f"bench_network.py: a worker failed in {variant!r}: run one by hand to see why"
        )
    return json.loads(out[0].splitlines()[-1])


def sent():
    """Returns the bytes that this namespace has sent."""
    (line,) = [line for line in Path("/proc/net/dev").read_text().splitlines() if "kssl" in line]
    return int(line.split(":")[1].split()[8])


def work(variant, width):
    """Trains as one of the workers; prints images/s of both, bytes per step of this one, and weights."""
    import keras
    import tensorflow as tf
    from bench_training import Clock

    import keras_ssl as kssl

    batch, pack = VARIANTS[variant]
    strategy = kssl.distribute.strategy("multi_worker")
    strategy.extended._communication_options = tf.distribute.experimental.CommunicationOptions(
        bytes_per_pack=pack * 2**20
    )
    images = np.random.default_rng(0).integers(0, 256, (2 * batch * STEPS, 32, 32, 3), np.uint8)
    with strategy.scope():
        task = kssl.tasks.Rotation(kssl.encoders.resnet((32, 32, 3), width))
        task.compile(keras.optimizers.SGD(0.01))
    data = task.dataset(
        kssl.data.from_array(images), 2 * batch // 4
    )  # each image in four rotations
    bytes_at = []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda step, logs: bytes_at.append(sent())
    )
    clock = Clock()
    task.fit(data, steps_per_epoch=STEPS, verbose=0, callbacks=[clock, count])
    number = len(bytes_at) - 1 - SKIPPED
    print(json.dumps({
        "rate": 2 * batch / clock.seconds(), "bytes": (bytes_at[-1] - bytes_at[SKIPPED]) / number,
        "weights": task.count_params(),
    }))  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabits", type=float, default=1, help="of the slow cable in a second")
    parser.add_argument("--delay", type=float, default=5, help="of the slow cable in milliseconds")
    parser.add_argument("--width", type=int, default=32, help="filters of the first layer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        work(options.variant, options.width)
        return
    if os.geteuid() != 0:
        parser.error("network namespaces need root: run it by sudo")
    slow, found = (options.gigabits * 125e6, options.delay / 1000), {}
    for _ in range(options.rounds):
        for variant in VARIANTS:
            for cable in (None, slow):
                report = run(variant, cable, options.width)
                found.setdefault((variant, cable), []).append(report)
                print(variant, "slow" if cable else "fast", report, flush=True)
    setting = f"{options.gigabits:g} Gbit/s, {options.delay:g} ms"
    rows = [
        ["a worker's step", "fast cable, images/s", f"{setting}, images/s", "MB sent in a step"]
    ]
    for variant in VARIANTS:
        rates = [np.median([each["rate"] for each in found[variant, c]]) for c in (None, slow)]
        size = np.median([each["bytes"] for each in found[variant, slow]]) / 1e6
        rows.append([variant, *(f"{rate:.0f}" for rate in rates), f"{size:.1f}"])
    print_table(rows)


if __name__ == "__main__":
    main()
