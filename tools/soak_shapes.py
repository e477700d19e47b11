"""Compares every convolution, pooling and matrix product of the zoo with NumPy at many shapes.

    python tools/soak_shapes.py [--minutes 5 | --number 1000 | --grid] [--seed 0] [--beyond]

A kernel of oneDNN may write outside of its memory for some shapes. Then the process crashes or computes wrong
numbers some steps later and in another place. This tool collects the operations, kernel sizes and strides in
the traced graphs of all tasks and encoders, and runs each forward and both gradients at random numbers of
channels (1 to 64), batch sizes (1 to 17) and map sizes (8 to 96), in float32 and bfloat16. They run in child
processes, whose heap is checked if glibc's libc_malloc_debug.so is installed. If one crashes, the parent
finds the shape and continues with a new child.

It first checks that it detects planted faults, and reports which known faults of oneDNN this CPU has. It
exits with 1 if an operation crashed its process or gave wrong numbers.
"""

import argparse
import itertools
import json
import math
import sys
import time

import numpy as np
import zoo_operations
from checked_heap import Child

# Threads of the children in turn, since their number changes how a batch is split.
THREADS = (2, 4, 1, 3, 8)
DTYPES = ("float32", "bfloat16")
WORK = (1e7, 1e7, 3e7, 4e8)  # maximum multiplications of a case, drawn at random: NumPy is slow
PER_CHILD = 400  # cases that one child runs
KNOWN = [
    # uxlfoundation/oneDNN#6035, and tensorflow#117700.
    {"op": "Conv2D", "kernel": [1, 1], "stride": 2, "padding": "SAME"},
    {"op": "BatchMatMulV2", "ranks": [4, 2]},
]


def beyond(random):
    """Draws a random kind of convolution or pooling, which users' own models may have."""
    op = random.choice(["Conv2D", "Conv2D", "DepthwiseConv2dNative", "MaxPool", "AvgPool"])
    kernel, stride = int(random.choice([1, 1, 2, 3, 5, 7])), int(random.integers(1, 5))
    padding = str(random.choice(["SAME", "VALID"]))
    result = {"op": str(op), "kernel": [kernel, kernel], "stride": stride, "padding": padding}
    if op == "Conv2D" and stride == 1 and random.random() < 0.3:
        result["dilation"] = 2
    elif op == "Conv2D" and random.random() < 0.3:
        result["groups"] = int(random.integers(2, 5))
    return result


def fits(case, work_limit):
    """Returns whether a case is within the limit, and its map at least as large as the kernel."""
    reach = (max(case.get("kernel", [1])) - 1) * case.get("dilation", 1) + 1
    area = case["height"] * case["width"] / case.get("stride", 1) ** 2
    work = case["batch"] * area * case["inputs"] * case["outputs"]
    work *= math.prod(case.get("kernel", [1]))
    return work <= work_limit and reach <= min(case["height"], case["width"])


def sample(kinds, seed, most=math.inf):
    """Draws random cases, endlessly.

    Args:
        kinds: dicts of `zoo_operations.kind`; None for kinds that users' own models may have.
        seed: int.
        most: float, maximum number of multiplications of a case.

    Yields:
        dict, see `shape_ops.Operations`.
    """
    random = np.random.default_rng(seed)
    for number in itertools.count():
        limit = min(most, random.choice(WORK))
        while True:
            kind = beyond(random) if kinds is None else kinds[random.integers(len(kinds))]
            sides = np.exp(random.uniform(np.log(8), np.log(97), 2)).astype(int)
            height, width = (sides[0], sides[0]) if random.random() < 0.7 else sides
            channels = random.integers(1, random.choice([9, 65], 2))
            groups = kind.get("groups", 1)
            case = {
                "batch": int(random.integers(1, 18)),
                "height": int(height),
                "width": int(width),
                "inputs": int(channels[0]) * groups,
                "outputs": int(channels[1]) * groups,
                "dtype": str(random.choice(DTYPES)),
                "seed": number,
                **kind,
            }
            if fits(case, limit):
                break
        yield case


def grid(kinds, seed):
    """Returns a shuffled list of all cases on a grid of sizes at and around powers of two."""
    channels, batches = (1, 2, 3, 4, 8, 9, 16, 17, 32, 64), (1, 2, 3, 5, 8, 17)
    sides = (8, 9, 16, 31, 32, 96)
    cases = [
        {**kind, "inputs": i, "outputs": o, "batch": b, "height": s, "width": s, "dtype": d}
        for kind, i, o, b, s, d in itertools.product(
            kinds, channels, channels, batches, sides, DTYPES
        )
    ]
    cases = [case for case in cases if fits(case, max(WORK))]
    np.random.default_rng(seed).shuffle(cases)
    return cases


def blame(recent, threads):
    """Finds which of the latest cases crashes a fresh process; returns (case, cause) or None."""
    for case in reversed(recent):
        child = Child(threads)
        result = child.run({**case, "repeat": 20})
        if isinstance(result, str):
            return case, result
        child.close()
    return None


def soak(cases, threads=THREADS, progress=None):
    """Runs cases in child processes.

    Args:
        cases: iterable of dicts, see `shape_ops.Operations`.
        threads: ints, numbers of threads of the children in turn.
        progress: function of the numbers of cases and of faults so far, called after each case.

    Yields:
        (case, text) for each fault.
    """
    turns, child, recent, faults = itertools.cycle(threads), None, [], 0
    for number, case in enumerate(cases):
        if child is None:
            child, recent = Child(next(turns)), []
        recent = [*recent[-3:], case]
        result = child.run(case)
        if isinstance(result, str):
            # An earlier case may have damaged the heap.
            alone = blame(recent, child.threads)
            result = [
                f"{child.threads} threads: {result}"
                + ("" if alone else ", but no crash in a fresh process")
            ]
            case = alone[0] if alone else case
            child = None
        elif number % PER_CHILD == PER_CHILD - 1:
            child.close()
            child = None
        faults += len(result)
        yield from ((case, text) for text in result)
        if progress:
            progress(number + 1, faults)
    if child:
        child.close()


def self_check():
    """Runs planted faults; returns the names of those that are detected."""
    size = {"batch": 1, "height": 2, "width": 2, "inputs": 1, "outputs": 1, "dtype": "float32"}
    names = ("planted_difference", "planted_abort", "planted_overflow")
    return [case["op"] for case, _ in soak([{"op": name, **size} for name in names], (2,))]


def known_faults():
    """Runs shapes with known faults of oneDNN; returns the first (case, text) of each, or None."""
    faults = []
    for kind in KNOWN:
        sizes = itertools.product((3, 5), (2, 4, 12), (32, 16))
        cases = [
            {**kind, "batch": b, "inputs": c, "outputs": 2 * c, "height": s, "dtype": "float32"}
            for b, c, s in sizes
        ]
        cases = [{**case, "width": case["height"] if "kernel" in kind else 1} for case in cases]
        faults.append(next(soak(cases, (2,)), None))
    return faults


def until(cases, number, minutes):
    end = time.monotonic() + 60 * minutes
    for case in itertools.islice(cases, number):
        if time.monotonic() > end:
            return
        yield case


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument(
        "--number", type=int, help="number of cases; 1000 without --minutes or --grid"
    )
    parser.add_argument("--grid", action="store_true", help="all cases of a grid, in random order")
    parser.add_argument("--beyond", action="store_true", help="kinds that the zoo does not have")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    seen = self_check()
    print("planted faults detected:", ", ".join(seen), flush=True)
    if "planted_overflow" not in seen:
        print(
            "the heap is not checked (no libc_malloc_debug.so.0): small overflows are not detected"
        )
    assert {"planted_difference", "planted_abort"} <= set(seen), "planted faults are not detected"
    for kind, fault in zip(KNOWN, known_faults(), strict=True):
        print("known fault", kind, "here:", fault[1] if fault else "not detected", flush=True)

    kinds = None
    if not options.beyond:
        networks_of = zoo_operations.zoo()
        kinds = [json.loads(key) for key in networks_of]
        for key, networks in networks_of.items():
            print(f"{key} in {len(networks)} networks, such as {networks[0]}")
    cases = grid(kinds, options.seed) if options.grid else sample(kinds, options.seed)
    number = options.number
    if number is None and options.minutes == math.inf and not options.grid:
        number = 1000

    start, last, done = time.monotonic(), 0, 0

    def progress(number, faults):
        nonlocal last, done
        done = number
        if time.monotonic() - last > 15:
            last = time.monotonic()
            of = f" of {len(cases)}" if options.grid else ""
            print(f"{done}{of} cases, {faults} faults, {last - start:.0f} s", flush=True)

    faults = 0
    for case, text in soak(until(cases, number, options.minutes), progress=progress):
        faults += 1
        print(f"FAULT {json.dumps(case)}: {text}", flush=True)
    print(f"{done} cases, {faults} faults in {time.monotonic() - start:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
