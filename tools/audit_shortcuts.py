"""Ablation of the protections against shortcuts: each run trains a task without one of them.

A network that has found a shortcut solves the pretext task better and learns worse features. The table shows
both, versus the protected run: pretext accuracy on held-out images, and the linear probe of the best stage.
Two rows have puzzles with more similar permutations instead. In another row the first patch of each pair is
blank: the accuracy from the second patch alone shows how much this patch reveals about its place.

The clips of the temporal tasks are still photographs, in which nothing happens. An accuracy above chance
comes from a shortcut: a camera that drifts by a pixel per frame ("drifting"), or compression that becomes
stronger with time ("compressed").

    python tools/audit_shortcuts.py --data cifar10/ [--only jigsaw]
"""

import argparse
import functools
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl import encoders
from keras_ssl.plotting import print_table
from keras_ssl.training.optimizers import sgd_cosine

CLIPS, FRAMES = 10_000, 5  # for the temporal tasks: clips, and frames per clip
QUALITY = (90, 75, 60, 45, 30)  # JPEG quality of each frame of a compressed clip
FRINGE = 0.04  # red is this much larger than green, blue this much smaller
CLOSE = {d: kssl.permutations.permutations(100, distance=d) for d in ("middle", "low")}


def relative_patch(**arguments):
    return lambda encoder: kssl.tasks.RelativePatch(encoder, **{"color": "projection", **arguments})


def jigsaw(**arguments):
    return lambda encoder: kssl.tasks.Jigsaw(encoder, **arguments)


class SecondPatch(kssl.tasks.RelativePatch):
    """Predicts the position from the second patch of each pair alone."""

    def call(self, x, training=False):
        features = encoders.on_patches(self.encoder, x, training)
        second = tf.gather(features, [second for _, second, _ in self.pairs], axis=1)
        return self.head(self.pair_layer(tf.concat([tf.zeros_like(second), second], axis=-1)))


def temporal_order(**arguments):
    return lambda encoder: kssl.tasks.TemporalOrder(encoder, **arguments)


def order_prediction(**arguments):
    return lambda encoder: kssl.tasks.OrderPrediction(encoder, **arguments)


# (task, removed protection, kind of images, function that makes the task)
ROWS = [
    ("relative_patch", "", "original", relative_patch()),
    ("relative_patch", "first patch", "original", lambda e: SecondPatch(e, color="projection")),
    ("relative_patch", "room to move", "original", relative_patch(patch=7)),
    ("relative_patch", "gap", "original", relative_patch(patch=6, gap=0)),
    ("relative_patch", "jitter", "original", relative_patch(jitter=0)),
    ("relative_patch", "crop", "original", relative_patch(crop=1)),
    ("relative_patch", "", "with fringes", relative_patch(color="dropping")),
    ("relative_patch", "dropping", "with fringes", relative_patch(color=None)),
    ("jigsaw", "", "original", jigsaw()),
    ("jigsaw", "gaps", "original", jigsaw(tile=10)),
    ("jigsaw", "normalization", "original", jigsaw(normalize=False)),
    ("jigsaw", "crop", "original", jigsaw(crop=1)),
    ("jigsaw", "far permutations (middle)", "original", jigsaw(permutations=CLOSE["middle"])),
    ("jigsaw", "far permutations (low)", "original", jigsaw(permutations=CLOSE["low"])),
    ("temporal_order", "", "drifting", temporal_order()),
    ("temporal_order", "jitter", "drifting", temporal_order(jitter=0)),
    ("temporal_order", "", "compressed", temporal_order()),
    ("temporal_order", "all colors", "compressed", temporal_order(split_channels=True)),
    ("order_prediction", "", "drifting", order_prediction()),
    ("order_prediction", "jitter", "drifting", order_prediction(jitter=0)),
    ("order_prediction", "", "compressed", order_prediction()),
    ("order_prediction", "one channel", "compressed", order_prediction(split_channels=False)),
]


def aberrated(images):
    """Applies lateral chromatic aberration: red is enlarged about the image center, blue reduced."""
    center = (images.shape[1] - 1) / 2
    channels = []
    for channel, grow in enumerate((FRINGE, 0.0, -FRINGE)):
        scale = 1 / (1 + grow)
        move = center * (1 - scale)
        channels.append(
            tf.raw_ops.ImageProjectiveTransformV3(
                images=images[..., channel : channel + 1].astype(np.float32),
                transforms=[[scale, 0.0, move, 0.0, scale, move, 0.0, 0.0]],
                output_shape=images.shape[1:3], fill_value=0.0, interpolation="BILINEAR",
                fill_mode="REFLECT",
            )
        )  # fmt: skip
    return tf.cast(tf.round(tf.concat(channels, -1)), tf.uint8).numpy()


def drifting(images):
    """Makes clips that move by one pixel per frame over photographs enlarged by an eighth or more."""
    rng, size = np.random.default_rng(0), images.shape[1]
    room = FRAMES - 1
    large = tf.image.resize(images[:CLIPS].astype(np.float32), (size + 2 * room, size + 2 * room))
    large = tf.cast(tf.round(large), tf.uint8).numpy()
    steps = rng.integers(-1, 2, (len(large), 2))
    steps[(steps == 0).all(axis=1)] = 1
    clips = np.empty((len(large), FRAMES, size, size, 3), np.uint8)
    for clip, image, step in zip(clips, large, steps, strict=True):
        for t in range(FRAMES):
            y, x = room + t * step
            clip[t] = image[y : y + size, x : x + size]
    return clips


def compressed(images):
    """Makes clips of still photographs, stored as JPEG with a quality that decreases from frame to frame."""

    def store(image):
        files = [tf.io.encode_jpeg(image, quality=q) for q in QUALITY]
        return tf.stack([tf.io.decode_jpeg(file, channels=3) for file in files])

    files = tf.data.Dataset.from_tensor_slices(images[:CLIPS]).map(store, tf.data.AUTOTUNE)
    return np.array(list(files.as_numpy_iterator()))


CLIPS_OF = {"drifting": drifting, "compressed": compressed}


def run(make, train, held_out, options):
    """Trains for `--steps` steps; returns the pretext accuracy on held-out images and the encoder."""
    keras.utils.set_random_seed(0)
    encoder = kssl.encoders.resnet((32, 32, 3), width=options.width, blocks=(1, 1, 1))
    task = make(encoder)
    task.compile(sgd_cosine(options.learning_rate, options.steps))
    epochs = -(-options.steps * options.batch_size // int(train.cardinality()))
    data = task.dataset(train, options.batch_size, epochs=epochs)
    task.fit(data, steps_per_epoch=options.steps, verbose=0)
    accuracy = task.evaluate(
        task.dataset(held_out, options.batch_size, seed=1), verbose=0, return_dict=True
    )["accuracy"]
    return accuracy, task.encoder


def probe(encoder, labeled, test):
    """Returns the accuracy of the linear probe at the best stage."""
    train_features, train_others = kssl.evaluation.extract(encoder, labeled)
    test_features, test_others = kssl.evaluation.extract(encoder, test)
    return max(
        kssl.evaluation.linear_probe(
            train_features[stage], train_others["label"], test_features[stage], test_others["label"]
        )
        for stage in train_features
        if stage != "features"  # the averaged last stage
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", help="CIFAR-10, train/ and test/; downloaded without it")
    parser.add_argument("--only", nargs="+", help="tasks; all by default")
    parser.add_argument("--steps", type=int, default=400, help="per run")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    options = parser.parse_args()

    train, test = (
        kssl.data.to_arrays(kssl.data.cifar10(options.data, s)) for s in ("train", "test")
    )
    few = np.random.default_rng(0).permutation(len(train["image"]))[:5000]

    @functools.cache  # for the rows of --only
    def probed(change):
        return (
            kssl.data.from_array(change(train["image"][few]), train["label"][few]),
            kssl.data.from_array(change(test["image"][:5000]), test["label"][:5000]),
        )

    @functools.cache
    def data(kind):
        if kind in CLIPS_OF:
            clips = [CLIPS_OF[kind](images["image"]) for images in (train, test)]
            pair = (kssl.data.from_array(frames[:, 0], frames=frames) for frames in clips)
            return *pair, *probed(np.asarray)
        change = aberrated if kind == "with fringes" else np.asarray
        pair = (change(images) for images in (train["image"], test["image"][:5000]))
        return *map(kssl.data.from_array, pair), *probed(change)

    rows = [("task", "images", "removed", "pretext", "linear probe", "seconds")]
    for name, removed, kind, make in ROWS:
        if options.only and name not in options.only:
            continue
        pretext, held_out, labeled, test_part = data(kind)
        start = time.time()
        accuracy, encoder = run(make, pretext, held_out, options)
        scores = f"{100 * accuracy:.1f}", f"{100 * probe(encoder, labeled, test_part):.1f}"
        rows.append((name, kind, removed or "nothing", *scores, f"{time.time() - start:.0f}"))
        print(*rows[-1], sep=" | ", flush=True)
    keras.utils.set_random_seed(0)
    untrained = kssl.encoders.resnet((32, 32, 3), width=options.width, blocks=(1, 1, 1))
    rows.append(("untrained", "", "", "", f"{100 * probe(untrained, *probed(np.asarray)):.1f}", ""))
    print_table(rows)


if __name__ == "__main__":
    main()
