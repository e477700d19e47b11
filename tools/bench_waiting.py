"""Benchmark of the time that training steps of every task wait for their data.

    python tools/bench_waiting.py [--data photos/] [--width 16] [--rounds 3] [--tasks rotation,jigsaw]

The images of 32x32 are first kept in memory and then read from JPEG files; without --data the tool generates
both. The loop does the same as `fit`, without callbacks: it gets a batch from the pipeline (this is the
waiting time) and runs the compiled step on it. The pipeline runs during the step on the same cores, so the
step takes longer than on precomputed batches. The columns "slower" are the ratio of the two, which a deeper
buffer would not change. In each round all loops of a task run in turn, so that other load on the machine
affects them equally. Each column is the median over the rounds.
"""

import argparse
import inspect
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.plotting import print_table
from keras_ssl.tasks import TASKS

SIZE, WARM_UP, STEPS = 32, 5, 12
LIMIT = 0.05  # fraction of the time that a step may wait, with images in memory


def write_images(folder, number, pixels):
    """Writes JPEG files without noise in single pixels, so that they are as large as files of photographs."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (number, 8, 8, 3)).astype(np.float32)
    for k, image in enumerate(coarse):
        image = tf.image.resize(image, (pixels, pixels), "bicubic")
        jpeg = tf.io.encode_jpeg(tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8))
        path = folder / str(k % 10) / f"{k:05d}.jpg"  # a class for tasks that need labels
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg.numpy())


def make(row, images, width):
    encoder = kssl.encoders.resnet((SIZE, SIZE, 3), width, (1, 1, 1))
    known = inspect.signature(row.task).parameters
    number = int(images.cardinality())
    task = row.task(encoder, **({"num_images": number} if "num_images" in known else {}))
    task.compile(keras.optimizers.SGD(0.001))
    if hasattr(task, "relabel"):
        task.relabel(kssl.callbacks.features_by_id(task, images))
    return task


def compiled(task):
    """Compiles the step as Keras' `fit` does, without the iterator, which is timed separately."""
    step = tf.function(task.train_step, reduce_retracing=True)

    def run(batch):
        step(batch)["loss"].numpy()  # also waits for a GPU

    return run


def loop(step, batches):
    """Measures the mean seconds of a step and of the wait before it, without the first steps."""
    times = [time.perf_counter()]
    batches = iter(batches)
    for _ in range(WARM_UP + STEPS):
        batch = next(batches)
        times.append(time.perf_counter())
        step(batch)
        times.append(time.perf_counter())
    waiting, working = np.diff(times).reshape(-1, 2)[WARM_UP:].sum(axis=0) / STEPS
    return working, waiting


def measure(row, sources, options):
    """Returns (2, sources + 1, rounds) seconds of steps and of waiting; the first source has no pipeline."""
    task = make(row, sources[0], options.width)
    step = compiled(task)
    epochs = -(-(WARM_UP + STEPS) * options.batch_size // int(sources[0].cardinality()))
    training = [task.dataset(images, options.batch_size, epochs) for images in sources]
    ready = list(training[0].take(WARM_UP + STEPS))
    variants = [ready, *training]
    # A new iterator in each round, since an old one would have filled its buffer while the others ran.
    rounds = [[loop(step, batches) for batches in variants] for _ in range(options.rounds + 1)]
    return np.array(rounds[1:]).T  # without the first round, which traced and compiled


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of images, instead of generated ones")
    parser.add_argument("--images", type=int, default=2000, help="maximum number of images")
    parser.add_argument(
        "--jpeg-size", type=int, default=SIZE, help="side of the generated images in pixels"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--tasks", help="names separated by commas; by default all that need images and labels only"
    )
    options = parser.parse_args()
    given = {"image", "label"}  # columns of the images of this benchmark
    possible = [row.name for row in TASKS if given.issuperset(row.task.needs)]
    names = options.tasks.split(",") if options.tasks else possible
    if unknown := {*names} - {row.name for row in TASKS}:
        parser.error(f"there is no task {', '.join(unknown)}")

    with tempfile.TemporaryDirectory() as temporary:
        if not options.data:
            write_images(Path(temporary), options.images, options.jpeg_size)
        files = kssl.data.from_folder(options.data or temporary, SIZE)
        number = min(options.images, int(files.cardinality()))
        files = kssl.data.columns.subset(
            files, np.arange(number // options.batch_size * options.batch_size)
        )
        arrays = kssl.data.to_arrays(files)
        memory = kssl.data.from_array(arrays["image"], arrays.get("label"))
        rows = [
            ("task", "step alone", "memory: waits", "slower", "", "files: waits", "slower"),
        ]
        for row in TASKS:
            if row.name not in names:
                continue
            try:
                working, waiting = measure(row, [memory, files], options)
            except ValueError as error:
                rows.append((row.name, f"skipped: {error}"[:70], *[""] * 5))
                continue
            fraction = np.median(waiting / (working + waiting), axis=1)
            slower = np.median(working / working[0], axis=1)
            rows.append(
                (
                    row.name,
                    f"{1000 * np.median(working[0]):.0f} ms",
                    f"{fraction[1]:.1%}", f"{slower[1]:.2f}", "" if fraction[1] < LIMIT else "too long",
                    f"{fraction[2]:.1%}", f"{slower[2]:.2f}",
                )
            )  # fmt: skip
            print(*rows[-1], flush=True)
    print(
        f"\n{number} images, batch {options.batch_size}, width {options.width}, "
        f"{len(os.sched_getaffinity(0))} cores, median of {options.rounds} rounds; with images in memory "
        f"a step may wait {LIMIT:.0%} of the time"
    )
    print_table(rows)


if __name__ == "__main__":
    main()
