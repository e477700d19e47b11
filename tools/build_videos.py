"""Trains the tasks on video with clips of moving shapes, and exports saved_models/<task>_videos.

All tasks train the zoo's encoder, `resnet((32, 32, 3), width=16)`, in bfloat16 on 20,000 generated clips of
five frames, with the same number of views; two shapes move in each clip, and so does the camera. Other clips
measure the task itself. The features are measured by retrieval: 250 further objects have eight clips each, in
different places, with different motion and backgrounds. The metric is how often the nearest neighbor shows
the same object. The stage is selected on half of the objects, and the result is reported on the others.

    python tools/build_videos.py untrained temporal_order moving_objects
"""

import argparse
import functools
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import sprites
from build_zoo import VIEWS, WIDTH, new_encoder
from moving_objects import iou
from zoo_training import train_views

import keras_ssl as kssl
from keras_ssl.plotting import print_table

TRAIN, TEST, SIZE, FRAMES, BATCH = 20_000, 2_000, 32, 5, 128
OBJECTS, CLIPS_EACH = 250, 8
DRIFT = 1  # pixels per frame, of the camera
# With the defaults of order_prediction, the shapes would move less than the frames are shifted:
# docs/video.md.
TASKS = {
    "temporal_order": {},
    "order_prediction": {"jitter": 0.03, "split_channels": False},
    "frame_prediction": {},
    "moving_objects": {},
}


def moving_clips(number, seed, **more):
    """Makes clips of moving shapes: (images, exact masks of the middle frames)."""
    frames, masks = sprites.clips(number, SIZE, FRAMES, seed, drift=DRIFT, **more)
    middle = FRAMES // 2
    images = kssl.data.from_array(frames[:, middle], frames=frames)
    return images, masks[:, middle, ..., None].astype(np.float32)


def labeled(name, images):
    """Returns the images with the columns that the task needs, computed once."""
    if name != "moving_objects":
        return images
    columns = kssl.data.to_arrays(kssl.data.with_motion_masks(images))
    return kssl.data.from_array(columns["image"], moving=columns["moving"])


def new_task(name, policy):
    keras.config.set_dtype_policy(policy)
    task = next(row.task for row in kssl.tasks.TASKS if row.name == name)
    return task(new_encoder(), **TASKS[name])


def pretext_metrics(task, name, images, masks):
    """Measures the task itself on clips that it was not trained on, and on clips without motion."""
    task.compile("sgd")
    if name == "frame_prediction":
        return kssl.evaluation.frame_prediction(task, task.dataset(images, 100, seed=1))
    if name == "moving_objects":
        columns = kssl.data.to_arrays(images)
        found = task.prediction(columns["image"])["moving"].numpy()
        labels = kssl.data.to_arrays(kssl.data.with_motion_masks(images))["moving"]
        known = (labels == 1).any((1, 2, 3))
        return {
            "iou": float(iou(found, masks).mean()),
            "iou_of_labels": float(iou(labels[known], masks[known]).mean()),
            "labeled": float(known.mean()),
        }
    frames = kssl.data.to_arrays(images)["frames"]
    still = np.repeat(frames[:, :1], FRAMES, axis=1)
    parts = {"": images, "still_": kssl.data.from_array(frames[:, 0], frames=still)}
    return {
        f"{prefix}accuracy": task.evaluate(
            task.dataset(part, 100, seed=1), verbose=0, return_dict=True
        )["accuracy"]
        for prefix, part in parts.items()
    }


def retrieval(encoder):
    """Computes, for each stage, how often the nearest neighbor of an image shows the same object.

    Returns:
        dict by stage of dicts: `selection`, the fraction for the objects on which the stage is selected;
        `same_object`, the fraction for the others; and `selected`.
    """
    names = np.repeat(np.arange(OBJECTS), CLIPS_EACH)
    images, _ = moving_clips(len(names), seed=2, shapes=1, objects=names)
    features, _ = kssl.evaluation.extract(encoder, images)
    parts = {"selection": names < OBJECTS // 2, "same_object": names >= OBJECTS // 2}
    rows = {
        stage: {
            key: kssl.evaluation.retrieval(found[part] - found[part].mean(0), names[part])["top1"]
            for key, part in parts.items()
        }
        for stage, found in features.items()
    }
    best = max(rows, key=lambda stage: rows[stage]["selection"])
    return {stage: {**row, "selected": stage == best} for stage, row in rows.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("tasks", nargs="+", metavar="TASK", choices=[*TASKS, "untrained"])
    parser.add_argument("--views", type=int, default=VIEWS, help="of 32x32 pixels")
    parser.add_argument("--precision", default="mixed_bfloat16")
    parser.add_argument("--out", default="saved_models")
    options = parser.parse_args()

    clips, (others, masks) = moving_clips(TRAIN, seed=0)[0], moving_clips(TEST, seed=1)
    for name in options.tasks:
        if name == "untrained":
            results = retrieval(new_encoder())
        else:
            make = functools.partial(new_task, name)
            task, card = train_views(make, labeled(name, clips), BATCH, options)
            results = retrieval(task.encoder)
            card |= {
                "arguments": TASKS[name],
                "data": f"{TRAIN:,} generated clips of {FRAMES} frames, two shapes that move in each",
                "encoder": f"resnet, width {WIDTH}",
                "pretext": pretext_metrics(task, name, others, masks),
                "results": {"retrieval": results},
                "license": "Apache-2.0",
            }
            print(kssl.export(task, Path(options.out) / f"{name}_videos", card), card["pretext"])
        lines = [
            (stage, f"{100 * row['same_object']:.1f}", "selected" if row["selected"] else "")
            for stage, row in results.items()
        ]
        print_table([(name, "same object", ""), *lines])


if __name__ == "__main__":
    main()
