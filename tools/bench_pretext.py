"""Benchmark of the throughput of each task's `pretext` versus its training step, in images/s.

    python tools/bench_pretext.py [TASK ...] [--width 16] [--batch 128] [--rounds 5] [--precision float32]

The images have 32x32 pixels and are in memory. In each round, every task first computes batches without a
network, on all cores, and then trains on precomputed batches; SimCLR trains on the same encoder. So other
load on the machine affects all equally. The ratios are medians over the rounds. Local encoders, whose last
stage is narrow, are four times as wide, as in the zoo.
"""

import argparse
import functools
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from task_samples import required, sample
from zoo_training import views_per_image

import keras_ssl as kssl
from keras_ssl.plotting import print_table
from keras_ssl.tasks import TASKS
from keras_ssl.training.optimizers import sgd_cosine

IMAGES, STEPS = 2048, 6


def variant(kind, architecture, options):
    """Returns two functions that measure seconds per image, for `pretext` and for the step, and the views."""
    images = sample(kind.needs, IMAGES)
    local = architecture is kssl.encoders.local_resnet
    encoder = architecture((32, 32, 3), 4 * options.width if local else options.width)
    task = kind(encoder, **required(kind, encoder, IMAGES))
    task.compile(sgd_cosine(0.01, 1000))
    if hasattr(task, "labels"):
        task.labels.assign(tf.zeros_like(task.labels))
    ready = list(task.dataset(images, options.batch).take(STEPS))
    step = tf.function(task.train_step, reduce_retracing=True)
    made = task.dataset(images, options.batch)

    def make():
        start = time.perf_counter()
        for _ in made:  # a new iterator each time, so nothing was prefetched during training
            pass
        return (time.perf_counter() - start) / IMAGES

    def train():
        start = time.perf_counter()
        for batch in ready:
            step(batch)
        return (time.perf_counter() - start) / (options.batch * STEPS)

    return make, train, views_per_image(task, ready[0][0])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [row.name for row in TASKS]
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="all without it")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128, help="images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="float32")
    options = parser.parse_args()
    if unknown := {*options.tasks} - {*names}:
        parser.error(f"there is no task {unknown}: choose of {', '.join(names)}")
    keras.config.set_dtype_policy(options.precision)
    heads = "pretext images/s", "step images/s", "ratio", "views", "step versus SimCLR's"
    rows = [("task", *heads)]
    for row in TASKS:
        if options.tasks and row.name not in options.tasks:
            continue
        keras.utils.clear_session()
        make, train, views = variant(row.task, row.task.architecture, options)
        same = row.task.architecture
        if same is kssl.encoders.patch_grid:  # the network of its patches, but on whole images
            same = functools.partial(kssl.encoders.resnet, normalization="layer")
        _, simclr, _ = variant(kssl.tasks.SimCLR, same, options)
        make(), train(), simclr()
        times = [(make(), train(), simclr()) for _ in range(options.rounds)]
        made, trained, compared = np.array(times).T
        speeds = [f"{np.median(1 / each):,.0f}" for each in (made, trained)]
        ratios = [f"{np.median(trained / made):.1f}", f"{views:.2f}"]
        rows.append((row.name, *speeds, *ratios, f"{np.median(trained / compared):.2f}"))
        print(*rows[-1], flush=True)
    print_table(rows)


if __name__ == "__main__":
    main()
