"""Optimal transport of 100,000 images to 1,000 clusters: keras_ssl versus NumPy and POT.

All three run until they reach the same marginal error, in interleaved rounds; the memory is measured in a
separate process. POT (`pip install POT`) is skipped if it is not installed.

    python tools/bench_sinkhorn.py --rounds 3
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from keras_ssl.solvers.gibbs import BLOCK_ENTRIES
from keras_ssl.solvers.transport import sinkhorn

DISK = "on disk"


def blocks(n, k, scale=0.18, width=64):
    """Returns log-probabilities of a linear classifier on Gaussian features, computed block by block."""
    random = np.random.default_rng(0)
    weights = random.standard_normal((width, k), np.float32) * scale
    step = max(1, BLOCK_ENTRIES // k)
    for start in range(0, n, step):
        features = random.standard_normal((min(step, n - start), width), np.float32)
        yield tf.nn.log_softmax(features @ weights).numpy()


def matrix_scaling(scores, lam, tolerance, dtype=np.float64):
    """Scales the matrix as in textbooks: K = exp(lam * scores), then u = r / Kv and v = c / K'u in turn."""
    kernel = np.exp(dtype(lam) * scores.astype(dtype))
    n, k = kernel.shape
    r, c, v = dtype(1 / n), dtype(1 / k), np.ones(k, dtype)
    for iteration in range(1, 10_000):  # noqa: B007  (it is returned)
        u = r / (kernel @ v)
        sums = kernel.T @ u
        error = np.abs(v * sums - c).sum()
        if not error > tolerance:
            break
        v = c / sums
    return (kernel * v).argmax(1), iteration, error


def pot(scores, lam, iterations):
    import ot

    n, k = scores.shape
    cost = -scores.astype(np.float64)
    r, c = np.full(n, 1 / n), np.full(k, 1 / k)
    plan = ot.sinkhorn(r, c, cost, 1 / lam, numItermax=iterations, stopThr=0, warn=False)
    return plan.argmax(1), iterations, np.abs(plan.sum(0) - c).sum()


def peak():
    """Returns the peak memory of this process in kB (ru_maxrss would include the parent's memory)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def memory(n, k, lam, tolerance, where):
    """Prints the peak memory of the transport as a multiple of the float32 matrix, in this process."""
    options = {"scratch": tempfile.gettempdir()} if where == DISK else {"dtype": where}
    # The first run loads libraries and traces.
    sinkhorn(lambda: blocks(2000, k), lam=lam, tolerance=tolerance, **options)
    before = peak()
    sinkhorn(lambda: blocks(n, k), lam=lam, tolerance=tolerance, **options)
    after = peak()
    print((after - before) * 1024 / (4 * n * k))


def interleaved(runs, rounds):
    """Runs every function once per round; returns the seconds of all rounds and the last results, by name."""
    seconds, found = {name: [] for name in runs}, {}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            found[name] = run()
            seconds[name].append(time.perf_counter() - start)
            print(f"  {name}: {seconds[name][-1]:.2f} s", flush=True)
    return seconds, found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--clusters", type=int, default=1_000)
    parser.add_argument("--lam", type=float, default=25)
    parser.add_argument("--tolerance", type=float, default=1e-6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    n, k, lam, tolerance = options.images, options.clusters, options.lam, options.tolerance
    if options.memory:
        memory(n, k, lam, tolerance, options.memory)
        return

    scores = np.concatenate(list(blocks(n, k)))
    reference, iterations, _ = matrix_scaling(scores, lam, tolerance)
    with np.errstate(all="ignore"):
        error = matrix_scaling(scores[: n // 10], lam, tolerance, np.float32)[2]
    print(f"{n} x {k}, lam {lam:g}, to a marginal error of {tolerance:g}")
    print(f"matrix scaling in float32, on a tenth of it: error {error}")

    def keras_ssl(dtype, scratch=None):
        result = sinkhorn(scores, lam=lam, tolerance=tolerance, dtype=dtype, scratch=scratch)
        return result.assignments, result.iterations, result.error

    runs = {
        "NumPy float64": lambda: matrix_scaling(scores, lam, tolerance),
        "POT float64": lambda: pot(scores, lam, iterations),
        "keras_ssl float32": lambda: keras_ssl("float32"),
        "keras_ssl bfloat16": lambda: keras_ssl("bfloat16"),
        "keras_ssl on disk": lambda: keras_ssl("float32", tempfile.gettempdir()),
    }
    try:
        import ot  # noqa: F401
    except ImportError:
        print("POT is not installed: skipped")
        del runs["POT float64"]
    for name in runs.keys() - {"NumPy float64", "POT float64"}:
        runs[name]()  # traces
    seconds, found = interleaved(runs, options.rounds)
    ours = np.median(seconds["keras_ssl float32"])
    print(
        f"{'':20s}{'seconds':>9s}{'times':>7s}{'iterations':>12s}{'error':>10s}{'agreement':>11s}"
    )
    for name, (assignments, count, error) in found.items():
        median = np.median(seconds[name])
        agreement = np.mean(assignments == reference)
        print(
            f"{name:20s}{median:9.2f}{median / ours:7.1f}{count:12d}{error:10.1e}{agreement:11.4%}"
        )
    for where in ("float32", "bfloat16", DISK):
        command = [sys.executable, __file__, *sys.argv[1:], "--memory", where]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        print(f"peak memory, {where}: {float(lines.split()[-1]):.2f} x the float32 matrix")


if __name__ == "__main__":
    main()
