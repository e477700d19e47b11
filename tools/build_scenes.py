"""Trains tasks on rendered scenes, evaluates them on others, and exports saved_models/<task>_scenes.

All tasks train the zoo's encoder, `resnet((32, 32, 3), width=16)`, in bfloat16 on clips of 20,000 scenes,
with the same number of views. Other scenes, with more shapes in each, are used to measure the task itself,
and three linear probes of the frozen features: the kind of the largest shape, the kind of the nearest one,
and the number of shapes. The tool prints the probes of the selected stages; all numbers are in the cards of
the exports.

    python tools/build_scenes.py untrained ego_motion rgb_depth --real cifar10/

`--real` is a folder with train/<class>/ of images for the task that needs real images; `--teacher` is a
trained model for the task that learns from another network. Scenes are rendered once, into the folder
`--work`.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from build_zoo import VIEWS, WIDTH, new_encoder, selected
from zoo_training import train_views

import keras_ssl as kssl
from keras_ssl.data.renderer.render import CLASSES
from keras_ssl.metrics import abs_rel
from keras_ssl.ops import depth
from keras_ssl.plotting import print_table

TRAIN, TEST, LABELS, SIZE, FRAMES, BATCH = 20_000, 2_000, 4_000, 32, 3, 128
CLUTTER = (8, 14)  # shapes in each of the test scenes; training scenes have 4 to 10
CAMERA = {"exposure": 0.3, "noise": 3.0}
SEEN = 4  # visible pixels from which a shape counts
KINDS = ("sphere", "cylinder", "cone", "box")
TASKS = ("synthetic_multitask", "relative_depth", "rgb_depth", "depth_distillation", "ego_motion")


def rendered(folder):
    """Renders the scenes once: two datasets of all columns."""
    parts = {
        "train": kssl.data.scenes(TRAIN, SIZE, FRAMES, seed=0, **CAMERA),
        "test": kssl.data.scenes(TEST + LABELS, SIZE, FRAMES, seed=1, objects=CLUTTER, **CAMERA),
    }
    for name, clips in parts.items():
        clips = kssl.data.with_relative_depth(clips)
        kssl.data.to_tfrecord(clips, Path(folder, name))  # keeps the files of a killed run
    return [kssl.data.from_tfrecord(Path(folder, name), SIZE) for name in parts]


def label(row):
    """Returns the labels that the probes predict for a scene: a dict of str or int, None without a shape."""
    instances, kinds = row["instances"].ravel(), row["classes"].ravel()
    shapes = {}
    for number in np.unique(instances[instances > 0]):
        own = instances == number
        if own.sum() >= SEEN:
            kind = CLASSES[kinds[own][0]]
            shapes[number] = own.sum(), np.median(row["depth"].ravel()[own]), kind
    return {
        "largest": max(shapes.values(), key=lambda s: s[0])[2] if shapes else None,
        "nearest": min(shapes.values(), key=lambda s: s[1])[2] if shapes else None,
        "number": len(shapes),
    }


def probes(encoder, scenes, test, see):
    """Computes the accuracy of the linear probes by stage.

    Args:
        encoder: keras.Model with named stages.
        scenes, test: lists of rows, dicts of arrays.
        see: function from a row to the image that the encoder gets.

    Returns:
        dict from the probe to the result of `probe_stages`.
    """
    found = {}
    labels = [[label(row) for row in part] for part in (scenes, test)]
    for name in ("largest", "nearest", "number"):
        parts = []
        for rows, known in zip((scenes, test), labels, strict=True):
            chosen = [k for k, values in enumerate(known) if values[name] is not None]
            values = [known[k][name] for k in chosen]
            codes = [KINDS.index(v) if isinstance(v, str) else v for v in values]
            pixels = np.stack([see(rows[k]) for k in chosen])
            parts.append(kssl.data.from_array(pixels, np.array(codes)))
        found[name] = kssl.evaluation.probe_stages(encoder, *parts)[0]
    return found


def rgb(row):
    return row["image"]


def range_image(row):
    return np.asarray(depth.to_image(row["depth"], 0.5, 100.0))


def class_of(name):
    return next(row.task for row in kssl.tasks.TASKS if row.name == name)


def new_task(name, policy, teacher):
    keras.config.set_dtype_policy(policy)
    task = class_of(name)
    networks = {"teacher": kssl.load(teacher)} if "teacher" in task.networks else {}
    return task(new_encoder(), **networks)


def train(name, clips, options):
    """Trains a task for the budget; returns it in float32, and the card's entry about the training."""

    def make(policy):
        return new_task(name, policy, options.teacher)

    if "real" in class_of(name).needs:
        real = kssl.data.from_folder(Path(options.real) / "train", SIZE, check=False)
        clips = kssl.data.paired(clips, real=real)
    return train_views(make, clips, BATCH, options)


def pretext_metrics(task, test, clips):
    """Measures the task itself on the test scenes, and its baselines."""
    task.compile("sgd")
    if "real" in task.needs:
        test = kssl.data.paired(test, real=clips)
    data = task.dataset(test, 100, seed=1)
    found = task.evaluate(data, verbose=0, return_dict=True)
    if isinstance(task, kssl.tasks.EgoMotion):
        found["majority_accuracy"] = task.majority_accuracy(data)
    if isinstance(task, kssl.tasks.RGBDepth):
        maps = kssl.data.to_arrays(clips)["depth"]
        true = kssl.data.to_arrays(test)["depth"]
        for kind, axes in (("mean_depth", None), ("mean_depth_map", 0)):
            guess = np.nanmean(maps, axis=axes)
            found[f"abs_rel_of_{kind}"] = float(tf.reduce_mean(abs_rel(true, guess)))
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("tasks", nargs="+", metavar="TASK", choices=[*TASKS, "untrained"])
    parser.add_argument("--real", help="folder with train/<class>/ of real images")
    parser.add_argument("--teacher", default="simclr_cifar10")
    parser.add_argument("--views", type=int, default=VIEWS, help="of 32x32 pixels")
    parser.add_argument("--precision", default="mixed_bfloat16")
    parser.add_argument("--out", default="saved_models")
    parser.add_argument("--work", default="scenes", help="folder for the rendered scenes")
    options = parser.parse_args()

    clips, others = rendered(options.work)
    test, labeled = (kssl.data.subset(others, r) for r in (range(TEST), range(TEST, TEST + LABELS)))
    rows = [list(part.as_numpy_iterator()) for part in (labeled, test)]
    for name in options.tasks:
        task, card = (None, {}) if name == "untrained" else train(name, clips, options)
        encoder = new_encoder() if task is None else task.encoder
        seen = {"image": rgb, "depth": range_image}
        if name == "depth_distillation":
            seen.pop("image")
        elif task is not None:
            seen.pop("depth")
        results = {kind: probes(encoder, *rows, see) for kind, see in seen.items()}
        if task is not None:
            card |= {
                "data": f"{TRAIN:,} rendered clips of {FRAMES} frames",
                "encoder": f"resnet, width {WIDTH}",
                "pretext": pretext_metrics(task, test, clips),
                "results": results,
                "license": "Apache-2.0",
            }
            print(kssl.export(task, Path(options.out) / f"{name}_scenes", card), card["pretext"])
        for kind, found in results.items():
            best = {probe: selected(stages) for probe, stages in found.items()}
            lines = [(p, stage, f"{100 * row['linear']:.1f}") for p, (stage, row) in best.items()]
            print_table([(f"{name}, {kind}", "stage", "linear"), *lines])


if __name__ == "__main__":
    main()
