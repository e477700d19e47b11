"""Search in a table of clustered synthetic vectors: time to index, recall, latency, memory, disk.

The vectors are Gaussian clusters of about 1,000, with noise of half the spread of the centers in all
dimensions, which is harder than features of images: neighbors in a cluster are almost equally far away.
Queries are drawn from the same clusters. Recall@10 is the fraction of the ten nearest rows (by all cosines,
computed in NumPy) that search returns. Memory is the peak of a process that only searches.

    python tools/bench_search.py 1000000 --kind ivf_pq
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

BLOCK = 50_000
NUMBER = 10


def peak():
    """Returns the largest resident memory of this process so far, in GiB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20


def draw(rng, centers, number):
    """Draws vectors around random centers."""
    chosen = centers[rng.integers(0, len(centers), number)]
    return chosen + np.float32(0.5) * rng.standard_normal(chosen.shape, np.float32)


def clusters(rows, dimensions):
    """Returns the generator of the rows, and the centers."""
    rng = np.random.default_rng(0)
    return rng, rng.standard_normal((max(rows // 1000, 10), dimensions), np.float32)


def nearest(found, block, start, queries):
    """Merges the nearest rows so far, (cosines, ids) of each query, with the rows of a block."""
    cosines = queries @ (block / np.linalg.norm(block, axis=1, keepdims=True)).T
    best = np.argpartition(-cosines, NUMBER, axis=1)[:, :NUMBER]
    values = np.concatenate([found[0], np.take_along_axis(cosines, best, axis=1)], axis=1)
    ids = np.concatenate([found[1], best + start], axis=1)
    order = np.argsort(-values, axis=1)[:, :NUMBER]
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(ids, order, axis=1)


def write(path, rows, dimensions, queries):
    """Writes the table block by block, and returns the ids of the nearest rows of each query."""
    from keras_ssl.tables.identity import Identity
    from keras_ssl.tables.store import FeatureTable

    table = FeatureTable.create(path, Identity("synthetic", 1), dimensions)
    rng, centers = clusters(rows, dimensions)
    found = np.empty((len(queries), 0)), np.empty((len(queries), 0), np.int64)
    seconds = 0.0
    for start in range(0, rows, BLOCK):
        block = draw(rng, centers, min(BLOCK, rows - start))
        found = nearest(found, block, start, queries)
        begin = time.monotonic()
        table.add([
            {"id": start + i, "path": f"/images/{start + i}.jpg", "vector": vector}
            for i, vector in enumerate(block)
        ])  # fmt: skip
        seconds += time.monotonic() - begin
    print(f"insert {rows / seconds:,.0f} rows/s", flush=True)
    return found[1]


def search(folder, probes, refined):
    """Runs the queries one after another; prints recall, latency and memory."""
    from keras_ssl.tables import FeatureTable, index
    from keras_ssl.tables.neighbors import search as find

    index.PROBES, index.REFINED = probes or index.PROBES, refined or index.REFINED
    expected = np.load(folder / "queries.npz")
    table = FeatureTable(folder / "bench.lance")
    begin = time.monotonic()
    find(table, expected["queries"][-1:], NUMBER)
    first = time.monotonic() - begin
    seconds, cpu_seconds, hits = [], [], 0
    for query, ids in zip(expected["queries"], expected["ids"], strict=True):
        begin, cpu_begin = time.monotonic(), time.process_time()
        (found,) = find(table, query[None], NUMBER)
        seconds.append(time.monotonic() - begin)
        cpu_seconds.append(time.process_time() - cpu_begin)
        hits += len({match.id for match in found} & set(ids.tolist()))
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    cpu = np.median(cpu_seconds) * 1000
    recall = hits / expected["ids"].size
    print(
        f"probes {index.PROBES}, refined {index.REFINED}: recall@{NUMBER} {recall:.4f}, p50 "
        f"{p50:.1f} ms, p99 {p99:.1f} ms, CPU time {cpu:.1f} ms, first {first:.2f} s, "
        f"peak memory {peak():.2f} GiB",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", type=int, help="number of vectors")
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--kind", choices=["none", "ivf_pq", "hnsw"], default="ivf_pq")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--probes", type=int, help="cells that a query reads")
    parser.add_argument("--refined", type=int, help="candidates per neighbor")
    parser.add_argument(
        "--folder", type=Path, default=Path("bench_search"), help="written, and removed at the end"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the folder, and search what it holds"
    )
    parser.add_argument("--only-search", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.argv[0] = "keras-ssl"  # like the command, without TensorFlow, whose memory would count
    if args.only_search:
        search(args.folder, args.probes, args.refined)
        return
    from keras_ssl.tables import FeatureTable, index

    table = args.folder / "bench.lance"
    if not table.exists():
        args.folder.mkdir(parents=True, exist_ok=True)
        _, centers = clusters(args.rows, args.dimensions)
        queries = draw(np.random.default_rng(1), centers, args.queries)
        ids = write(
            table,
            args.rows,
            args.dimensions,
            queries / np.linalg.norm(queries, axis=1, keepdims=True),
        )
        np.savez(args.folder / "queries.npz", queries=queries, ids=ids)
        if args.kind != "none":
            seconds = index.build(FeatureTable(table), args.kind)
            print(f"{args.kind} index in {seconds:.0f} s, peak memory {peak():.2f} GiB", flush=True)
    sizes = {
        name: sum(file.stat().st_size for file in table.glob(pattern) if file.is_file()) / 2**20
        for name, pattern in (("all", "**/*"), ("index", "_indices/**/*"))
    }
    print(f"disk {sizes['all']:,.0f} MiB, of which index {sizes['index']:,.0f} MiB", flush=True)
    program = str(Path(__file__).resolve())
    subprocess.run(
        [sys.executable, program, *sys.argv[1:], "--only-search"], check=True, env=os.environ
    )
    if not args.keep:
        shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
