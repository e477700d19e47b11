"""Kills training runs by SIGKILL at random steps, and compares them bit for bit with uninterrupted ones.

    python tools/soak_resume.py [--kills 10] [--tasks rotation exemplar_triplet deep_cluster gan]

By default, ten tasks of several families are trained. Every run is a process that kills itself after a random
step and is restarted with the same arguments until it completes; the process that completes a task continues
with the next one. It writes a checkpoint every second step, so that about half of the kills lose a step. At
the end all variables are compared: weights, labels, centroids, and the slots of all optimizers.
"""

import argparse
import inspect
import itertools
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TASKS = [
    "rotation", "exemplar_triplet", "deep_cluster", "self_label", "inpainting", "gan", "moco", "byol",
    "cmc", "pcl",
]  # fmt: skip
IMAGES, BATCH, EPOCHS = 40, 8, 6
STEPS = EPOCHS * IMAGES // BATCH


def train(folder, names, kill_at):
    """Trains the tasks one after another; sends itself SIGKILL after `kill_at` steps."""
    import keras
    from task_samples import required, sample

    import keras_ssl as kssl
    from keras_ssl.tasks import TASKS as ROWS

    class Kill(keras.callbacks.Callback):
        steps = 0

        def on_train_batch_end(self, batch, logs=None):
            Kill.steps += 1
            if Kill.steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    classes = {row.name: row.task for row in ROWS}
    for name in names:
        images = sample(classes[name].needs, IMAGES)
        keras.utils.set_random_seed(0)
        encoder = classes[name].architecture((32, 32, 3), width=4, blocks=(1,))
        known = inspect.signature(classes[name]).parameters
        small = {
            "num_clusters": 5,
            "num_heads": 2,
            "relabelings": 4,
            "filters": 4,
            "queue": 20,
            "hidden": 16,
        }
        small = {k: v for k, v in small.items() if k in known}
        task = classes[name](encoder, **required(classes[name], encoder, IMAGES), **small)
        task.compile(keras.optimizers.Adam(1e-3))
        # The kill comes first, so it may hit a step that is about to be saved.
        watching = [*task.default_callbacks(images), Kill()]
        watching.append(kssl.callbacks.Checkpoint(folder / name, every_steps=2))
        data = task.dataset(images, BATCH, epochs=EPOCHS, seed=3)
        task.fit(data, epochs=EPOCHS, callbacks=watching, verbose=0)
        np.savez(folder / f"{name}.npz", *[v.numpy() for v in task.state()])


def reached(folder):
    """Returns the step of the newest checkpoint, where a restarted run continues; 0 if there is none."""
    saved = sorted(folder.glob("step-*.npz"))
    return int(saved[-1].stem[5:]) if saved else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "STEP"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return train(Path(options.child[0]), options.tasks, int(options.child[1]))

    def run(folder, names, kill_at=0):
        command = [
            sys.executable,
            __file__,
            "--child",
            str(folder),
            str(kill_at),
            "--tasks",
            *names,
        ]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        if done.returncode not in (0, -signal.SIGKILL):
            print(done.stderr, file=sys.stderr)
        return done.returncode

    random = np.random.default_rng(options.seed)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        alone, killed = Path(folder, "alone"), Path(folder, "killed")
        alone.mkdir()
        killed.mkdir()
        assert run(alone, options.tasks) == 0
        places = {name: [] for name in options.tasks}
        for previous, name in itertools.pairwise([None, *options.tasks]):
            for left in range(options.kills, 0, -1):
                done = reached(killed / name)
                at = int(random.integers(1, max(1, (STEPS - done) // left) + 1))
                names, first = [name], 0
                if previous and not places[name]:  # the last process was killed in `previous`
                    names, first = [previous, name], STEPS - reached(killed / previous)
                code = run(killed, names, first + at)
                assert code == -signal.SIGKILL, f"{name}: exit code {code}"
                places[name].append(done + at)
        assert run(killed, options.tasks[-1:] if options.kills else options.tasks) == 0
        for name in options.tasks:
            with np.load(alone / f"{name}.npz") as a, np.load(killed / f"{name}.npz") as b:
                different = [key for key in a if not np.array_equal(a[key], b[key])]
                wrong += bool(different)
                print(
                    f"{name}: killed after steps {places[name]} of {STEPS}; {len(a.files)} variables, "
                    f"{len(different)} differ",
                    flush=True,
                )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
