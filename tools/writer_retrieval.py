"""Writer retrieval: features learned from SIFT clusters versus RootSIFT itself.

Both are encoded with VLAD, with m-VLAD (several codebooks, PCA-whitened together) and with m-VLAD plus
exemplar SVMs, whose negatives are the training pages.

Pages are tiled from Omniglot: the characters of one drawer of one alphabet are enlarged by 2 and divided
among four pages of five to ten characters, so that no character is on two pages of a writer. The last two
alphabets are for testing, the others for training: network, codebooks, whitening and negatives have seen
neither the test writers nor any character of their alphabets. Alternatively, pass a folder of page images
with train/ and test/, each with one folder per writer.

    python tools/writer_retrieval.py --omniglot omniglot_small1.zip --minutes 10
    python tools/writer_retrieval.py --pages pages/
"""

import argparse
import io
import os
import tempfile
import zipfile
from collections import defaultdict
from pathlib import Path, PurePosixPath

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from budget import TRIAL_STEPS, StepClock, epochs_within
from PIL import Image

import keras_ssl as kssl
from keras_ssl.callbacks import features_by_id
from keras_ssl.plotting import print_table
from keras_ssl.solvers import clustering
from keras_ssl.training.optimizers import sgd_cosine

PAGES, COLUMNS, BATCH = 4, 4, 64
TEST_ALPHABETS = 2


def tile_pages(archive, out):
    """Writes out/train/<alphabet>_<drawer>/<page>.png and out/test/... from the Omniglot zip."""
    characters = defaultdict(list)
    with zipfile.ZipFile(archive) as source:
        for name in sorted(n for n in source.namelist() if n.endswith(".png")):
            path = PurePosixPath(name)
            drawer = int(path.stem.split("_")[1])
            character = Image.open(io.BytesIO(source.read(name))).convert("L")
            characters[path.parts[-3], drawer].append(np.asarray(character))
    held_out = sorted({alphabet for alphabet, _ in characters})[-TEST_ALPHABETS:]
    print("alphabets for testing:", ", ".join(held_out))
    for (alphabet, drawer), drawn in characters.items():
        part = "test" if alphabet in held_out else "train"
        folder = Path(out) / part / f"{alphabet}_{drawer:02d}"
        folder.mkdir(parents=True)
        for number in range(PAGES):
            mine = drawn[number::PAGES]
            mine += [np.full_like(mine[0], 255)] * (-len(mine) % COLUMNS)
            lines = [np.hstack(mine[i : i + COLUMNS]) for i in range(0, len(mine), COLUMNS)]
            page = Image.fromarray(np.vstack(lines))
            # Strokes of two pixels have few keypoints.
            page.resize((2 * page.width, 2 * page.height), Image.BICUBIC).save(
                folder / f"{number}.png"
            )


def encode(train, test, train_pages, test_pages, options):
    """Encodes the test pages by VLAD, m-VLAD and m-VLAD with exemplar SVMs; returns a dict of arrays."""
    # All local descriptors are L2-normalized.
    train, test = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (train, test))
    codebooks = np.stack(
        [
            clustering.kmeans(train, options.centroids, seed=options.seed + i)[1]
            for i in range(options.codebooks)
        ]
    )
    one = kssl.evaluation.vlad(test, test_pages, codebooks[0])
    several, reference = (
        kssl.evaluation.vlad(part, pages, codebooks)
        for part, pages in ((test, test_pages), (train, train_pages))
    )
    queries, negatives = (
        clustering.whiten(part, options.dimensions, reference=reference)
        for part in (several, reference)
    )
    svm = kssl.evaluation.exemplar_svm(queries, negatives, options.cost)
    return {"VLAD": one, "m-VLAD": several, "whitened": queries, "E-SVM": svm}


def train_network(patches, options):
    number = int(patches.cardinality())

    def new_task():
        keras.utils.set_random_seed(options.seed)
        encoder = kssl.encoders.resnet(
            (32, 32, 3), width=options.width, blocks=(1, 1, 1), stem="imagenet"
        )
        return kssl.tasks.SiftClusters(encoder, number, options.clusters, seed=options.seed)

    task = new_task()
    relabel = kssl.callbacks.Relabel(patches, when="once")
    task.relabel(features_by_id(task, patches))
    labels = task.labels.numpy()
    print(
        f"{number} patches, {(labels >= 0).mean():.0%} kept, {options.clusters} clusters",
        flush=True,
    )
    data = task.dataset(task.labeled(patches), BATCH)
    task.compile(sgd_cosine(options.learning_rate, TRIAL_STEPS))
    clock = StepClock()
    task.fit(data, steps_per_epoch=TRIAL_STEPS, callbacks=[relabel, clock], verbose=0)
    epochs = epochs_within(options.minutes, clock.seconds_per_step() * data.steps_per_epoch)

    task = new_task()
    task.labels.assign(labels)
    training = task.dataset(task.labeled(patches), BATCH, epochs=epochs)
    task.compile(sgd_cosine(options.learning_rate, epochs * training.steps_per_epoch))
    task.fit(training, epochs=epochs, callbacks=[relabel], verbose=2)
    return task, new_task().encoder


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--omniglot", help="zip of Omniglot images")
    source.add_argument("--pages", help="folder with train/<writer>/ and test/<writer>/")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clusters", type=int, default=500)
    parser.add_argument("--centroids", type=int, default=16, help="of VLAD")
    parser.add_argument("--codebooks", type=int, default=5, help="of m-VLAD")
    parser.add_argument("--dimensions", type=int, default=128, help="of whitened m-VLAD")
    parser.add_argument("--cost", type=float, default=1000, help="of the exemplar SVMs")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="sift_clusters.keras")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.pages or scratch)
        if options.omniglot:
            tile_pages(options.omniglot, folder)
        train, test = (kssl.data.from_pages(folder / part) for part in ("train", "test"))
        for name, part in (("train", train), ("test", test)):
            number = int(part.cardinality())
            print(
                f"{name}: {len(part.class_names)} writers, {len(part.paths)} pages, {number} patches"
            )
    task, untrained = train_network(train, options)
    task.save(options.out)

    arrays = [kssl.data.to_arrays(part) for part in (train, test)]
    pages = [part["page"] for part in arrays]
    found = {"RootSIFT": [part["descriptor"] for part in arrays]}
    for name, encoder in (("untrained", untrained), ("SiftClusters", task.encoder)):
        stages = [kssl.evaluation.extract(encoder, part)[0] for part in (train, test)]
        for stage in list(stages[0])[:-1]:  # the last entry repeats the features
            found[f"{name} {stage}"] = [part[stage] for part in stages]
    keys = ("map", "top1", "top5", "hard2", "hard3")
    rows = [("descriptors", "size", "encoding", "mAP", "top-1", "soft top-5", "hard 2", "hard 3")]
    for name, (of_train, of_test) in found.items():
        for encoding, encoded in encode(of_train, of_test, *pages, options).items():
            result = kssl.evaluation.retrieval(encoded, test.writers, hard=(2, 3))
            cells = [f"{100 * result[key]:.1f}" for key in keys]
            rows.append((name, str(of_test.shape[1]), encoding, *cells))
    print_table(rows)


if __name__ == "__main__":
    main()
