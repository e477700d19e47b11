"""Simulates power failures at random moments of everything that writes files, and checks what is left.

    python tools/soak_power.py [--cuts 1000] [--kinds file export keras checkpoints log extraction tfrecord]

A process writes files under `strace`, which records its system calls. At a random call the power fails: what
was synced by fsync is kept; of all other data and names any part is lost. A file that was not synced may be
empty, cut anywhere, or have pages of zeros; creations, renames and deletions in a folder that was not synced
happened in part, in any order. Every remaining state is checked by the readers: what had been acknowledged
(its call had returned) is complete, and nothing that is visible is half-written.
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
import types
import warnings
from pathlib import Path

import numpy as np

PAGE = 4096
CALLS = (
    "openat,open,creat,write,pwrite64,writev,lseek,ftruncate,rename,renameat,renameat2,unlink,unlinkat,"
    "rmdir,mkdir,mkdirat,fsync,fdatasync"
)
KINDS = ("file", "export", "keras", "checkpoints", "log", "extraction", "tfrecord")
IMAGES = 60  # of the extraction
MARK = b"acknowledged "


# The process that is recorded: every function writes into its own folder and acknowledges what is done.


def acknowledge(path):
    """Marks a file or folder as done in the record of system calls."""
    os.write(1, MARK + os.fsencode(path) + b"\n")


def write_file(folder):
    from keras_ssl import files

    for i in range(4):
        with files.complete(folder / "a.txt") as draft:
            Path(draft).write_text(f"{i}" * (3000 + 4000 * i))
        acknowledge(folder / "a.txt")


def tiny_task():
    import keras_ssl as kssl

    task = kssl.tasks.Rotation(kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,)))
    task.compile("adam")
    return task


def write_export(folder):
    import keras_ssl as kssl

    task = tiny_task()
    for _ in range(2):
        acknowledge(kssl.export(task, folder / "models" / "m"))


def write_keras(folder):
    from keras_ssl import files

    for _ in range(3):
        task = tiny_task()
        with files.complete(folder / "task.keras") as draft:  # as keras-ssl pretrain does
            task.save(draft)
        acknowledge(folder / "task.keras")


def write_checkpoints(folder, log=None):
    import keras_ssl as kssl

    class Acknowledged(kssl.callbacks.Checkpoint):
        def save(self, step):
            super().save(step)
            acknowledge(self.directory / f"step-{step:09d}.npz")

    class AcknowledgedLog(kssl.callbacks.CSVLog):
        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            acknowledge(self.path)

    task, images = tiny_task(), kssl.data.digits("test")
    callbacks = [
        AcknowledgedLog(log) if log else Acknowledged(folder / "runs" / "a", every_steps=1, keep=2)
    ]
    data = task.dataset(images, 120, epochs=4)
    task.fit(data, epochs=4, callbacks=callbacks, verbose=0)


def write_log(folder):
    write_checkpoints(folder, folder / "log.csv")


class Client:
    """Responds to image i with i, as a server would; every seventh image is unreadable."""

    model, label, version, batch_size, address = "m", None, None, 8, "nowhere"

    def _responses(self, signature, paths):
        for start in range(0, len(paths), self.batch_size):
            numbers = [int(Path(path).stem) for path in paths[start : start + self.batch_size]]
            if any(number % 7 == 0 for number in numbers):
                error = ValueError("unreadable")
                error.code = "INVALID_ARGUMENT"
                raise error
            rows = np.repeat(np.array(numbers, np.float32)[:, None], 300, axis=1)
            yield types.SimpleNamespace(version=1, count=len(rows), outputs={"features": rows})


def photos(folder):
    """Returns the paths of the files to extract, which exist before."""
    return [str(folder / f"{i:04d}.jpg") for i in range(IMAGES)]


def write_extraction(folder):
    from keras_ssl.serving.client import extraction

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extraction.extract(Client(), photos(folder.parent / "photos"), folder / "features.npz")
    acknowledge(folder / "features.npz")


def write_tfrecord(folder):
    import keras_ssl as kssl

    images = kssl.data.subset(kssl.data.digits("test"), range(40))
    kssl.data.to_tfrecord(images, folder / "data" / "digits", shards=3, verbose=0)
    acknowledge(folder / "data" / "digits")


# The disk: what the calls have done, and what a power failure may leave of it.


class File:
    def __init__(self):
        self.content, self.synced = bytearray(), b""

    def sync(self):
        self.synced = bytes(self.content)

    def left(self, rng):
        """Returns what a power failure leaves of the content."""
        if self.content == self.synced:
            return self.synced
        content = bytes(self.content)
        kind = rng.randrange(5)
        if kind == 0:
            return self.synced
        if kind == 1:
            return content
        if kind == 2:
            return content[: rng.randrange(len(content) + 1)]
        old = self.synced.ljust(len(content), b"\0")
        lost = rng.choice([0.1, 0.5, 1.0])
        pages = (
            (old if rng.random() < lost else content)[start : start + PAGE]
            for start in range(0, len(content), PAGE)
        )
        return b"".join(pages)


class Folder:
    def __init__(self):
        self.names, self.synced, self.changes = {}, {}, []

    def change(self, *changes):
        """Sets or removes (name, File, Folder or None) together."""
        self.changes.append(changes)
        apply(self.names, changes)

    def sync(self):
        self.synced, self.changes = dict(self.names), []

    def left(self, rng):
        """Returns the names that a power failure leaves, with their files and folders."""
        names = dict(self.synced)
        if rng.random() < 0.5:  # a journal keeps the order
            kept = self.changes[: rng.randrange(len(self.changes) + 1)]
        else:
            kept = [changes for changes in self.changes if rng.random() < 0.5]
        for changes in kept:
            apply(names, changes)
        return names


def apply(names, changes):
    for name, inode in changes:
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def tree(inode, content, names):
    """Returns the paths below a folder: {path: bytes, or None for a folder}."""
    if isinstance(inode, File):
        return {"": content(inode)}
    found = {"": None}
    for name, child in names(inode).items():
        below = tree(child, content, names)
        found.update({os.path.join(name, path).rstrip("/"): data for path, data in below.items()})
    return found


def present(inode):
    """Returns what the process that writes sees, without hidden drafts and locks."""

    def visible(folder):
        return {name: inode for name, inode in folder.names.items() if not name.startswith(".")}

    return tree(inode, lambda file: bytes(file.content), visible)


class Disk:
    """Carries out recorded system calls on files below a folder."""

    def __init__(self, root):
        self.root, self.top = os.fspath(root), Folder()
        self.at, self.appends = {}, set()  # positions of descriptors, and those that append
        for name in os.listdir(root):  # what is there before is on the disk
            self.top.change((name, Folder()))
        self.top.sync()

    def inside(self, path):
        return path.startswith(self.root + "/") and "(deleted)" not in path

    def find(self, path):
        inode = self.top
        for name in os.path.relpath(path, self.root).split("/"):
            inode = inode.names.get(name) if isinstance(inode, Folder) else None
        return inode

    def parent(self, path):
        folder, name = os.path.split(path)
        return (self.top if folder == self.root else self.find(folder)), name

    def call(self, name, arguments, strings, result):
        """Carries out a call; returns whether it has changed anything, or synced it."""
        handle = re.match(r"(\d+)<([^>]*)>", arguments)
        opened = re.match(r"(\d+)<([^>]*)>", result)
        if name in ("open", "openat", "creat"):
            path = decoded(opened[2]) if opened else ""
            if not self.inside(path):
                return False
            before, flags = self.find(path), arguments
            if before is None and "O_CREAT" in flags:
                folder, last = self.parent(path)
                folder.change((last, File()))
            elif "O_TRUNC" in flags:
                before.content.clear()
            self.at[opened[1]] = 0
            (self.appends.add if "O_APPEND" in flags else self.appends.discard)(opened[1])
            return before is None or "O_TRUNC" in flags
        if name.startswith(("rename", "unlink", "mkdir", "rmdir")):
            paths = [decoded(string) for string in strings]
            return all(map(self.inside, paths)) and self.rename(name, *paths)
        if not handle or not self.inside(path := decoded(handle[2])):
            return False
        inode, number = self.find(path), handle[1]
        if name in ("fsync", "fdatasync"):
            inode.sync()
        elif name == "lseek":
            self.at[number] = int(result)
            return False
        elif name == "ftruncate":
            size = int(arguments.rsplit(",", 1)[1])
            inode.content[:] = bytes(inode.content[:size]).ljust(size, b"\0")
        else:
            data = b"".join(map(raw, strings))
            end = len(inode.content) if number in self.appends else self.at[number]
            start = int(arguments.rsplit(",", 1)[1]) if name == "pwrite64" else end
            inode.content.extend(bytes(max(0, start - len(inode.content))))
            inode.content[start : start + len(data)] = data
            if name != "pwrite64":
                self.at[number] = start + len(data)
        return True

    def left(self, rng):
        """Returns the paths that a power failure leaves, as `tree` does."""
        return tree(self.top, lambda file: file.left(rng), lambda folder: folder.left(rng))

    def rename(self, name, path, new=None):
        folder, last = self.parent(path)
        if name.startswith("mkdir"):
            folder.change((last, Folder()))
        elif new is None:
            folder.change((last, None))
        else:
            other, new_last = self.parent(new)
            inode = folder.names[last]
            if other is folder:
                folder.change((last, None), (new_last, inode))
            else:
                other.change((new_last, inode))
                folder.change((last, None))
        return True


def raw(string):
    return bytes.fromhex(string.replace("\\x", ""))


def decoded(string):
    return os.fsdecode(raw(string)) if string.startswith("\\x") else string


def recorded(log):
    """Yields (name, arguments, strings, result) of the calls in strace's file that have succeeded."""
    started = {}
    for line in log.read_text().splitlines():
        process, _, rest = line.partition(" ")
        rest = rest.strip()
        if rest.endswith("<unfinished ...>"):
            started[process] = rest.removesuffix("<unfinished ...>")
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>", rest):
            rest = started.pop(process) + rest[resumed.end() :]
        if match := re.fullmatch(r"(\w+)\((.*)\)\s+= (\d.*)", rest):
            name, arguments, result = match.groups()
            yield name, arguments, re.findall(r'"([^"]*)"', arguments), result


def record(root, kinds, log):
    """Runs the process that writes, under strace."""
    for kind in kinds:
        (root / kind).mkdir()
    (root / "photos").mkdir()
    for path in photos(root / "photos"):
        Path(path).touch()
    command = [
        "strace", "-f", "--seccomp-bpf", "-y", "-xx", "-s", "100000000", "-e", f"trace={CALLS}", "-o", log,
        sys.executable, __file__, "--child", root, "--kinds", *kinds,
    ]  # fmt: skip
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)


# What must be true of a state.


def check(kind, folder, before, versions):
    """Checks the files of a kind after a power failure.

    Args:
        kind: one of KINDS.
        folder: pathlib.Path with what is left.
        before: list of (path, tree) that had been acknowledged, in this order.
        versions: dict from path to the list of its trees, each of which was complete at some time.
    """
    for path, trees in versions.items():
        if (folder / path).exists():
            found = on_disk(folder / path)
            # Of a data set, whole files may be missing until it is acknowledged.
            part = kind == "tfrecord" and found.items() <= trees[-1].items()
            assert found in trees or part, f"{path} is half-written"
    if not before:
        pass
    elif kind == "checkpoints":  # old ones are removed
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
            warnings.simplefilter("ignore")  # of unreadable images
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
    """Returns what is visible on the real disk, as `tree` does, without hidden drafts and locks."""
    if path.is_file():
        return {"": path.read_bytes()}
    found = {"": None}
    for below in path.rglob("[!.]*"):
        found[str(below.relative_to(path))] = below.read_bytes() if below.is_file() else None
    return found


def load(kind, path):
    """Loads what had been acknowledged with its own reader."""
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
        dict from kind to (number of cuts, of those with something acknowledged, different states left).
    """
    rng, figures = random.Random(seed), {}
    with tempfile.TemporaryDirectory() as work:
        root, log = Path(work, "root"), Path(work, "calls.txt")
        root.mkdir()
        record(root, kinds, log)
        os.environ["SOAK_PHOTOS"] = str(root / "photos")
        # Where each kind begins and ends in the calls, and when what was complete.
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
            # A quarter just after something was acknowledged, and before anything else happens.
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
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        for kind in options.kinds:
            globals()[f"write_{kind}"](Path(options.child, kind))
        return
    for kind, (cuts, acknowledged, states) in soak(
        options.cuts, options.kinds, options.seed
    ).items():
        print(
            f"{kind}: {cuts} power failures, {acknowledged} after something was acknowledged, {states} "
            "different states, all complete"
        )


if __name__ == "__main__":
    main()
