"""Benchmark of `augment.view` in tf.data, on all cores, in views/s.

    python tools/bench_views.py [--sizes 32 96] [--recipes SIMCLR_SMALL SIMCLR] [--rounds 7]

The images are in memory; batches have 256 images with two views each. Each round runs every size and recipe
in turn, so that other load on the machine affects all equally. The tool prints the median over the rounds,
and the views per second of processor time, which other processes affect less.
"""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from keras_ssl.ops import augment, random, recipes
from keras_ssl.plotting import print_table

VIEWS = 2


def dataset(size, recipe, batch):
    """Returns an endless dataset of (batch, 2, size, size, 3) views."""
    image = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    image = tf.constant(image)

    def two_views(step):
        ids = tf.range(batch, dtype=tf.int64)
        seed = tf.stack([tf.fill((batch,), step), ids], axis=1)
        views = [augment.view(image, s, recipe) for s in random.split(seed, VIEWS)]
        return tf.stack(views, axis=1)

    return tf.data.Dataset.counter().map(two_views, tf.data.AUTOTUNE).prefetch(2)


def measure(data, batch, seconds):
    """Measures views per second of wall time and of processor time."""
    # A new iterator each time, so that no pipeline keeps running while another one is measured.
    batches = iter(data)
    for _ in range(4):
        next(batches)
    made, wall, processor = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        next(batches)
        made += VIEWS * batch
    return made / (time.perf_counter() - wall), made / (time.process_time() - processor)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 96])
    parser.add_argument("--recipes", nargs="+", default=["SIMCLR_SMALL", "MOCO_SMALL", "SIMCLR"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    cases = {
        (size, name): dataset(size, getattr(recipes, name), options.batch)
        for size in options.sizes
        for name in options.recipes
    }
    speeds = {case: [] for case in cases}
    for _ in range(options.rounds):
        for case, data in cases.items():
            speeds[case].append(measure(data, options.batch, options.seconds))
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text() if cpu.exists() else ""
    kind = next((flag for flag in ("avx512_bf16", "avx512f") if flag in flags), "no AVX-512")
    print(f"{os.cpu_count()} CPUs, {kind}, load {os.getloadavg()[0]:.1f}")
    rows = [("size", "recipe", "views/s", "slowest", "fastest", "per CPU second")]
    for (size, name), of_case in speeds.items():
        wall, processor = np.transpose(of_case)
        numbers = np.median(wall), wall.min(), wall.max(), np.median(processor)
        rows.append((str(size), name, *(f"{number:,.0f}" for number in numbers)))
    print_table(rows)


if __name__ == "__main__":
    main()
