"""Benchmark of `task.fit` versus plain Keras, Keras' own batch normalization, and PyTorch.

    python tools/bench_training.py [--width 16] [--rounds 7]

Every variant trains the same network (residual, blocks 2-2-2-2) on batches of 256 images of 32x32 by SGD
with momentum. In each round every variant runs once for a few steps, so that other load on the machine
affects all equally. The ratio is the median over the rounds. PyTorch is included if it is installed.
"""

import argparse
import importlib.util
import os
import time
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import keras_ssl as kssl

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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
