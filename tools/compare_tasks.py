"""Compares tasks on CIFAR-10: same encoder, same training time, same probes.

`transfer` is the knowledge transfer of Jigsaw++: the features of the trained `jigsaw_plus` are clustered,
and a fresh encoder learns to predict the clusters. Generation tasks are also evaluated by PSNR and SSIM of
their reconstructions of test images, versus a baseline, and their predictions are drawn.

    python tools/compare_tasks.py --data cifar10/ --minutes 12 --tasks relative_patch jigsaw
"""

import argparse
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from budget import StepClock, evaluate, random_subset

import keras_ssl as kssl
from keras_ssl import plotting
from keras_ssl.plotting import print_table
from keras_ssl.protocols import Reconstructs

TRIAL_STEPS = 40
EXEMPLARS = 8_000  # classes of the exemplar task, as in its paper
TASKS = {
    "relative_patch": lambda e: kssl.tasks.RelativePatch(e, grid=2, color="projection"),
    "jigsaw": lambda e: kssl.tasks.Jigsaw(e, grid=2),
    "jigsaw_plus": lambda e: kssl.tasks.JigsawPlus(e, grid=2),
    "transfer": lambda e: kssl.tasks.DeepCluster(e, num_images=50_000),
    "exemplar": lambda e: kssl.tasks.Exemplar(e, num_images=EXEMPLARS),
    "exemplar_triplet": kssl.tasks.ExemplarTriplet,
    "colorization": kssl.tasks.Colorization,
    "colorization_bins": lambda e: kssl.tasks.Colorization(e, target="ab_bins"),
    "inpainting": kssl.tasks.Inpainting,
    "super_resolution": kssl.tasks.SuperResolution,
    "super_resolution_4": lambda e: kssl.tasks.SuperResolution(e, scale=4),
    "gan": kssl.tasks.GAN,
}


def new_encoder(options):
    keras.utils.set_random_seed(0)
    return kssl.encoders.resnet((32, 32, 3), options.width, (1, 1, 1), options.stem)


def fit(name, images, steps, options, callbacks=()):
    """Trains a new task for about `steps` steps; returns it, its last logs and the seconds per step."""
    task, clock = TASKS[name](new_encoder(options)), StepClock()
    per_epoch = -(-int(images.cardinality()) // options.batch_size)
    epochs = max(1, round(steps / per_epoch))
    task.compile(task.default_optimizer(min(steps, epochs * per_epoch)))
    history = task.fit(
        task.dataset(images, options.batch_size, epochs=epochs), epochs=epochs, verbose=2,
        steps_per_epoch=steps if steps < per_epoch else None, callbacks=[*callbacks, clock],
    )  # fmt: skip
    logs = {name: values[-1] for name, values in history.history.items()}
    return task, logs, clock.seconds_per_step(skip=5)


def fit_minutes(name, images, options, callbacks=()):
    """Trains for `--minutes`, after a trial run that times a step; returns the task, its logs and budget."""
    per_step = fit(name, images, TRIAL_STEPS, options, callbacks)[2]
    start = time.time()
    task, logs, _ = fit(name, images, round(options.minutes * 60 / per_step), options, callbacks)
    steps = int(task.optimizer.iterations)
    return task, {"logs": logs, "steps": steps, "minutes": (time.time() - start) / 60}


def pretext_score(task, logs, test):
    """Formats the pretext metric: accuracy, PSNR, or diversity of the samples."""
    if "accuracy" in logs:
        return f"{100 * logs['accuracy']:.1f}"
    if isinstance(task, Reconstructs):
        found = kssl.evaluation.reconstruction(task, test)
        print_table([list(found), [f"{value:.3f}" for value in found.values()]])
        return f"{found['psnr']:.2f} dB ({found['psnr'] - found['baseline_psnr']:+.2f})"
    made = 127.5 * (task.generate(keras.random.normal((1000, task.codes))).numpy() + 1)
    real = kssl.data.to_arrays(test.shard(10, 0))["image"].astype("float32")
    return f"diversity {np.sqrt(made.var(axis=0).mean() / real.var(axis=0).mean()):.2f}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", help="folder with train/ and test/; downloaded without it")
    parser.add_argument("--minutes", type=float, default=12, help="per task")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--stem", choices=["imagenet", "small"], default="imagenet")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--out", default=".", help="folder for <task>_cifar10.keras and .json")
    options = parser.parse_args()

    images, test = (kssl.data.cifar10(options.data, part) for part in ("train", "test"))
    rows = [("task", "pretext", "best stage", "linear", "untrained", "kNN", "steps", "minutes")]
    for name in options.tasks:
        path = os.path.join(options.out, f"{name}_cifar10")
        callbacks = []
        if name == "transfer":
            teacher = os.path.join(options.out, "jigsaw_plus_cifar10.keras")
            teacher = keras.models.load_model(teacher).encoder
            callbacks = [kssl.callbacks.Relabel(images, when="once", teacher=teacher)]
        seen = random_subset(images, EXEMPLARS) if name == "exemplar" else images
        task, found = fit_minutes(name, seen, options, callbacks)
        results = evaluate(task.encoder, new_encoder(options), images, test)
        print(name, flush=True)
        print_table(kssl.evaluation.table(results))
        stages = {k: v for k, v in results.items() if k != "chance"}
        best = max(stages, key=lambda stage: stages[stage]["linear"])
        untrained = max(row["linear_untrained"] for row in stages.values())
        accuracies = stages[best]["linear"], untrained, stages[best]["knn"]
        accuracies = [f"{100 * accuracy:.1f}" for accuracy in accuracies]
        pretext = pretext_score(task, found["logs"], test)
        if "accuracy" not in found["logs"]:  # a generation task
            drawn = kssl.callbacks.predicted(task, *next(iter(task.dataset(test, 8))))
            plotting.grid(drawn, title=name).savefig(f"{path}.png")
        budget = f"{found['steps']:,}", f"{found['minutes']:.0f}"
        rows.append((name, pretext, best, *accuracies, *budget))
        task.save(f"{path}.keras")
        with open(f"{path}.json", "w") as file:
            json.dump({**found, "results": results, "row": rows[-1]}, file, indent=1)
    print_table(rows)


if __name__ == "__main__":
    main()
