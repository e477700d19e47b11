"""Benchmark of the throughput of each task's `pretext`, versus that of its training step, in images/s.

    python tools/bench_pretext.py [--width 16] [--rounds 5]

Images of 32x32 in memory, batches of 128. In each round every task first computes batches without a
network, on all cores, and then trains on precomputed ones, so that other load on the machine affects both
equally. The ratio is the median over the rounds.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from task_samples import required, sample

from keras_ssl.plotting import print_table
from keras_ssl.tasks import TASKS
from keras_ssl.training.optimizers import sgd_cosine

BATCH, IMAGES, STEPS = 128, 2048, 6


def variant(row, width):
    """Returns two functions that measure the seconds per image, of `pretext` and of the training step."""
    images = sample(row.task.needs, IMAGES)
    encoder = row.task.architecture((32, 32, 3), width)
    task = row.task(encoder, **required(row.task, encoder, IMAGES))
    task.compile(sgd_cosine(0.01, 1000))
    if hasattr(task, "labels"):
        task.labels.assign(tf.zeros_like(task.labels))
    ready = list(task.dataset(images, BATCH).take(STEPS))
    step = tf.function(task.train_step, reduce_retracing=True)
    made = task.dataset(images, BATCH)

    def make():
        start = time.perf_counter()
        for _ in made:  # a new iterator each time: nothing was prefetched while the network trained
            pass
        return (time.perf_counter() - start) / IMAGES

    def train():
        start = time.perf_counter()
        for batch in ready:
            step(batch)
        return (time.perf_counter() - start) / (BATCH * STEPS)

    return make, train


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = [("task", "pretext images/s", "step images/s", "ratio")]
    for row in TASKS:
        make, train = variant(row, options.width)
        make(), train()
        times = np.array([(make(), train()) for _ in range(options.rounds)])
        ratio = np.median(times[:, 1] / times[:, 0])
        speeds = np.median(1 / times, axis=0)
        rows.append((row.name, f"{speeds[0]:,.0f}", f"{speeds[1]:,.0f}", f"{ratio:.1f}"))
        print(*rows[-1], flush=True)
    print_table(rows)


if __name__ == "__main__":
    main()
