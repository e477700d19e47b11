"""Trains every task on odd batches with narrow encoders, each in its own process, to find heap corruption.

    python tools/soak_steps.py [--steps 200] [--widths 2 4 8 16] [--tasks rotation gan] [--minutes 60]

A kernel that damages the heap crashes its process some steps later, so every task is trained for many steps,
at batch sizes that cannot be split evenly among threads, with a checked heap (`checked_heap.py`). The tool
exits with 1 if a process crashed or a loss was not finite.
"""

import argparse
import inspect
import itertools
import math
import os
import signal
import subprocess
import sys
import time

from checked_heap import CHECKED_HEAP

BATCHES = (5, 3)
IMAGES = 30
SECONDS = 300  # for one process; after that it counts as hung, which a damaged heap can cause
SMALL = {"num_clusters": 5, "num_heads": 2, "filters": 4}


def train(name, width, steps):
    """Trains one task, half of the steps with each batch size; prints the last loss."""
    import keras
    import numpy as np
    from task_samples import required, sample

    from keras_ssl.tasks import TASKS

    keras.utils.set_random_seed(0)
    (row,) = [row for row in TASKS if row.name == name]
    images = sample(row.task.needs, IMAGES)
    encoder = row.task.architecture((32, 32, 3), width=width, blocks=(1, 1))
    known = inspect.signature(row.task).parameters
    small = {k: v for k, v in SMALL.items() if k in known}
    task = row.task(encoder, **required(row.task, encoder, IMAGES), **small)
    task.compile(keras.optimizers.Adam(1e-3), jit_compile=False)
    losses = []
    for size in BATCHES:
        each = IMAGES // size
        epochs = math.ceil(steps / len(BATCHES) / each)
        data = task.dataset(images, size, epochs=epochs)
        callbacks = task.default_callbacks(images)
        history = task.fit(data, epochs=epochs, callbacks=callbacks, verbose=0)
        losses += history.history["loss"]
    assert np.isfinite(losses).all(), f"losses {losses}"
    print(f"loss {losses[-1]:.3f}")


def run(name, width, steps):
    """Trains in a child process; returns whether it succeeded, and the last line of its output."""
    environment = {**os.environ, **CHECKED_HEAP}
    command = [sys.executable, __file__, "--child", name, str(width), "--steps", str(steps)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        ended = subprocess.run(command, **pipes, text=True, env=environment, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return False, f"still running after {SECONDS} s"
    last = (ended.stdout.strip().splitlines() or [""])[-1][:200]
    code = ended.returncode
    if code == 0:
        return True, last
    return False, f"{signal.strsignal(-code) if code < 0 else f'exit code {code}'}: {last}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--widths", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--tasks", nargs="+", help="all by default")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="start no run after this time"
    )
    parser.add_argument("--child", nargs=2, metavar=("TASK", "WIDTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return train(options.child[0], int(options.child[1]), options.steps)

    from keras_ssl.tasks import TASKS

    names = options.tasks or [row.name for row in TASKS]
    start, crashed, done = time.monotonic(), [], 0
    runs = list(itertools.product(names, options.widths))
    for name, width in runs:
        if time.monotonic() - start > 60 * options.minutes:
            break
        began = time.monotonic()
        succeeded, line = run(name, width, options.steps)
        done += 1
        crashed += [] if succeeded else [f"{name} {width}"]
        taken = time.monotonic() - began
        print(
            f"{name:18} {width:3} {'ok' if succeeded else 'CRASHED':7} {taken:4.0f} s  {line}",
            flush=True,
        )
    print(f"{done} of {len(runs)} trained, {len(crashed)} crashed: {', '.join(crashed) or 'none'}")
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(main())
