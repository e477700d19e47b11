"""Runs every convolution, pooling and matrix product of the zoo at many shapes, each against NumPy.

    python tools/soak_shapes.py [--minutes 5 | --number 1000 | --grid] [--seed 0] [--beyond]

A kernel of the library below TensorFlow may write outside of its memory at some shapes: then the process
dies, or computes something else, some steps later and somewhere else. This tool reads from the traced
graphs of all tasks and encoders which operations, kernel sizes and strides there are, and runs each
forward and both gradients at random numbers of channels (1 to 64), batch sizes (1 to 17) and map sizes
(8 to 96), in float32 and bfloat16. Child processes do the work, whose heap is checked where glibc's
libc_malloc_debug.so is installed; when one dies, the parent finds the shape and goes on with another.

It first proves that it can see: planted faults, and the faults known in oneDNN where this CPU has them.
Exit code 1 if an operation killed its process or gave wrong numbers.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import zoo_operations

THREADS = (2, 4, 1, 3, 8)  # of the children in turn: they share a batch in other ways
DTYPES = ("float32", "bfloat16")
WORK = (1e7, 1e7, 3e7, 4e8)  # most multiplications of a case, drawn at random: NumPy is slow
PER_CHILD = 400  # cases before the next child
SECONDS = 120  # for one case, else it hangs
KNOWN = [
    # uxlfoundation/oneDNN#6035, and tensorflow#117700.
    {"op": "Conv2D", "kernel": [1, 1], "stride": 2, "padding": "SAME"},
    {"op": "BatchMatMulV2", "ranks": [4, 2]},
]


def beyond(random):
    """A random kind of convolution or pooling, as users' own models may have it."""
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
    """Whether a case is not too much work, and its map not smaller than the kernel."""
    reach = (max(case.get("kernel", [1])) - 1) * case.get("dilation", 1) + 1
    area = case["height"] * case["width"] / case.get("stride", 1) ** 2
    work = case["batch"] * area * case["inputs"] * case["outputs"]
    work *= math.prod(case.get("kernel", [1]))
    return work <= work_limit and reach <= min(case["height"], case["width"])


def sample(kinds, seed, most=math.inf):
    """Random cases without end.

    Args:
        kinds: dicts as `zoo_operations.kind` makes them; None for such as users' own models may have.
        seed: int.
        most: float, multiplications of a case.

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
    """List of all cases on a grid of sizes at and around powers of two, shuffled."""
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


# Environment of a process whose heap is checked.
CHECKED_HEAP = {
    "LD_PRELOAD": "libc_malloc_debug.so.0",  # ignored where it is not installed
    "MALLOC_CHECK_": "3",
    "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1",  # else most memory is never malloc's
    "CUDA_VISIBLE_DEVICES": "-1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


class Child:
    """A process that runs cases, with a checked heap; may die at any.

    Args:
        threads: int, that share the work of one operation.
    """

    def __init__(self, threads):
        self.threads, self.errors = threads, tempfile.TemporaryFile("w+")  # noqa: SIM115
        environment = {**os.environ, **CHECKED_HEAP}
        command = [sys.executable, str(Path(__file__).with_name("shape_ops.py")), str(threads)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, **pipes, text=True, env=environment)

    def run(self, case):
        """Runs one case.

        Returns:
            list of str, what was wrong; one str, of what it died, if it did.
        """
        timer, last = threading.Timer(SECONDS, self.process.kill), "at the start"
        timer.start()
        try:
            self.process.stdin.write(json.dumps(case) + "\n")
            self.process.stdin.flush()
            for line in self.process.stdout:
                word, _, rest = line.strip().partition(" ")
                if word == "done":
                    return json.loads(rest)
                last = f"in {rest}" if word == "run" else last
        except BrokenPipeError:
            pass
        finally:
            timer.cancel()
        code = self.process.wait()
        self.errors.seek(0)
        # What TensorFlow logs at its start begins with the level, I0000 or E0000.
        lines = ["", *self.errors.read().splitlines()]
        lines = [line for line in lines if line[1:5] != "0000" and "absl::" not in line]
        self.close()
        how = signal.strsignal(-code) if code < 0 else f"exit code {code}"
        if code == -signal.SIGKILL:
            how += f" (out of memory, or still running after {SECONDS} s)"
        return f"died {last}: {how} {lines[-1][:200]}"

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()


def blame(recent, threads):
    """Finds which of the latest cases kills a process of its own: (case, what it died of) or None."""
    for case in reversed(recent):
        child = Child(threads)
        said = child.run({**case, "repeat": 20})
        if isinstance(said, str):
            return case, said
        child.close()
    return None


def soak(cases, threads=THREADS, progress=None):
    """Runs cases in child processes.

    Args:
        cases: iterable of dicts, see `shape_ops.Operations`.
        threads: ints, of the children in turn.
        progress: function of the number of cases run and of faults, called after each case.

    Yields:
        (case, text): each fault.
    """
    turns, child, recent, faults = itertools.cycle(threads), None, [], 0
    for number, case in enumerate(cases):
        if child is None:
            child, recent = Child(next(turns)), []
        recent = [*recent[-3:], case]
        said = child.run(case)
        if isinstance(said, str):
            # The heap may have been damaged by an earlier one.
            alone = blame(recent, child.threads)
            said = [f"{child.threads} threads: {said}" + ("" if alone else ", not so when alone")]
            case = alone[0] if alone else case
            child = None
        elif number % PER_CHILD == PER_CHILD - 1:
            child.close()
            child = None
        faults += len(said)
        yield from ((case, text) for text in said)
        if progress:
            progress(number + 1, faults)
    if child:
        child.close()


def self_check():
    """Runs planted faults; returns which of them were seen."""
    size = {"batch": 1, "height": 2, "width": 2, "inputs": 1, "outputs": 1, "dtype": "float32"}
    names = ("planted_difference", "planted_abort", "planted_overflow")
    return [case["op"] for case, _ in soak([{"op": name, **size} for name in names], (2,))]


def known_faults():
    """Runs shapes of faults known in oneDNN; returns the first (case, text) of each, or None."""
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
    parser.add_argument("--number", type=int, help="of cases; 1000 without --minutes or --grid")
    parser.add_argument("--grid", action="store_true", help="all cases of a grid, in random order")
    parser.add_argument("--beyond", action="store_true", help="kinds that the zoo does not have")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    seen = self_check()
    print("planted faults seen:", ", ".join(seen), flush=True)
    if "planted_overflow" not in seen:
        print("the heap is not checked (no libc_malloc_debug.so.0): small overflows are not seen")
    assert {"planted_difference", "planted_abort"} <= set(seen), "the tool is blind"
    for kind, fault in zip(KNOWN, known_faults(), strict=True):
        print("known fault", kind, "here:", fault[1] if fault else "not seen", flush=True)

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
