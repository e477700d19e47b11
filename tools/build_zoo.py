"""Trains tasks on CIFAR-10 at the zoo's budget, evaluates them and exports saved_models/<task>_cifar10.

All tasks train the same encoder, `resnet((32, 32, 3), width=16)`, or the architecture that they need with as
many features, on the same number of views. The budget is 600,000 views: images of 32x32 pixels that pass
through the network forward and backward. Tiles count by their pixels, and a forward pass alone, as in a
relabeling or a momentum encoder, counts a third of a view. A run that was killed resumes from its checkpoints
in `--work`. docs/zoo.md is drawn from the cards of the exports by tools/draw_zoo.py.

    python tools/build_zoo.py rotation jigsaw --data cifar10/
    python tools/build_zoo.py untrained --data cifar10/         # the row that all others are compared with

`--data` is a folder with train/<class>/ and test/<class>/; without it Keras downloads CIFAR-10. Training runs
in bfloat16, evaluation and export in float32.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from budget import StepClock, random_subset
from zoo_training import copy_weights, training_record, views_per_image

import keras_ssl as kssl
from keras_ssl.plotting import print_table
from keras_ssl.protocols import Reconstructs

VIEWS, LABELS, WIDTH, SEEDS = 600_000, 10_000, 16, (0, 1)
EXEMPLARS = 8_000  # images of the exemplar task, as in its paper
RELABELINGS = 10
LOCAL_WIDTH = 64  # of local encoders, whose last stage then has 128 features, like the others
# Arguments and batch size of each task; the sizes are for images of 32 pixels.
TASKS = {
    "rotation": ({}, 64),
    "relative_patch": ({"grid": 2, "color": "projection"}, 128),
    "jigsaw": ({"grid": 2}, 128),
    "jigsaw_plus": ({"grid": 2}, 128),
    "exemplar": ({"num_images": EXEMPLARS}, 128),
    "exemplar_triplet": ({}, 128),
    "colorization": ({}, 128),
    "inpainting": ({}, 128),
    "super_resolution": ({}, 128),
    "gan": ({}, 128),
    "deep_cluster": ({"num_images": 50_000, "num_clusters": 128}, 128),
    # The authors' values for CIFAR, with relabelings for this budget.
    "self_label": (
        {"num_images": 50_000, "lam": 10.0, "tolerance": 0.01, "relabelings": RELABELINGS}, 128,
    ),
    "sift_clusters": ({"num_images": 50_000}, 128),
    "simclr": ({"temperature": 0.2}, 256),
    "moco": ({}, 256),
    "byol": ({}, 64),
    "supcon": ({}, 256),
    "align_uniform": ({}, 256),
    # An image has to be seen many times before it can be found in the memory, so fewer images and more
    # epochs.
    "pirl": ({"num_images": EXEMPLARS, "grid": 2}, 256),
    "cmc": ({"num_images": EXEMPLARS}, 256),
    "pcl": ({"num_images": 50_000}, 256),
    "cpc": ({}, 32),
    "amdim": ({}, 128),
    "deep_infomax": ({}, 64),
    "synthetic_multitask": ({}, 128),
}  # fmt: skip

# Peak learning rates, for tasks where the authors' rate, for hundreds of epochs, is too small for this
# budget.
RATES = {"cmc": 0.1, "cpc": 1e-3, "pirl": 0.1}


def new_encoder(seed=0, architecture=kssl.encoders.resnet):
    keras.utils.set_random_seed(seed)
    return architecture((32, 32, 3), width_of(architecture))


def width_of(architecture):
    return LOCAL_WIDTH if architecture is kssl.encoders.local_resnet else WIDTH


def new_task(name, policy):
    keras.config.set_dtype_policy(policy)
    task = next(row.task for row in kssl.tasks.TASKS if row.name == name)
    return task(new_encoder(architecture=task.architecture), **TASKS[name][0])


def number_of_images(name, images):
    """Returns the number of images on which a task is trained."""
    return TASKS[name][0].get("num_images", int(images.cardinality()))


def train(name, images, options):
    """Trains a task for the budget; returns the task in float32, and a dict with its entries of the card."""
    keras.utils.clear_session()
    task, batch_size = new_task(name, options.precision), TASKS[name][1]
    number = number_of_images(name, images)
    if number < int(images.cardinality()):
        images = random_subset(images, number)
    images = with_rendered(task, images)
    cost = views_per_image(task, next(iter(task.dataset(images, batch_size)))[0])
    epochs = max(1, round(options.views / cost / number))
    rate = {"learning_rate": RATES[name]} if name in RATES else {}
    task.compile(task.default_optimizer(epochs * -(-number // batch_size), **rate))
    folder, clock = Path(options.work) / name, StepClock()
    saved = kssl.callbacks.Checkpoint(folder, every_steps=500, keep=1)
    data = task.dataset(images, batch_size, epochs=epochs)
    history = task.fit(
        data, epochs=epochs, verbose=2, callbacks=[*task.default_callbacks(images), saved, clock]
    ).history
    found = folder / "training.json"
    if history:
        more = {"arguments": TASKS[name][0], **rate, "precision": options.precision}
        record = training_record(history, clock, cost, number, epochs, batch_size)
        found.write_text(json.dumps({**record, **more}))
    plain = new_task(name, "float32")
    plain.dataset(images, batch_size)  # colorization measures its colors
    copy_weights(task, plain)
    return plain, json.loads(found.read_text())


def with_rendered(task, images, seed=0):
    """Pairs images with rendered scenes, for a task that needs both."""
    if "real" not in task.needs:
        return images
    return kssl.data.paired(kssl.data.scenes(int(images.cardinality()), 32, seed=seed), real=images)


def measure(encoder, images, test):
    """Evaluates an encoder: a dict of probes by stage, fine-tuning and the geometry of the features."""
    labeled = random_subset(images, LABELS)
    rows, _ = kssl.evaluation.probe_stages(encoder, labeled, test)
    features, mirrored = (
        kssl.evaluation.extract(encoder, part)[0]["features"] for part in (test, test.map(flip))
    )
    return {
        "stages": rows,
        "fine_tuned_10": kssl.evaluation.fine_tune(encoder, images, test, fraction=0.1),
        "effective_rank": kssl.evaluation.effective_rank(features),
        "alignment": kssl.evaluation.alignment(features, mirrored),
        "uniformity": kssl.evaluation.uniformity(features),
    }


def selected(rows):
    """Returns the name and the row of the stage that was selected on held-out labels."""
    return next((name, row) for name, row in rows.items() if row["selected"])


def best_linear(encoder, images, test):
    """Returns the accuracy of the linear probe on the selected stage."""
    rows, _ = kssl.evaluation.probe_stages(encoder, random_subset(images, LABELS), test)
    return selected(rows)[1]["linear"]


def name_encoder(kind):
    """Describes an architecture, `encoders.resnet` or another function or functools.partial of one."""
    name = getattr(kind, "func", kind).__name__
    more = "".join(f", {k} {v}" for k, v in getattr(kind, "keywords", {}).items())
    return f"{name}, width {width_of(kind)}{more}"


def flip(row):
    """Mirrors the image of a row."""
    return {**row, "image": row["image"][:, ::-1]}


def pretext_metrics(task, test):
    """Measures the task itself on the test images: its metrics, or PSNR and SSIM versus the baseline."""
    if isinstance(task, Reconstructs):
        return kssl.evaluation.reconstruction(task, test)
    if hasattr(task, "num_images") or isinstance(task, kssl.tasks.GAN):
        return {}  # other images have no labels, and no rows in a memory of all images
    task.compile("sgd")
    test = with_rendered(task, test, seed=1)
    return task.evaluate(task.dataset(test, 100, seed=1), verbose=0, return_dict=True)


def build(name, images, test, options):
    task, found = train(name, images, options)
    labels = "with labels" if "label" in task.needs else "no labels"
    number = number_of_images(name, images)
    source = "a JPEG copy of CIFAR-10 (accuracies differ slightly from the original pixels)"
    results = measure(task.encoder, images, test)
    kind = task.architecture
    if kind is not kssl.encoders.resnet:  # the gain is relative to this
        encoders = (new_encoder(seed, kind) for seed in SEEDS)
        found["untrained"] = [best_linear(encoder, images, test) for encoder in encoders]
    card = {
        **found,
        "data": f"{source if options.data else 'CIFAR-10'}, {number:,} training images, {labels}",
        "encoder": name_encoder(kind),
        "pretext": pretext_metrics(task, test),
        "labels": LABELS,
        "test_images": int(test.cardinality()),
        "results": results,
        "license": "Apache-2.0 (weights); CIFAR-10: Krizhevsky 2009, for research",
    }
    path = kssl.export(task, Path(options.out) / f"{name}_cifar10", card)
    shutil.rmtree(Path(options.work) / name)
    print(path, flush=True)
    return results


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("tasks", nargs="+", metavar="TASK", choices=[*TASKS, "untrained"])
    parser.add_argument("--data", help="folder with train/ and test/; downloaded without it")
    parser.add_argument("--views", type=int, default=VIEWS, help="of 32x32 pixels")
    parser.add_argument("--precision", default="mixed_bfloat16")
    parser.add_argument("--out", default="saved_models")
    parser.add_argument("--work", default="zoo_checkpoints", help="folder for checkpoints")
    options = parser.parse_args()

    arrays = [kssl.data.to_arrays(kssl.data.cifar10(options.data, s)) for s in ("train", "test")]
    images, test = (kssl.data.from_array(a["image"], a["label"]) for a in arrays)
    for name in options.tasks:
        if name == "untrained":
            found = {str(seed): measure(new_encoder(seed), images, test) for seed in SEEDS}
            Path(options.out, "untrained.json").write_text(json.dumps(found, indent=1) + "\n")
            continue
        results = build(name, images, test, options)
        rows = [
            (stage, *(f"{100 * row[k]:.1f}" for k in ("knn", "knn200", "linear")))
            for stage, row in results["stages"].items()
        ]
        print_table([(name, "kNN", "kNN 200", "linear"), *rows])


if __name__ == "__main__":
    main()
