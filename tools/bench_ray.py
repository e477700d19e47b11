"""Benchmark of `keras-ssl extract --engine ray` versus plain `keras-ssl extract` on the same two cores.

    python tools/bench_ray.py [--images 6000] [--rounds 5] [--model saved_models/simclr_cifar10]

In each round, Ray extracts all images with two workers; then two processes at the same time extract half of
the images each. Only encoding is measured: from the moment when both workers (or both processes) have
delivered a batch, until the first of them has no more images. Starting Ray, importing TensorFlow and loading
the model happen before that, and are printed as "start". Other load on the machine reduces the images per
second; it hardly affects the CPU time per image of all processes, including Ray's own. The results are the
medians of the ratios over the rounds.
"""

import argparse
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BATCH = 64


def run_child(path, arguments):
    """Runs the command; writes when each row reached the table, and the CPU time of encoding."""
    sys.argv = ["keras-ssl", *arguments]
    import keras_ssl._public  # noqa: F401  (as the command does)
    from keras_ssl.tables import ray_engine
    from keras_ssl.tables.update import Writer

    moments, marks = [], []  # times of rows; (time, CPU seconds) at the start and end of encoding
    write, close, received = Writer.write, Writer.close, ray_engine._Pool._received

    def timed_write(self, row, result):
        moments.append(time.monotonic())
        if len(moments) == BATCH and "--engine" not in arguments:
            marks.append((moments[-1], cpu_seconds()))
        write(self, row, result)

    def timed_received(self, ref):
        result = received(self, ref)
        if not marks and sum(member.useful for member in self._members) == 2:
            marks.append((time.monotonic(), cpu_seconds()))
        if not self._has_work():
            marks.append((time.monotonic(), cpu_seconds()))
        return result

    def timed_close(self, what):
        marks.append((moments[-1], cpu_seconds()))
        return close(self, what)

    Writer.write, Writer.close, ray_engine._Pool._received = (
        timed_write,
        timed_close,
        timed_received,
    )
    try:
        runpy.run_path(str(Path(sys.executable).with_name("keras-ssl")), run_name="__main__")
    finally:
        np.savez(path, moments=moments, marks=marks[:2])


def cpu_seconds():
    """Returns the CPU time of this process and its descendants."""
    ticks = sum(sum(map(int, stat(pid)[11:13])) for pid in (os.getpid(), *descendants()))
    return ticks / os.sysconf("SC_CLK_TCK")


def descendants():
    """Returns the ids of the processes that this one has started, directly or not."""
    parents = {int(name): int(stat(name)[1]) for name in os.listdir("/proc") if name.isdecimal()}
    family = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sorted(family - {os.getpid()})


def stat(pid):
    """Returns the fields of /proc/<pid>/stat after the name; zeros if the process has ended."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return [0] * 50


def write_images(folder, number, pixels):
    from PIL import Image

    rng = np.random.default_rng(0)
    for part in range(2):
        (folder / f"{part}").mkdir(parents=True)
    for i in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        image = coarse.resize((pixels, pixels), Image.Resampling.BICUBIC)
        image.save(folder / f"{i % 2}" / f"{i:06d}.jpg", quality=90)


def run(folder, commands):
    """Runs commands at the same time.

    Returns:
        (rate, cpu, start): images/s, CPU milliseconds per image, seconds until both have delivered a batch.
    """
    before, children = time.monotonic(), []
    for i, command in enumerate(commands):
        line = [sys.executable, __file__, "--child", str(folder / f"{i}.npz"), *command]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
        children.append(
            subprocess.Popen(
                line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        )
    codes = [child.wait() for child in children]
    assert not any(codes), codes
    found = [np.load(folder / f"{i}.npz") for i in range(len(commands))]
    first = max(one["marks"][0, 0] for one in found)
    last = min(one["marks"][1, 0] for one in found)
    number = sum(((one["moments"] > first) & (one["moments"] <= last)).sum() for one in found)
    cpu = [
        np.diff(one["marks"][:, 1])[0] / (one["moments"] > one["marks"][0, 0]).sum()
        for one in found
    ]
    return number / (last - first), 1000 * np.mean(cpu), first - before


def main():
    if sys.argv[1:2] == ["--child"]:
        return run_child(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--pixels", type=int, default=64, help="side of the images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="saved_models/simclr_cifar10")
    options = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_images(folder / "photos", options.images, options.pixels)
        for number in range(options.rounds):

            def extract(source, out, *more, number=number):
                path = folder / f"{out}{number}.lance"
                return ["extract", str(source), "--model", options.model, "--out", str(path), *more]

            alone = run(folder, [extract(folder / "photos" / part, part) for part in "01"])
            ray = run(folder, [extract(folder / "photos", "ray", "--engine", "ray")])
            ratios.append((ray[0] / alone[0], alone[1] / ray[1]))
            for name, (speed, cpu, start) in (("two processes", alone), ("Ray", ray)):
                print(
                    f"round {number}: {name}: {speed:.0f} images/s, {cpu:.2f} ms of CPU per image; "
                    f"start {start:.1f} s",
                    flush=True,
                )
            print(
                "ratio to two processes: speed {:.3f}, inverse CPU time {:.3f}".format(*ratios[-1])
            )
    print("medians: speed {:.3f}, inverse CPU time {:.3f}".format(*np.median(ratios, axis=0)))


if __name__ == "__main__":
    main()
