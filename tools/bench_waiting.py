"""How long training steps wait for their data, for every task.

    python tools/bench_waiting.py [--data photos/] [--width 16] [--rounds 3] [--tasks rotation,jigsaw]

The pictures, of 32x32, are kept in memory, and then read from JPEG files; without --data the tool makes
both. The loop does what `fit` does, but for the callbacks: it asks the pipeline for a batch, which is the
waiting, and runs the compiled step on it. The pipeline works on while the step runs, on the same cores,
and so the step itself takes longer than alone, on batches that are ready: the columns "slower" say how many
times, which no deeper buffer would change. In each round all of a task's loops run in turn, so that a
noisy machine disturbs them alike; each column is the median over the rounds.
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
BAR = 0.05  # of the time, from memory


def write_pictures(folder, number, pixels):
    """JPEG files as large as those of photographs of that many pixels: no noise in single pixels."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (number, 8, 8, 3)).astype(np.float32)
    for k, picture in enumerate(coarse):
        picture = tf.image.resize(picture, (pixels, pixels), "bicubic")
        jpeg = tf.io.encode_jpeg(tf.cast(tf.clip_by_value(picture, 0, 255), tf.uint8))
        (folder / f"{k:05d}.jpg").write_bytes(jpeg.numpy())


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
    """What Keras' `fit` compiles, without the iterator, whose waiting is to be timed apart."""
    step = tf.function(task.train_step, reduce_retracing=True)

    def run(batch):
        step(batch)["loss"].numpy()  # waits for a GPU, too

    return run


def loop(step, batches):
    """Seconds that each step took, and that it waited before; without the first ones."""
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
    """(2, sources + 1, rounds) seconds: of steps, and waited; the first without a pipeline."""
    task = make(row, sources[0], options.width)
    step = compiled(task)
    epochs = -(-(WARM_UP + STEPS) * options.batch_size // int(sources[0].cardinality()))
    training = [task.dataset(images, options.batch_size, epochs) for images in sources]
    ready = list(training[0].take(WARM_UP + STEPS))
    variants = [ready, *training]
    # A new iterator in each round: an old one would have filled its buffer while the others ran.
    rounds = [[loop(step, batches) for batches in variants] for _ in range(options.rounds + 1)]
    return np.array(rounds[1:]).T  # the first one traced and compiled


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of pictures, instead of made ones")
    parser.add_argument("--images", type=int, default=2000, help="the first so many pictures")
    parser.add_argument("--jpeg-size", type=int, default=SIZE, help="pixels of the files it makes")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", help="names with commas between them; all by default")
    options = parser.parse_args()
    names = options.tasks.split(",") if options.tasks else [row.name for row in TASKS]
    if unknown := {*names} - {row.name for row in TASKS}:
        parser.error(f"there is no task {', '.join(unknown)}")

    with tempfile.TemporaryDirectory() as temporary:
        if not options.data:
            write_pictures(Path(temporary), options.images, options.jpeg_size)
        files = kssl.data.from_folder(options.data or temporary, SIZE)
        number = min(options.images, int(files.cardinality()))
        files = kssl.data.arrays.subset(
            files, np.arange(number // options.batch_size * options.batch_size)
        )
        memory = kssl.data.from_array(kssl.data.to_arrays(files)["image"])
        rows = [
            ("task", "step alone", "memory: waits", "slower", "", "files: waits", "slower"),
        ]
        for row in TASKS:
            if row.name not in names:
                continue
            try:
                working, waiting = measure(row, [memory, files], options)
            except ValueError as error:
                rows.append((row.name, f"left out: {error}"[:70], *[""] * 5))
                continue
            share = np.median(waiting / (working + waiting), axis=1)
            slower = np.median(working / working[0], axis=1)
            rows.append(
                (
                    row.name,
                    f"{1000 * np.median(working[0]):.0f} ms",
                    f"{share[1]:.1%}", f"{slower[1]:.2f}", "" if share[1] < BAR else "over the bar",
                    f"{share[2]:.1%}", f"{slower[2]:.2f}",
                )
            )  # fmt: skip
            print(*rows[-1], flush=True)
    print(
        f"\n{number} pictures, batch {options.batch_size}, width {options.width}, "
        f"{len(os.sched_getaffinity(0))} cores, median of {options.rounds} rounds; the bar for the waiting "
        f"from memory is {BAR:.0%}"
    )
    print_table(rows)


if __name__ == "__main__":
    main()
