"""Plans the cost of a data set of any size: machines, time, memory, network, storage; and what fails first.

    python tools/plan_scale.py measure photos/ --model saved_models/simclr_cifar10 --out costs.json
    python tools/plan_scale.py plan --images 1e8 --costs costs.json --days 7

`measure` writes the processor time of each unit of work on this machine, in JSON. `plan` multiplies by these
times, or without --costs by times measured on two cores with AVX-512 and bfloat16 (docs/scale.md). Pass your
own numbers for your network, images and machines.
"""

import argparse
import functools
import hashlib
import json
import math
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

# Seconds of one core. For an image: a JPEG of 500 x 375 decoded and resized to 32 x 32, two views of SimCLR,
# a step with both, the features of an encoder with 16 filters, SHA-256. For a record: finding it. For a row:
# inserting it, and indexing or searching it in a table of a million rows. For k-means: a row, cluster and
# iteration. For Sinkhorn's algorithm to 1e-6: a row and cluster.
COSTS = {
    "decode": 3.1e-3, "views": 1.0e-4, "step": 5.0e-3, "forward": 7.2e-4, "hash": 6.3e-5, "record": 2.0e-6,
    "insert": 6.2e-6, "index": 2.1e-4, "search": 1e-2, "kmeans": 5.9e-9, "sinkhorn": 2.8e-8,
}  # fmt: skip
SWEEPS = 20  # of k-means
GIB = 2**30
ROW = 200  # bytes of a row in a table, without its vector: path, hash, numbers
KNOWN = 96  # bytes of a row in memory during an update: `tables.known`
FILE = 440  # bytes of a file name in memory: `data.from_folder`
RECORD = 28  # bytes of a record's place in memory: `data.records.index`
LABEL = 4


def seconds_each(run, number, least):
    """Returns the processor time of one of `number` units that `run` works on, after a first run."""
    run()
    count, start, passed = 0, time.process_time(), 0.0
    while not count or passed < least:
        run()
        count, passed = count + number, time.process_time() - start
    return passed / count


def measure(folder, model, least=2.0, rows=20_480):
    """Measures the costs on this machine, each for `least` seconds or more: a dict of seconds."""
    import tensorflow as tf

    import keras_ssl as kssl
    from keras_ssl.data import records
    from keras_ssl.data.folder import image_files
    from keras_ssl.ops import augment, random, recipes
    from keras_ssl.solvers import clustering, transport
    from keras_ssl.tables.encode import LocalEncoder
    from keras_ssl.tables.identity import Identity
    from keras_ssl.tables.store import FeatureTable

    each = functools.partial(seconds_each, least=least)
    draw = np.random.default_rng(0)
    files = [Path(name).read_bytes() for name in image_files(folder)[:200]]
    encoder = kssl.load(model)
    local, size = LocalEncoder(encoder), encoder.input_shape[1:3]
    images = tf.constant(draw.integers(0, 256, (256, *size, 3), np.uint8))
    seed = tf.constant(draw.integers(0, 2**31, (256, 2)))
    two_views = tf.function(
        lambda: [augment.view(images, s, recipes.SIMCLR_SMALL) for s in random.split(seed, 2)]
    )
    task = kssl.tasks.SimCLR(encoder)
    task.compile(task.default_optimizer(1000))
    batch = next(iter(task.dataset(kssl.data.from_array(images.numpy()), 256)))
    vectors = draw.standard_normal((rows, 128), np.float32)
    costs = {
        "decode": each(lambda: [local._pixels(content) for content in files], len(files)),
        "views": each(two_views, 256),
        "step": each(lambda: task.train_on_batch(*batch), 256),
        "forward": each(lambda: local._features(images), 256),
        "hash": each(lambda: [hashlib.sha256(content) for content in files], len(files)),
    }
    with tempfile.TemporaryDirectory() as path:
        table = FeatureTable.create(f"{path}/x.lance", Identity("x", 1), 128)
        new = [{"id": i, "path": f"/{i}.jpg", "vector": v} for i, v in enumerate(vectors)]
        costs["insert"] = each(lambda: table.add(new), rows)
        stored = kssl.data.from_array(np.tile(images, (rows // 256, 1, 1, 1)))
        kssl.data.to_tfrecord(stored, f"{path}/r", shards=1, verbose=0)
        (file,) = records.record_files(f"{path}/r")
        costs["record"] = each(lambda: records.scan(file), len(stored))
    costs["kmeans"] = each(
        lambda: clustering.kmeans(vectors, 1000, iterations=5, seed=0), rows * 1000 * 5
    )
    scores = tf.nn.log_softmax(
        vectors @ draw.standard_normal((128, 1000), np.float32) * 0.1
    ).numpy()
    costs["sinkhorn"] = each(lambda: transport.sinkhorn(scores, tolerance=1e-6), scores.size)
    return {name: float(f"{value:.3g}") for name, value in costs.items()}


def work(o):
    """Returns the core hours of each stage that all machines share: a dict."""
    costs = {name: o.images * value / 3600 for name, value in o.costs.items()}
    # Measured with 128 dimensions.
    rounds = {"kmeans": SWEEPS * o.dimensions / 128, "sinkhorn": o.heads}[o.relabel_by]
    on_cores, extract = costs["decode"] + costs["views"], costs["decode"] + costs["forward"]
    train = on_cores + costs["step"]
    if o.step_rate:  # accelerators run steps while the cores decode
        train = max(on_cores, o.cores * o.images / o.step_rate / 3600)
    clustering = o.clusters * rounds * costs[o.relabel_by]
    relabel = o.relabelings * (extract + costs["views"] / 2 + clustering)
    stages = {"train": o.epochs * train, "relabel": relabel, "extract": extract}
    return {name: hours for name, hours in stages.items() if hours}


def sent(o, machines):
    """Returns the bytes that a machine sends per step: the gradients in float32, all-reduced in a ring."""
    return 2 * (machines - 1) / machines * 4 * o.parameters


def read_rate(o, machines):
    """Returns the bytes that a machine reads per second of training, including relabelings."""
    return (o.epochs + o.relabelings) * o.images * o.bytes / (o.days * 24 * 3600) / machines


def limits(o, machines):
    """Returns everything that grows with the data, worst first: (what, value, limit, unit, alternative)."""
    n, memory, costs, share = o.images, o.memory, o.costs, o.images / machines
    days, hour = o.days * 24, o.cores * 3600
    on_cores = (costs["decode"] + costs["views"] + costs["step"]) / o.cores
    step = o.batch / o.step_rate if o.step_rate else o.batch * on_cores
    root = math.sqrt(n / 1e6)  # both cells and rows per cell grow with the square root
    # Measured with 256 dimensions, and insertion with 128.
    indexed, paired = (n * root * costs[k] * o.dimensions / 256 / hour for k in ("index", "search"))
    written = n * (costs["insert"] * o.dimensions / 128 + costs["hash"]) / 3600
    found = [
        ("list of files, on each machine", n * FILE / GIB, memory, "GiB", "TFRecord shards"),
        ("places of records, on each machine", n * RECORD / GIB, memory, "GiB", "index files, memory-mapped"),
        ("scan of records at each start", n * costs["record"] / 3600, 1, "hours", "index files"),
        ("memory bank of PIRL; CMC has two", n * 8 * 128 / GIB, memory / 2, "GiB", "the queue of MoCo"),
        ("rows known while a table is updated", n * KNOWN / GIB, memory / 2, "GiB", "a table for each shard"),
        ("insertion by the one writer", written, days, "hours", "a table for each shard"),
        ("index built on one machine", indexed, days, "hours", "an index for each shard"),
        ("neighbors of all rows, for duplicates", paired, days, "hours", "pairs within a cell"),
        ("gradients of a step on the network", sent(o, machines) * 8 / (o.network * 1e9), step, "s",
         "more images a step"),
        ("images read over the network", read_rate(o, machines) / 1e6, o.network * 125 / 2, "MB/s",
         "smaller images, local disks"),
    ]  # fmt: skip
    if o.relabelings:
        found += [
            ("labels of all heads, on each machine", o.heads * n * LABEL / GIB, memory / 4, "GiB",
             "labels kept where the image is read"),
            ("features while relabeling", share * 8 * o.dimensions / GIB, memory / 2, "GiB",
             "features on disk"),
            ("kernel of Sinkhorn's algorithm", share * 4 * o.clusters / GIB, memory / 2, "GiB", "scratch="),
        ]  # fmt: skip
    return sorted(found, key=lambda row: -row[1] / row[2])


def plan(o):
    """Prints the plan for the options `o`."""
    hours = work(o)
    training = hours["train"] + hours.get("relabel", 0)
    machines = math.ceil(training / o.cores / 24 / o.days)
    table = o.images * (4 * o.dimensions + ROW)
    print(
        f"{number(o.images)} images, files {o.images * o.bytes / 1e12:.3g} TB, table {table / 1e12:.3g} TB: "
        f"{machines:,} x {o.cores} cores train {o.epochs:g} epochs in {o.days:g} days\n"
    )
    rows = [
        [name, number(value), number(value / o.cores / machines)] for name, value in hours.items()
    ]
    print_table([["stage", "core hours", "hours on all machines"], *rows])
    if machines > 1:
        print(f"Each machine sends {number(sent(o, machines) / 1e6)} MB in a step.\n")
    rows = [
        [what, f"{number(value)} {unit}", number(limit), instead if value > limit else ""]
        for what, value, limit, unit, instead in limits(o, machines)
    ]
    print_table([["what grows", "needs", "limit", "breaks, use instead"], *rows])


def number(value):
    """Formats a number with three digits."""
    return f"{float(f'{value:.3g}'):,g}"


def print_table(rows):
    """Prints rows of text as a table in Markdown, the header first."""
    for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]):
        print(f"| {' | '.join(row)} |")
    print()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measured = commands.add_parser("measure", help="the cost of each unit of work on this machine")
    measured.add_argument("folder", help="images such as those of the data set")
    measured.add_argument("--model", required=True, help="an export with the network to train")
    measured.add_argument("--out", type=Path, default=Path("costs.json"), help="the file to write")
    planned = commands.add_parser("plan", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    planned.add_argument("--images", type=float, required=True)
    planned.add_argument("--costs", type=Path, help="the file of measure, or some of its costs")
    for name, default, text in (
        ("days", 7, "for training; for each of the others, too"), ("epochs", 100, ""),
        ("relabelings", 0, "of a clustering task"), ("clusters", 3000, ""), ("heads", 1, "of SelfLabel"),
        ("dimensions", 512, "of the features"), ("parameters", 11e6, "of network and heads"),
        ("bytes", 110e3, "of an image file"), ("batch", 256, "images of a machine in a step"),
        ("cores", 16, "of a machine"), ("memory", 64, "GiB of a machine"),
        ("network", 10, "Gbit/s of a machine"),
        ("step_rate", 0, "images/s of the accelerators of a machine; 0: its cores train"),
    ):  # fmt: skip
        kind = int if name == "cores" else float
        flag = f"--{name.replace('_', '-')}"
        planned.add_argument(flag, type=kind, default=default, help=text or "-")
    planned.add_argument(
        "--relabel-by", choices=["sinkhorn", "kmeans"], default="sinkhorn", help="-"
    )
    options = parser.parse_args()
    if options.command == "measure":
        options.out.write_text(json.dumps(measure(options.folder, options.model), indent=1))
        print(options.out.read_text())
        return
    for name, value in vars(options).items():
        if isinstance(value, int | float) and not (
            value > 0 or (value == 0 and name in ("step_rate", "relabelings"))
        ):
            parser.error(f"--{name.replace('_', '-')} must be positive, got {value:g}")
    try:
        given = json.loads(options.costs.read_text()) if options.costs else {}
    except (OSError, ValueError) as error:
        parser.error(f"--costs: {str(options.costs)!r} is not what measure writes ({error})")
    if not isinstance(given, dict) or not all(
        isinstance(value, int | float) and value > 0 for value in given.values()
    ):
        parser.error(f"--costs: {str(options.costs)!r} must hold positive numbers by name")
    if unknown := given.keys() - COSTS.keys():
        parser.error(f"--costs: {sorted(unknown)} are unknown, known are {sorted(COSTS)}")
    options.costs = COSTS | given
    plan(options)


if __name__ == "__main__":
    main()
