"""Benchmark of `task.fit` with two logical devices and with two worker processes, versus one device.

    python tools/bench_replicas.py [--width 16] [--rounds 7] [--tasks rotation,self_label]

The variants are one process with one device, one process with two logical devices, and two worker processes
that have half of the cores each. All have the same cores and train on the same batches as in
`bench_training.py`, so two replicas can at best be as fast as one: the efficiency is the ratio of their
images/s. Each variant runs in its own processes, which wait while the others run.
"""

import argparse
import contextlib
import inspect
import json
import os
import socket
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from bench_training import BATCH, STEPS, Clock, sgd

import keras_ssl as kssl
from keras_ssl.plotting import print_table
from keras_ssl.tasks import TASKS
from keras_ssl.training import distribute


def train(kind, name, synchronized, width):
    """Trains for a few steps per line on stdin, and prints images/s. Runs in its own process."""
    if kind == "devices":
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)
    strategy = distribute.strategy(
        {"one": "auto", "devices": "mirrored", "workers": "multi_worker"}[kind]
    )
    assert strategy.num_replicas_in_sync == (1 if kind == "one" else 2)
    (row,) = [row for row in TASKS if row.name == name]
    batch = BATCH // 4 if name == "rotation" else BATCH  # each image is rotated four times
    pixels = np.random.default_rng(0).integers(0, 256, (batch * STEPS, 32, 32, 3), np.uint8)
    images = kssl.data.from_array(pixels)
    known = inspect.signature(row.task).parameters
    with strategy.scope():
        encoder = kssl.encoders.resnet((32, 32, 3), width, synchronized=synchronized)
        task = row.task(encoder, **({"num_images": len(pixels)} if "num_images" in known else {}))
        task.compile(sgd())
    # Labels are computed only once, before the first timed step.
    relabel = [kssl.callbacks.Relabel(images, when="once")] if hasattr(task, "relabel") else []
    for _ in sys.stdin:
        clock = Clock()
        task.fit(task.dataset(images, batch), verbose=0, callbacks=[*relabel, clock])
        print(batch / clock.seconds(), flush=True)


class Trainers:
    """The processes of one variant, which all train when `run` is called."""

    def __init__(self, kind, *arguments):
        cores = sorted(os.sched_getaffinity(0))
        parts = [cores[0::2], cores[1::2]] if kind == "workers" else [cores]
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in parts]
            for free in sockets:
                free.bind(("localhost", 0))
            hosts = [f"localhost:{free.getsockname()[1]}" for free in sockets]
        wanted = json.dumps([kind, *arguments])
        self.processes = []
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by stop)
        for index, part in enumerate(parts):
            environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
            if kind == "workers":
                task = {"type": "worker", "index": index}
                environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": hosts}, "task": task})
            os.sched_setaffinity(0, part)  # the process inherits it before it counts its cores
            try:
                process = subprocess.Popen(
                    [sys.executable, os.path.abspath(__file__), "--trainer", wanted],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
                    env=environment,
                )  # fmt: skip
            finally:
                os.sched_setaffinity(0, cores)
            self.processes.append(process)

    def run(self):
        """Trains for a few steps and returns images/s."""
        with contextlib.suppress(BrokenPipeError):
            for process in self.processes:
                process.stdin.write("\n")
                process.stdin.flush()
        answers = [process.stdout.readline() for process in self.processes]
        if not all(answers):
            self.errors.seek(0)
            raise RuntimeError(f"a process stopped: {self.errors.read()[-3000:]}")
        return float(answers[0])  # all wait for each other in every step

    def stop(self):
        for process in self.processes:
            process.kill()
            process.communicate()
        self.errors.close()


def replicas(options):
    number = len(os.sched_getaffinity(0))
    if number < 2:
        raise SystemExit("two workers need two cores")
    rows = [("task", "normalization", "1 device", "2 devices", "", "2 workers", "")]
    kinds = ("one", "devices", "workers")
    for name in options.tasks.split(","):
        for synchronized in (False, True):
            with contextlib.ExitStack() as stack:
                trainers = []
                for kind in kinds:
                    trainers.append(Trainers(kind, name, synchronized, options.width))
                    stack.callback(trainers[-1].stop)
                    trainers[-1].run()  # traces and compiles while the others wait
                speeds = np.array([[t.run() for t in trainers] for _ in range(options.rounds)])
            one, devices, workers = np.median(speeds, axis=0)
            efficiency = np.median(speeds / speeds[:, :1], axis=0)
            rows.append(
                (
                    name, "over all replicas" if synchronized else "of each replica", f"{one:.0f}",
                    f"{devices:.0f}", f"{efficiency[1]:.2f}", f"{workers:.0f}", f"{efficiency[2]:.2f}",
                )
            )  # fmt: skip
            print(*rows[-1], flush=True)
    print(
        f"\nimages/s and efficiency, {number} cores, width {options.width}, {BATCH} network inputs per step, "
        f"median of {options.rounds} rounds"
    )
    print_table(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tasks", default="rotation,self_label")
    parser.add_argument("--trainer", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trainer:
        train(*options.trainer)
    else:
        replicas(options)


if __name__ == "__main__":
    main()
