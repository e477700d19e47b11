"""Benchmark of `task.fit` versus plain Keras, Keras' own batch normalization, and PyTorch; and on replicas.

    python tools/bench_training.py [--width 16] [--rounds 7]
    python tools/bench_training.py --replicas [--tasks rotation,self_label]

Every variant trains the same network (residual, blocks 2-2-2-2) on batches of 256 images of 32x32 by SGD
with momentum. In each round every variant runs once for a few steps, so that other load on the machine
affects all equally. The ratio is the median over the rounds. PyTorch is included if it is installed.

With --replicas the variants are `task.fit` by one process with one device, by one process with two
logical devices, and by two worker processes that have half of the cores each. All have the same cores and
train on the same batches, so two replicas can at best be as fast as one: the efficiency is the ratio of
their images/s. Each variant runs in its own processes, which wait while the others run.
"""

import argparse
import contextlib
import importlib.util
import inspect
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.plotting import print_table
from keras_ssl.tasks import TASKS
from keras_ssl.training import distribute

BATCH, STEPS, SKIPPED = 256, 12, 2


class Clock(keras.callbacks.Callback):
    """Measures the seconds per step, without the first steps of a `fit`."""

    def on_train_begin(self, logs=None):
        self.times = []

    def on_train_batch_end(self, batch, logs=None):
        self.times.append(time.perf_counter())

    def seconds(self):
        return (self.times[-1] - self.times[SKIPPED]) / (len(self.times) - 1 - SKIPPED)


def sgd():
    return keras.optimizers.SGD(0.05, momentum=0.9)


def network(width, normalization):
    with mock.patch("keras_ssl.encoders.residual.BatchNormalization", normalization):
        return kssl.encoders.resnet((32, 32, 3), width)


def task_fit(width):
    task = kssl.tasks.Rotation(network(width, kssl.layers.BatchNormalization))
    task.compile(sgd())
    pictures = np.random.default_rng(0).integers(0, 256, (BATCH // 4 * STEPS, 32, 32, 3), np.uint8)
    images = kssl.data.from_array(pictures)

    def run():
        clock = Clock()
        task.fit(task.dataset(images, BATCH // 4), verbose=0, callbacks=[clock])
        return clock.seconds()

    return run


def plain_fit(width, normalization):
    head = keras.layers.Dense(4, dtype="float32")
    model = keras.Sequential([network(width, normalization), head])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    metrics = [keras.metrics.SparseCategoricalAccuracy()]
    model.compile(sgd(), loss, metrics=metrics, jit_compile=False)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (BATCH * STEPS, 32, 32, 3), np.uint8)
    ready = tf.data.Dataset.from_tensor_slices((x, rng.integers(0, 4, BATCH * STEPS)))
    ready = ready.batch(BATCH).cache().prefetch(tf.data.AUTOTUNE)
    list(ready)

    def run():
        clock = Clock()
        model.fit(ready, verbose=0, shuffle=False, callbacks=[clock])
        return clock.seconds()

    return run


def torch_loop(width, bfloat16, layout):
    import torch
    from torch import nn

    def convolution(inputs, outputs, size, stride):
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
            nn.BatchNorm2d(outputs, momentum=0.1),
        )

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.first = convolution(inputs, outputs, 3, stride)
            self.second = convolution(outputs, outputs, 3, 1)
            self.shortcut = convolution(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

        def forward(self, x):
            y = self.second(torch.relu(self.first(x)))
            return torch.relu(y + self.shortcut(x))

    widths = [width * 2**i for i in range(4)]
    blocks = [convolution(3, width, 3, 1), nn.ReLU()]
    for i, outputs in enumerate(widths):
        blocks += [Block(widths[max(i - 1, 0)], outputs, 2 if i else 1), Block(outputs, outputs, 1)]
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 4))
    layout = getattr(torch, layout)
    model = model.to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    loss = nn.CrossEntropyLoss()
    x = torch.randint(0, 256, (BATCH, 3, 32, 32)).float().to(memory_format=layout)
    y = torch.randint(0, 4, (BATCH,))

    def step():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            output = model(x / 127.5 - 1)
        loss(output.float(), y).backward()
        optimizer.step()

    def run():
        for _ in range(SKIPPED):
            step()
        start = time.perf_counter()
        for _ in range(STEPS - SKIPPED):
            step()
        return (time.perf_counter() - start) / (STEPS - SKIPPED)

    return run


def train(kind, name, synchronized, width):
    """Trains for a few steps for each line on stdin, and prints images/s. Runs in its own process."""
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
    # Labels are computed before the first timed step, and not again.
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
            os.sched_setaffinity(0, part)  # inherited by the process, before it counts its cores
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
    parser.add_argument("--replicas", action="store_true", help="2 devices and 2 workers versus 1")
    parser.add_argument("--tasks", default="rotation,self_label", help="for --replicas")
    parser.add_argument("--trainer", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trainer:
        train(*options.trainer)
    elif options.replicas:
        replicas(options)
    else:
        compare(options)


def compare(options):
    has_torch = importlib.util.find_spec("torch") is not None
    if not has_torch:
        print("PyTorch is not installed: skipped")

    for policy in ("float32", "mixed_bfloat16"):
        keras.config.set_dtype_policy(policy)
        variants = {
            "task.fit": task_fit(options.width),
            "plain fit": plain_fit(options.width, kssl.layers.BatchNormalization),
            "plain fit, Keras' normalization": plain_fit(
                options.width, keras.layers.BatchNormalization
            ),
        }
        if has_torch:
            for name, layout in (("", "contiguous_format"), (", channels last", "channels_last")):
                variants[f"PyTorch loop{name}"] = torch_loop(
                    options.width, policy != "float32", layout
                )
        for run in variants.values():
            run()
        rounds = [{name: run() for name, run in variants.items()} for _ in range(options.rounds)]
        print(
            f"\n{policy}, width {options.width}, batch {BATCH}, median of {options.rounds} rounds"
        )
        for name in variants:
            speed = np.median([BATCH / r[name] for r in rounds])
            ratio = np.median([r[name] / r["task.fit"] for r in rounds])
            print(f"  {name:32} {speed:6.0f} images/s   task.fit is {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
