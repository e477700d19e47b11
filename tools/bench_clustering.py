"""Clustering of features that are spread over 1, 2 and 4 worker processes: memory, bytes exchanged, seconds.

The tool first compares k-means in one process with faiss.Kmeans, in interleaved rounds. Then it runs
whitening, k-means and optimal transport in worker processes on this machine, which share its cores. The
memory is the peak of a process relative to its start, including its own features; the bytes are those that
each worker contributes to sums. All numbers of workers must find the same labels.

    python tools/bench_clustering.py --images 100000 --width 256 --clusters 1000
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from keras_ssl.plotting import print_table
from keras_ssl.solvers import clustering, gibbs, transport
from keras_ssl.solvers.shares import Share, slices
from keras_ssl.training import distribute

LAM = 25.0


def make_share(number, width, strategy, exchanged):
    """Makes this worker's part of features around 2,000 centers; adds the bytes of each sum to a list."""
    worker, workers = distribute.worker(strategy)
    centers = np.random.default_rng(0).standard_normal((2000, width), np.float32)
    ids = np.arange(worker, number, workers)
    own = np.empty((len(ids), width), np.float32)
    for part in slices(number):
        random = np.random.default_rng([1, part.start])
        rows = centers[random.integers(0, 2000, part.stop - part.start)]
        rows += 2 * random.standard_normal(rows.shape, np.float32)
        here = slice(*np.searchsorted(ids, [part.start, part.stop]))
        own[here] = rows[ids[here] - part.start]

    def total(array):
        exchanged.append(np.asarray(array).nbytes)
        return distribute.sum_over_workers(strategy, array)

    return Share(own, ids, number, worker, total)


def cluster(share, options):
    whitened = clustering.whiten(share, options.dimensions)
    return share.everywhere(clustering.kmeans(whitened, options.clusters)[0])


def balance(share, options):
    """Runs optimal transport to random clusters, as `SelfLabel` does for a head."""
    width = share.own.shape[1]
    kernel = np.random.default_rng(2).standard_normal((width, options.clusters), np.float32)
    kernel *= 0.18 * (64 / width) ** 0.5 / 2
    block = max(1, gibbs.BLOCK_ENTRIES // options.clusters)

    def log_probabilities():
        for rows in slices(len(share.own), block):
            yield tf.nn.log_softmax(share.own[rows] @ kernel)

    found = transport.sinkhorn(share.replace(log_probabilities), lam=LAM, tolerance=1e-6)
    return share.everywhere(found.assignments), found.column_potentials


def peak(reset=False):
    """Returns the peak memory of this process in MB, or resets it to the current use."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def work(options):
    """Runs in a worker process: prints the measurements, and saves labels and potentials."""
    strategy, exchanged = distribute.strategy(), []
    small = argparse.Namespace(**{**vars(options), "clusters": 10})
    for function in (cluster, balance):  # the first run loads libraries and traces
        function(make_share(1000, options.width, strategy, []), small)
    found, results = {}, []
    for function in (cluster, balance):
        before = peak(reset=True)
        share = make_share(options.images, options.width, strategy, exchanged)
        exchanged.clear()
        start = time.perf_counter()
        results.append(function(share, options))
        found[function.__name__] = {
            "seconds": time.perf_counter() - start, "MB": peak() - before,
            "exchanged": sum(exchanged) / 1e6, "sums": len(exchanged),
        }  # fmt: skip
        del share
    labels, (assigned, potentials) = results
    np.savez(options.out, labels=labels, assigned=assigned, potentials=potentials)
    print(json.dumps(found))


def run_workers(workers, options, folder):
    """Returns the measurements of each of several workers, and the arrays of the first."""
    sockets = [socket.socket() for _ in range(workers)]
    for free in sockets:
        free.bind(("localhost", 0))
    hosts = [f"localhost:{free.getsockname()[1]}" for free in sockets]
    for free in sockets:
        free.close()
    processes = []
    for index in range(workers):
        environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
        if workers > 1:
            task = {"type": "worker", "index": index}
            environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": hosts}, "task": task})
        out = Path(folder) / f"{workers}_{index}.npz"
        command = [sys.executable, __file__, *sys.argv[1:], "--out", str(out)]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE))
    lines = [process.communicate()[0].decode().splitlines()[-1] for process in processes]
    arrays = [np.load(Path(folder) / f"{workers}_{index}.npz") for index in range(workers)]
    for other in arrays[1:]:
        assert all((other[name] == arrays[0][name]).all() for name in arrays[0])
    return [json.loads(line) for line in lines], arrays[0]


def compare_with_faiss(options):
    """Prints seconds and the sum of squared distances of our k-means and of faiss.Kmeans."""
    import faiss

    features = make_share(options.images, options.width, tf.distribute.get_strategy(), []).own
    features = clustering.whiten(features, options.dimensions)

    def with_faiss():
        search = faiss.Kmeans(
            features.shape[1], options.clusters, niter=20, seed=0, min_points_per_centroid=1,
            max_points_per_centroid=len(features),
        )  # fmt: skip
        search.train(features)
        labels = clustering.nearest(features, search.centroids, 1)[1][:, 0]
        return clustering.fill_empty(features, labels, search.centroids)[1]

    runs = {
        "keras_ssl": lambda: clustering.kmeans(features, options.clusters)[1],
        "faiss.Kmeans": with_faiss,
    }
    seconds = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            centroids = run()
            seconds[name].append(time.perf_counter() - start)
            squared = clustering.nearest(features, centroids, 1)[0].sum()
            print(f"{name}: {seconds[name][-1]:.2f} s, squared distances {squared:.1f}", flush=True)
    medians = [np.median(seconds[name]) for name in runs]
    print(f"medians {medians[0]:.2f} and {medians[1]:.2f} s, ratio {medians[0] / medians[1]:.2f}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=256, help="numbers of a feature")
    parser.add_argument("--dimensions", type=int, default=128, help="after whitening")
    parser.add_argument("--clusters", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison with faiss; or 0")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.out:
        work(options)
        return
    if options.rounds:
        compare_with_faiss(options)
    rows, one = [], None
    with tempfile.TemporaryDirectory() as folder:
        for workers in options.workers:
            found, arrays = run_workers(workers, options, folder)
            arrays = dict(arrays)
            one = arrays if one is None else one
            for name in ("cluster", "balance"):
                parts = [each[name] for each in found]
                kind = "labels" if name == "cluster" else "assigned"
                different = int((arrays[kind] != one[kind]).sum())
                error = np.abs(arrays["potentials"] - one["potentials"]).max()
                rows.append([
                    name, str(workers), f"{max(p['MB'] for p in parts):.0f}",
                    f"{parts[0]['exchanged']:.2f}", str(parts[0]["sums"]),
                    f"{max(p['seconds'] for p in parts):.1f}", str(different),
                    f"{error:.1e}" if name == "balance" else "",
                ])  # fmt: skip
                print(rows[-1], flush=True)
    header = (
        "",
        "workers",
        "peak MB",
        "MB exchanged",
        "sums",
        "seconds",
        "other labels",
        "potentials",
    )
    print_table([header, *rows])


if __name__ == "__main__":
    main()
