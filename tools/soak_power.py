"""Simulates power failures at random moments while files of every kind are written, and checks the result.

    python tools/soak_power.py [--cuts 1000] [--kinds file export keras checkpoints log extraction tfrecord]

A process (`power_writers.py`) writes files under `strace`, which records its system calls. At a random call
the power fails: data synced by fsync is kept; any part of all other data and names is lost (`power_disk.py`).
The readers check every remaining state: files that were acknowledged (whose call had returned) must be
complete, and no visible file may be half-written.
"""

import argparse
import collections
import itertools
import os
import random
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from power_disk import Disk, decoded, present, raw, recorded
from power_writers import IMAGES, KINDS, MARK, Client, photos

CALLS = (
    "openat,open,creat,write,pwrite64,writev,lseek,ftruncate,rename,renameat,renameat2,unlink,unlinkat,"
    "rmdir,mkdir,mkdirat,fsync,fdatasync"
)


def record(root, kinds, log):
    """Runs the process that writes, under strace."""
    for kind in kinds:
        (root / kind).mkdir()
    (root / "photos").mkdir()
    for path in photos(root / "photos"):
        Path(path).touch()
    command = [
        "strace", "-f", "--seccomp-bpf", "-y", "-xx", "-s", "100000000", "-e", f"trace={CALLS}", "-o", log,
        sys.executable, Path(__file__).with_name("power_writers.py"), root, *kinds,
    ]  # fmt: skip
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)


def check(kind, folder, before, versions):
    """Checks the files of a kind after a power failure.

    Args:
        kind: one of KINDS.
        folder: pathlib.Path with the remaining files.
        before: list of (path, tree) that were acknowledged, in this order.
        versions: dict from path to the list of its trees, each of which was complete at some time.
    """
    for path, trees in versions.items():
        if (folder / path).exists():
            found = on_disk(folder / path)
            # Whole files of a data set may be missing until it is acknowledged.
            part = kind == "tfrecord" and found.items() <= trees[-1].items()
            assert found in trees or part, f"{path} is half-written"
    if not before:
        pass
    elif kind == "checkpoints":  # old checkpoints are removed
        newest = max(path for path, _ in before)
        assert any((folder / p).exists() for p in versions if p >= newest), f"{newest} is lost"
    else:
        for path in dict(before):
            trees = versions[path]
            allowed = trees[len([p for p, _ in before if p == path]) - 1 :]
            assert (folder / path).exists(), f"{path} is lost"
            assert on_disk(folder / path) in allowed, f"{path} is an older one"
    if kind == "checkpoints":
        from keras_ssl.callbacks import Checkpoint

        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing is damaged
            found = Checkpoint(folder / "runs" / "a")._newest()
        assert found or not before
    if kind == "extraction":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unreadable images
            resume(folder)


def resume(folder):
    """Resumes an extraction; all rows must be right."""
    from keras_ssl.serving.client import extraction

    paths = photos(Path(os.environ["SOAK_PHOTOS"]))
    extraction.extract(Client(), paths, folder / "again.npz")
    if (folder / "features.npz.part").exists():
        extraction.extract(Client(), paths, folder / "features.npz")
    for name in ("again.npz", "features.npz"):
        if (folder / name).exists():
            with np.load(folder / name) as found:
                expected = [i for i in range(IMAGES) if i % 7]
                assert found["features"][:, 299].tolist() == expected
                assert found["features"].min(1).tolist() == expected


def on_disk(path):
    """Returns the visible entries of the real disk, as `tree` does, without hidden drafts and locks."""
    if path.is_file():
        return {"": path.read_bytes()}
    found = {"": None}
    for below in path.rglob("[!.]*"):
        found[str(below.relative_to(path))] = below.read_bytes() if below.is_file() else None
    return found


def load(kind, path):
    """Loads an acknowledged file with its own reader."""
    import keras

    import keras_ssl as kssl

    if kind == "export":
        from keras_ssl.serving.server.servable import Servable

        servable = Servable(path)
        servable.run({"images": np.zeros((1, 32, 32, 3), np.uint8)})
        servable.close()
        kssl.load(path)
    elif kind == "keras":
        keras.models.load_model(path)
    elif kind == "tfrecord":
        assert len(kssl.data.to_arrays(kssl.data.from_tfrecord(path))["id"]) == 40


def write(folder, paths):
    """Writes a tree to the real disk."""
    for name, content in paths.items():
        path = folder / name if name else folder
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def soak(cuts, kinds, seed=0):
    """Records the kinds once and simulates power failures.

    Returns:
        dict from kind to (number of cuts, number of cuts after an acknowledgement, number of different
        remaining states).
    """
    rng, figures = random.Random(seed), {}
    with tempfile.TemporaryDirectory() as work:
        root, log = Path(work, "root"), Path(work, "calls.txt")
        root.mkdir()
        record(root, kinds, log)
        os.environ["SOAK_PHOTOS"] = str(root / "photos")
        # Where each kind begins and ends in the calls, and when each file was complete.
        disk, moments, done = Disk(root), collections.defaultdict(list), []
        calls = list(recorded(log))
        fresh = Disk(root)
        for index, call in enumerate(calls):
            kind = kind_of(call, root)
            if kind in kinds and fresh.call(*call):
                moments[kind].append(index)
            elif call[0] == "write" and (text := raw(call[2][0])).startswith(MARK):
                path = os.fsdecode(text[len(MARK) : -1])
                found = present(fresh.find(path))
                done.append((index, os.path.relpath(path, root), found))
        final = {path: data for path, data in present(fresh.top).items() if "photos" not in path}
        real = {path: data for path, data in on_disk(root).items() if "photos" not in path}
        assert final == real, "the record is not complete"
        versions = collections.defaultdict(lambda: collections.defaultdict(list))
        for number, (_, path, found) in enumerate(done):
            kind, _, rest = path.partition("/")
            versions[kind][rest].append(found)
            write(
                Path(work, "done", str(number)),
                {os.path.basename(path) + ("/" if k else "") + k: v for k, v in found.items()},
            )
            load(kind, Path(work, "done", str(number), os.path.basename(path)))
        points = []
        for kind, _ in zip(itertools.cycle(kinds), range(cuts), strict=False):
            # A quarter of the cuts are just after an acknowledgement, before anything else happens.
            after = [index + 1 for index, path, _ in done if path.startswith(f"{kind}/")]
            points.append((rng.choice(after if rng.random() < 0.25 else moments[kind]), kind))
        points.sort()
        position, seen = 0, collections.defaultdict(set)
        for number, (point, kind) in enumerate(points):
            while position < point:
                disk.call(*calls[position])
                position += 1
            left = disk.left(rng)
            inside = {
                path[len(kind) + 1 :]: data
                for path, data in left.items()
                if path.startswith(f"{kind}/")
            }
            folder = Path(work, "cuts", str(number))
            write(folder, {"": None, **inside})
            before = [
                (path.partition("/")[2], found)
                for index, path, found in done
                if index < point and path.startswith(f"{kind}/")
            ]
            check(kind, folder, before, versions[kind])
            seen[kind].add(hash(frozenset(inside.items())))
            n, acknowledged, _ = figures.get(kind, (0, 0, 0))
            figures[kind] = n + 1, acknowledged + bool(before), len(seen[kind])
    return figures


def kind_of(call, root):
    """Returns the kind whose folder a call concerns, or None."""
    texts = [decoded(s) for s in call[2][:1] if call[0] not in ("write", "pwrite64", "writev")]
    texts += [decoded(s) for s in re.findall(r"<([^>]*)>", call[1] + call[3])]
    for text in texts:
        if text.startswith(f"{root}/"):
            return text[len(str(root)) + 1 :].split("/")[0]
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuts", type=int, default=1000)
    parser.add_argument("--kinds", nargs="+", default=tuple(KINDS), choices=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for kind, (cuts, acknowledged, states) in soak(
        options.cuts, options.kinds, options.seed
    ).items():
        print(
            f"{kind}: {cuts} power failures, {acknowledged} after something was acknowledged, {states} "
            "different states, all complete"
        )


if __name__ == "__main__":
    main()
