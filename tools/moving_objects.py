"""Labels and predictions of `moving_objects` on rendered clips versus the exact masks, and a figure of them.

The tool trains on estimated labels of moving shapes and on exact masks of scenes. It prints intersections
over union with the exact masks: of the labels on certain pixels, and of the predictions on all pixels of
held-out images. Images in which nothing moves are left out.

    python tools/moving_objects.py [--clips 500] [--epochs 30] [--figure docs/moving_objects.png]
"""

import argparse

import keras
import moving_sprites
import numpy as np

import keras_ssl as kssl
from keras_ssl import plotting

SIZE, HELD_OUT = 64, 150


def iou(mask, truth):
    """Returns the intersection over union (N,) of masks with the exact ones, on certain pixels."""
    mask, truth = (np.reshape(a, (len(a), -1)) for a in (mask, truth))
    certain = np.isfinite(mask)
    both, either = (mask > 0.5) & (truth > 0.5), ((mask > 0.5) | (truth > 0.5)) & certain
    return both.sum(1) / np.maximum(either.sum(1), 1)


def check_labels(name, masks, truth):
    labeled = (masks == 1).any((1, 2, 3))
    found = iou(masks[labeled], truth[labeled])
    known = np.isfinite(masks[labeled])
    moves = known[truth[labeled] == 1]
    print(f"{name}: {labeled.mean():.0%} of {len(masks)} clips have a label")
    print(f"    IoU {found.mean():.3f}, median {np.median(found):.3f}")
    print(
        f"    certain: {known.mean():.0%} of the pixels, {moves.mean():.0%} of the moving ones",
        flush=True,
    )


def trained(images, epochs):
    """Returns a task that is trained on images with a column `moving`."""
    keras.utils.set_random_seed(0)
    task = kssl.tasks.MovingObjects(kssl.encoders.resnet((SIZE, SIZE, 3), 16, (1, 1, 1)))
    data = task.dataset(images, 32, epochs=epochs)
    task.compile(task.default_optimizer(data.steps_per_epoch * epochs))
    task.fit(data, epochs=epochs, verbose=2)
    return task


def check_predictions(name, task, images, truth):
    """Prints the IoU on held-out images, and returns the predictions."""
    found = task.prediction(images)["moving"].numpy()
    moves = truth.any((1, 2, 3))
    mean, everything = (iou(a[moves], truth[moves]).mean() for a in (found, np.ones_like(found)))
    print(
        f"{name}: IoU {mean:.3f} on {moves.sum()} held-out images (all pixels: {everything:.3f})",
        flush=True,
    )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--figure")
    arguments = parser.parse_args()

    scenes = kssl.data.to_arrays(
        kssl.data.scenes(arguments.clips + HELD_OUT, SIZE, frames=5, moving=0.5)
    )
    test = {name: scenes[name][-HELD_OUT:] for name in ("image", "frames", "moving")}
    clips = kssl.data.from_array(test["image"], frames=test["frames"])
    masks = kssl.data.to_arrays(kssl.data.with_motion_masks(clips))["moving"]
    check_labels("labels of scenes", masks, test["moving"])

    clips, truth = moving_sprites.clips(arguments.clips + HELD_OUT, SIZE)
    labeled = kssl.data.with_motion_masks(kssl.data.from_array(clips[:, 2], frames=clips))
    shapes = kssl.data.to_arrays(labeled)
    check_labels("labels of shapes", shapes["moving"], truth)

    rows = []
    for name, images, exact in (
        ("shapes", shapes, truth),
        ("scenes, exact masks", scenes, scenes["moving"]),
    ):
        train = {column: images[column][:-HELD_OUT] for column in ("image", "moving")}
        task = trained(
            kssl.data.from_array(train["image"], moving=train["moving"]), arguments.epochs
        )
        found = check_predictions(name, task, images["image"][-HELD_OUT:], exact[-HELD_OUT:])
        if name == "shapes":
            label = images["moving"][-HELD_OUT:]
            for k in range(6):
                drawn = [plotting.columns({"moving": a[k]})[0][0] for a in (label, found)]
                pixels = images["image"][k - HELD_OUT]
                captions = ("image", "label", "predicted")
                rows.append(list(zip([pixels, *drawn], captions, strict=True)))
    if arguments.figure:
        plotting.grid(rows).savefig(arguments.figure)


if __name__ == "__main__":
    main()
