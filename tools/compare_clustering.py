"""Compares DeepCluster with SeLa on CIFAR-10: same encoder, same training time, same probes.

Prints the table of docs/clustering.md and draws its figure: random members of some clusters.

    python tools/compare_clustering.py --data cifar10/ --minutes 18 --out clustering.png
"""

import argparse
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from budget import TRIAL_STEPS, StepClock, epochs_within, evaluate
from matplotlib.figure import Figure
from sklearn.metrics import normalized_mutual_info_score

import keras_ssl as kssl
from keras_ssl import plotting
from keras_ssl.plotting import print_table
from keras_ssl.training.optimizers import sgd_cosine

CLUSTERS = 128
TASKS = {
    "deep_cluster": (kssl.tasks.DeepCluster, {}),
    "self_label": (kssl.tasks.SelfLabel, {"lam": 10.0, "tolerance": 0.01}),  # the paper's for CIFAR
}


class MeasuredRelabel(kssl.callbacks.Relabel):
    """Relabels, and records the seconds and the agreement with the true classes."""

    seconds, agreement, classes = (), (), None

    def relabel(self):
        start = time.time()
        super().relabel()
        self.seconds = [*self.seconds, time.time() - start]
        head = np.atleast_2d(self.model.labels.numpy())[0]
        self.agreement = [*self.agreement, normalized_mutual_info_score(self.classes, head)]


def new_encoder(width):
    keras.utils.set_random_seed(0)
    return kssl.encoders.resnet((32, 32, 3), width=width, blocks=(1, 1, 1), stem="imagenet")


def new_task(name, number, width):
    task, arguments = TASKS[name]
    return task(new_encoder(width), num_images=number, num_clusters=CLUSTERS, **arguments)


def train(name, images, classes, options):
    """Trains one method for `--minutes`; a trial run of some steps and one relabeling sets the epochs."""
    number = len(classes)
    task = new_task(name, number, options.width)
    task.compile(sgd_cosine(options.learning_rate, TRIAL_STEPS))
    clock = StepClock()
    relabel = MeasuredRelabel(images, when="once" if name == "deep_cluster" else 1)
    relabel.classes = classes
    task.fit(
        task.dataset(images, options.batch_size), steps_per_epoch=TRIAL_STEPS,
        callbacks=[relabel, clock], verbose=0,
    )  # fmt: skip
    steps = -(-number // options.batch_size)
    epoch = clock.seconds_per_step() * steps + relabel.seconds[0]
    epochs = max(2, epochs_within(options.minutes, epoch))
    print(f"{name}: {epoch:.0f} s per epoch, {epochs} epochs", flush=True)

    task = new_task(name, number, options.width)
    task.compile(sgd_cosine(options.learning_rate, epochs * steps))
    when = 1 if name == "deep_cluster" else ("quadratic", epochs)  # equally many relabelings
    relabel = MeasuredRelabel(images, when=when)
    relabel.classes = classes
    start = time.time()
    task.fit(
        task.dataset(images, options.batch_size, epochs=epochs), epochs=epochs,
        callbacks=[relabel], verbose=2,
    )  # fmt: skip
    return task, relabel, epochs, (time.time() - start) / 60


def members(images, labels, axes, title):
    """Draws five random clusters, one per row, with eight random members each."""
    random = np.random.default_rng(0)
    rows = []
    for cluster in random.choice(np.unique(labels), 5, replace=False):
        inside = np.flatnonzero(labels == cluster)
        chosen = random.choice(inside, min(8, len(inside)), replace=False)
        rows.append(
            [
                (images[i], f"{cluster} ({len(inside)})" if j == 0 else "")
                for j, i in enumerate(chosen)
            ]
        )
    plotting.grid(rows, axes, title)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", help="folder with train/ and test/; downloaded without it")
    parser.add_argument("--minutes", type=float, default=18, help="per method")
    parser.add_argument("--methods", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--out", default="clustering.png")
    options = parser.parse_args()

    images, test = (kssl.data.cifar10(options.data, part) for part in ("train", "test"))
    arrays = kssl.data.to_arrays(images)
    figure = Figure((5.4 * len(options.methods), 4.7), layout="constrained", dpi=110)
    axes = np.atleast_1d(figure.subplots(1, len(options.methods)))
    rows = [("", "NMI", "sizes", "s per relabeling", "epochs", "minutes")]
    found = {}
    for name, panel in zip(options.methods, axes, strict=True):
        task, relabel, epochs, minutes = train(name, images, arrays["label"], options)
        results = evaluate(task.encoder, new_encoder(options.width), images, test)
        print(name)
        print_table(kssl.evaluation.table(results))
        head = np.atleast_2d(task.labels.numpy())[0]
        sizes = np.bincount(head, minlength=CLUSTERS)
        spread = f"{sizes.min()} to {sizes.max()}, median {int(np.median(sizes))}"
        seconds = f"{np.median(relabel.seconds):.1f}"
        nmi = f"{relabel.agreement[0]:.3f} to {relabel.agreement[-1]:.3f}"
        rows.append((name, nmi, spread, seconds, str(epochs), f"{minutes:.0f}"))
        found[name] = {"results": results, "row": rows[-1]}
        members(arrays["image"], head, panel, f"{name}: members of five random clusters (size)")
        task.save(f"{name}_cifar10.keras")
    print_table(rows)
    figure.savefig(options.out)
    with open(os.path.splitext(options.out)[0] + ".json", "w") as file:
        json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
