"""What a data set of any size costs: machines, hours, memory, network and storage, and what fails first.

    python tools/plan_scale.py measure photos/ --model saved_models/simclr_cifar10 > costs.json
    python tools/plan_scale.py plan --images 1e8 --costs costs.json --days 7

`measure` prints the processor time of each unit of work on this machine, in JSON. `plan` multiplies by it, or
without --costs by what was measured on two cores with AVX-512 and bfloat16 (docs/scale.md). Give your own
numbers for your network, images and machines.
"""

import argparse
import json
import math
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

# Seconds of one core for an image: a JPEG of 500 x 375 decoded and resized to 32 x 32, two views of SimCLR,
# a step with both, the features of an encoder with 16 filters; for a record that is found; for a row that is
# inserted, and in a table of a million rows indexed or searched for; for a row, cluster and iteration of
# k-means; for a row and cluster of Sinkhorn's algorithm to 1e-6.
COSTS = {
    "decode": 2.5e-3, "views": 9.9e-5, "step": 4.7e-3, "forward": 7.5e-4, "record": 1.9e-6, "insert": 4.2e-6,
    "index": 2.1e-4, "search": 1e-2, "kmeans": 1e-8, "sinkhorn": 2.9e-8,
}  # fmt: skip
SWEEPS = 20  # of k-means
GIB = 2**30
ROW = 200  # bytes of a row in a table, without its vector: path, hash, numbers
KNOWN = 80  # bytes of a row in memory during an update: `tables.known`
FILE = 440  # bytes of a file name in memory: `data.from_folder`
RECORD = 28  # bytes of a record's place in memory: `data.records.index`
LABEL = 4


def seconds_each(run, number, least=2.0):
    """Returns the processor time of one of `number` units that `run` works on, after a first run."""
    run()
    count, start = 0, time.process_time()
    while time.process_time() - start < least:
        run()
        count += number
    return (time.process_time() - start) / count


def measure(folder, model):
    """Measures the costs on this machine: a dict of seconds."""
    import tensorflow as tf

    import keras_ssl as kssl
    from keras_ssl.data import records
    from keras_ssl.data.folder import image_files
    from keras_ssl.ops import augment, random, recipes
    from keras_ssl.solvers import clustering, transport
    from keras_ssl.tables.encode import LocalEncoder
    from keras_ssl.tables.identity import Identity
    from keras_ssl.tables.store import FeatureTable

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
    vectors = draw.standard_normal((20_000, 128), np.float32)
    costs = {
        "decode": seconds_each(lambda: [local._pixels(content) for content in files], len(files)),
        "views": seconds_each(two_views, 256),
        "step": seconds_each(lambda: task.train_on_batch(*batch), 256),
        "forward": seconds_each(lambda: local._features(images), 256),
    }
    with tempfile.TemporaryDirectory() as path:
        table = FeatureTable.create(f"{path}/x.lance", Identity("x", 1), 128)
        rows = [{"id": i, "path": f"/{i}.jpg", "vector": v} for i, v in enumerate(vectors)]
        costs["insert"] = seconds_each(lambda: table.add(rows), len(rows))
        kssl.data.to_tfrecord(
            kssl.data.from_array(np.tile(images, (40, 1, 1, 1))), f"{path}/r", 1, 0
        )
        (file,) = records.record_files(f"{path}/r")
        costs["record"] = seconds_each(lambda: records.scan(file), 40 * 256)
    costs["kmeans"] = seconds_each(
        lambda: clustering.kmeans(vectors, 1000, iterations=5, seed=0), len(vectors) * 1000 * 5
    )
    scores = tf.nn.log_softmax(
        vectors @ draw.standard_normal((128, 1000), np.float32) * 0.1
    ).numpy()
    costs["sinkhorn"] = seconds_each(
        lambda: transport.sinkhorn(scores, tolerance=1e-6), scores.size
    )
    return {name: float(f"{value:.3g}") for name, value in costs.items()}


def work(o):
    """Returns the core hours of each stage that all machines share: a dict."""
    costs = {name: o.images * value / 3600 for name, value in o.costs.items()}
    on_cores, extract = costs["decode"] + costs["views"], costs["decode"] + costs["forward"]
    train = on_cores + costs["step"]
    if o.step_rate:  # accelerators step while the cores decode
        train = max(on_cores, o.cores * o.images / o.step_rate / 3600)
    clustering = o.clusters * (SWEEPS * costs["kmeans"] + o.heads * costs["sinkhorn"])
    relabel = o.relabelings * (extract + clustering)
    return {"train": o.epochs * train, "relabel": relabel, "extract": extract}


def sent(o, machines):
    """Returns the bytes that a machine sends in a step: the gradients in float32, all-reduced in a ring."""
    return 2 * (machines - 1) / machines * 4 * o.parameters


def limits(o, machines):
    """Returns what grows with the data set: a list of (what, value, limit, unit, what would replace it)."""
    n, memory, costs, share = o.images, o.memory, o.costs, o.images / machines
    days, hour = o.days * 24, o.cores * 3600
    on_cores = (costs["decode"] + costs["views"] + costs["step"]) / o.cores
    step = o.batch / o.step_rate if o.step_rate else o.batch * on_cores
    root = math.sqrt(n / 1e6)  # cells and the rows of a cell both grow with the root
    return [
        ("list of files, on each machine", n * FILE / GIB, memory, "GiB", "TFRecord shards"),
        ("places of records, on each machine", n * RECORD / GIB, memory, "GiB", "index files, memory-mapped"),
        ("scan of records at each start", n * costs["record"] / 3600, 1, "hours", "index files"),
        ("labels of all heads, on each machine", o.heads * n * LABEL / GIB, memory / 4, "GiB",
         "labels kept where the image is read"),
        ("features while relabeling", share * 8 * o.dimensions / GIB, memory / 2, "GiB", "features on disk"),
        ("kernel of Sinkhorn's algorithm", share * 4 * o.clusters / GIB, memory / 2, "GiB", "scratch="),
        ("memory bank of PIRL, CMC, PCL", n * 4 * 128 / GIB, memory / 2, "GiB", "the queue of MoCo"),
        ("rows known while a table is updated", n * KNOWN / GIB, memory / 2, "GiB", "a table for each shard"),
        ("insertion by the one writer", n * costs["insert"] / 3600, days, "hours", "a table for each shard"),
        ("index built on one machine", n * root * costs["index"] / hour, days, "hours", "an index for each shard"),
        ("neighbors of all rows, for duplicates", n * root * costs["search"] / hour, days, "hours",
         "pairs within a cell"),
        ("gradients of a step on the network", sent(o, machines) * 8 / (o.network * 1e9), step, "s",
         "more images a step"),
    ]  # fmt: skip


def plan(o):
    """Prints the plan for the options `o`."""
    hours = work(o)
    machines = math.ceil(hours["train"] / o.cores / 24 / o.days)
    table = o.images * (4 * o.dimensions + ROW)
    print(
        f"{o.images:.0e} images: files of {o.images * o.bytes / 1e12:.3g} TB, table of {table / 1e12:.3g} TB, "
        f"{machines:,} machines of {o.cores} cores train {o.epochs} epochs in {o.days:g} days"
    )
    rows = [
        [name, f"{value:,.0f}", f"{value / o.cores / machines:,.1f}"]
        for name, value in hours.items()
    ]
    print_table([["stage", "core hours", "hours on all machines"], *rows])
    reads = o.epochs * o.images * o.bytes / (o.days * 24 * 3600) / machines
    print(
        f"each machine reads {reads / 1e6:.3g} MB/s and sends {sent(o, machines) / 1e6:.3g} MB a step"
    )
    print()
    found = sorted(limits(o, machines), key=lambda row: -row[1] / row[2])
    rows = [
        [what, f"{value:.3g}", f"{limit:.3g}", unit, instead if value > limit else ""]
        for what, value, limit, unit, instead in found
    ]
    print_table([["what grows", "needs", "has", "", "breaks; instead"], *rows])


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
    planned = commands.add_parser("plan", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    planned.add_argument("--images", type=float, required=True)
    planned.add_argument("--costs", type=Path, help="the JSON of measure, some or all of the costs")
    for name, default, text in (
        ("days", 7, "for training; for each of the others, too"), ("epochs", 100, ""),
        ("relabelings", 0, "of a clustering task"), ("clusters", 3000, ""), ("heads", 1, "of SelfLabel"),
        ("dimensions", 512, "of the features"), ("parameters", 11e6, "of network and heads"),
        ("bytes", 110e3, "of an image file"), ("batch", 256, "images of a machine in a step"),
        ("cores", 16, "of a machine"), ("memory", 64, "GiB of a machine"),
        ("network", 10, "Gbit/s of a machine"),
        ("step_rate", 0, "images/s of the accelerators of a machine; 0: its cores train"),
    ):  # fmt: skip
        planned.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=text or "-"
        )
    options = parser.parse_args()
    if options.command == "measure":
        print(json.dumps(measure(options.folder, options.model), indent=1))
        return
    if options.images < 1 or options.days <= 0 or options.cores < 1:
        parser.error("--images, --days and --cores must be positive")
    given = json.loads(options.costs.read_text()) if options.costs else {}
    if unknown := given.keys() - COSTS.keys():
        parser.error(
            f"--costs: {options.costs} has unknown costs {sorted(unknown)}, known are {sorted(COSTS)}"
        )
    options.costs = COSTS | given
    plan(options)


if __name__ == "__main__":
    main()
