"""Tasks on CIFAR-10: same encoder, same minutes, judged by the same probes.

`transfer` is the knowledge transfer of Jigsaw++: the features of the trained `jigsaw_plus` are clustered,
and a fresh encoder learns to predict the clusters. Generation tasks are also judged by what they give back on
the test pictures, beside the trivial answer, and draw it.

    python tools/compare_tasks.py --data cifar10/ --minutes 12 --tasks relative_patch jigsaw
"""

import argparse
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_ssl as kssl
from keras_ssl import plotting
from keras_ssl.plotting import print_table

LABELS, TRIAL = 10_000, 40
SEEDS = 8_000  # classes of the exemplar task, as in its paper
TASKS = {
    "relative_patch": lambda e: kssl.tasks.RelativePatch(e, grid=2, color="projection"),
    "jigsaw": lambda e: kssl.tasks.Jigsaw(e, grid=2),
    "jigsaw_plus": lambda e: kssl.tasks.JigsawPlus(e, grid=2),
    "transfer": lambda e: kssl.tasks.DeepCluster(e, num_images=50_000),
    "exemplar": lambda e: kssl.tasks.Exemplar(e, num_images=SEEDS),
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
    """Trains a new task for about so many steps; gives it, its last logs and the seconds a step."""
    task = TASKS[name](new_encoder(options))
    times = []
    clock = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: times.append(time.time())
    )
    per_epoch = -(-int(images.cardinality()) // options.batch_size)
    epochs = max(1, round(steps / per_epoch))
    task.compile(task.default_optimizer(min(steps, epochs * per_epoch)))
    history = task.fit(
        task.dataset(images, options.batch_size, epochs=epochs), epochs=epochs, verbose=2,
        steps_per_epoch=steps if steps < per_epoch else None, callbacks=[*callbacks, clock],
    )  # fmt: skip
    logs = {name: values[-1] for name, values in history.history.items()}
    return task, logs, float(np.median(np.diff(times[5:])))


def fit_minutes(name, images, options, callbacks=()):
    """Trains for `--minutes`; the steps follow from a trial. Gives the task and what became of it."""
    per_step = fit(name, images, TRIAL, options, callbacks)[2]
    start = time.time()
    task, logs, _ = fit(name, images, round(options.minutes * 60 / per_step), options, callbacks)
    steps = int(task.optimizer.iterations)
    return task, {"logs": logs, "steps": steps, "minutes": (time.time() - start) / 60}


def pretext_figure(task, logs, test):
    """How well the task itself is solved, in a few characters."""
    if "accuracy" in logs:
        return f"{100 * logs['accuracy']:.1f}"
    if hasattr(task, "restore"):
        found = kssl.evaluation.reconstruction(task, test)
        print_table([list(found), [f"{value:.3f}" for value in found.values()]])
        return f"{found['psnr']:.2f} dB ({found['psnr'] - found['trivial_psnr']:+.2f})"
    made = 127.5 * (task.generate(keras.random.normal((1000, task.codes))).numpy() + 1)
    real = kssl.data.to_arrays(test.shard(10, 0))["image"].astype("float32")
    return f"diversity {np.sqrt(made.var(axis=0).mean() / real.var(axis=0).mean()):.2f}"


def judge(encoder, images, test, options):
    arrays = kssl.data.to_arrays(images)
    few = np.random.default_rng(0).permutation(len(arrays["id"]))[:LABELS]
    labelled = kssl.data.from_array(arrays["image"][few], arrays["label"][few])
    return kssl.evaluation.compare(encoder, new_encoder(options), labelled, test)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", help="folder with train/ and test/; downloaded without it")
    parser.add_argument("--minutes", type=float, default=12, help="of each task")
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
        seen = images.take(SEEDS) if name == "exemplar" else images
        task, found = fit_minutes(name, seen, options, callbacks)
        results = judge(task.encoder, images, test, options)
        print(name, flush=True)
        print_table(kssl.evaluation.table(results))
        stages = {k: v for k, v in results.items() if k != "chance"}
        best = max(stages, key=lambda stage: stages[stage]["linear"])
        untrained = max(row["linear_untrained"] for row in stages.values())
        figures = stages[best]["linear"], untrained, stages[best]["knn"]
        figures = [f"{100 * figure:.1f}" for figure in figures]
        pretext = pretext_figure(task, found["logs"], test)
        if "accuracy" not in found["logs"]:  # a generation task
            drawn = kssl.callbacks.predicted(task, *next(iter(task.dataset(test, 8))))
            plotting.grid(drawn, title=name).savefig(f"{path}.png")
        budget = f"{found['steps']:,}", f"{found['minutes']:.0f}"
        rows.append((name, pretext, best, *figures, *budget))
        task.save(f"{path}.keras")
        with open(f"{path}.json", "w") as file:
            json.dump({**found, "results": results, "row": rows[-1]}, file, indent=1)
    print_table(rows)


if __name__ == "__main__":
    main()
