"""Updates a table by the processes of a Ray cluster, which read, hash and encode the files."""

import collections
import contextlib
import hashlib
import os
import socket
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_ssl.data.folder import image_files
from keras_ssl.serving.client.progress import progress_bar
from keras_ssl.tables import identity as identities
from keras_ssl.tables import store
from keras_ssl.tables.ray_cluster import connected
from keras_ssl.tables.update import Writer, _has_text, image_size, label_of

AHEAD = 2  # batches of a worker: it reads and decodes one while the other is in the model
DEATHS = 3  # of workers that had a file for themselves, until the file counts as unreadable
NODES_SECONDS, WAIT_SECONDS, WARN_SECONDS = 5, 1, 30


class Found(NamedTuple):
    """What a worker has found out about a file."""

    path: str
    columns: dict | None  # hash, bytes, modified, height, width; None if there is no such file
    result: (
        np.ndarray | str | None
    )  # features, or the reason why not; None if its content is the known one


def update_by_ray(path, folder, identity, engine, progress=False):
    """Brings a table up to date with the images of a folder, as `update`, by the workers of a Ray cluster.

    This process compares sizes and time stamps, and is the only one that writes. The workers read the files,
    compare their SHA-256, and encode them. Results arrive in any order, and so do ids. What a worker, or a
    machine, that dies had in hand is given to others; what has arrived from it is written once.

    Args:
        path, folder, identity, progress: as of `update`; the model is in a file or folder.
        engine: RayEngine.

    Returns:
        Counts.

    Raises:
        ValueError: as `update`; no cluster answers at the address, or a worker cannot load the model.
        RuntimeError: a worker does not see the files, or all workers die.

    Example:
        >>> identity = of_model("saved_models/rotation_photos")         # doctest: +SKIP
        >>> engine = RayEngine("saved_models/rotation_photos", identity, kssl.load)     # doctest: +SKIP
        >>> update_by_ray("features.lance", "photos/", identity, engine)                # doctest: +SKIP
        Counts(new=1000, changed=0, removed=0, unchanged=0, unreadable=2)
    """
    with store.locked(path):
        writer = Writer(path, identity, encoder=None)
        paths = list(filter(_has_text, map(os.path.abspath, image_files(folder))))
        writer.remove_others(folder, {(name, None) for name in paths})
        todo = [name for name in paths if not _is_same(name, writer.known.get((name, None)))]
        writer.unchanged = len(paths) - len(todo)
        known = {name: writer.known.get((name, None)) for name in todo}
        with progress_bar(todo, progress) as advance:
            files = [(name, row and row["hash"]) for name, row in known.items()]
            for found in engine.encoded(files):
                advance(1)
                _write(writer, found, known[found.path], label_of(found.path, folder))
        return writer.close(f"{len(paths)} files in {str(folder)!r}")


def _is_same(path, known):
    """Returns whether a file has the size and time stamp of its row."""
    try:
        status = os.stat(path)
    except OSError:
        return False  # the worker finds out why
    return bool(known) and (known["bytes"], known["modified"]) == (
        status.st_size,
        status.st_mtime_ns,
    )


def _write(writer, found, known, label):
    """Writes the row of a file, unless it is unchanged, or gone since the folder was listed."""
    if found.columns is None:
        return
    # What could be read before may be read again: a network disk may be away for a moment.
    if found.result is None or (known and not found.columns):
        writer.unchanged += 1
        return
    writer.write({"path": found.path, "label": label, **found.columns}, found.result)


class RayEngine:
    """Encodes files by worker processes, one for each CPU of a cluster, or for each GPU if there are any.

    A worker has `num_cpus=1`, and TensorFlow as many threads; that of a GPU has its part of the machine's
    CPUs. Machines may come and go.

    Args:
        model: path of the model, the same on all machines.
        identity: Identity of the model, which each worker compares with what it has under that path.
        load: function from the path to the keras.Model, importable on all machines.
        batch_size: int, images at a time.
        address: "HOST:PORT" of a running cluster, or None to start one on this machine.
    """

    def __init__(self, model, identity, load, batch_size=64, address=None):
        self._model = (os.path.abspath(model), identity.sha256, load, batch_size, os.getcwd())
        self._batch_size, self._address = batch_size, address

    def encoded(self, files):
        """Yields a `Found` for each of the files, a list of (path, SHA-256 in the table or None)."""
        if not files:
            return
        size = self._batch_size
        batches = [files[start : start + size] for start in range(0, len(files), size)]
        with connected(self._address) as ray:
            pool = _Pool(ray, self._model, batches)
            for found in pool.results():
                if found.columns is None and os.path.exists(found.path):
                    raise RuntimeError(
                        f"machine {found.result!r} of the cluster finds no file {found.path!r}: all machines "
                        "need the folder under the same path"
                    )
                yield found
            if pool.lost:
                warnings.warn(
                    f"{pool.lost} worker processes were lost; others have encoded their images",
                    stacklevel=2,
                )


class Worker:
    """A process of the cluster with the model; a Ray actor."""

    def __init__(self, threads):
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)

    def load(self, model, sha256, load, batch_size, folder):
        """Loads the model; returns None, or a sentence why not."""
        from keras_ssl.tables.encode import LocalEncoder

        try:
            if identities.of_model(model).sha256 != sha256:
                raise ValueError(f"{model!r} has other weights there")
            with contextlib.suppress(OSError):
                os.chdir(folder)  # where `--import` finds modules
            self._encoder = LocalEncoder(load(model), batch_size)
        except Exception as error:  # whatever a model or a module of the user raises
            return f"machine {socket.gethostname()!r} of the cluster cannot load the model: {error}"
        return None

    def encode(self, files):
        """Returns a list of `Found` for a list of (path, known SHA-256)."""
        done = []

        def contents():
            for path, known in files:
                columns, content = read(path, known)
                if isinstance(content, bytes):
                    yield (path, columns), content
                else:
                    done.append(Found(path, columns, content))

        for (path, columns), result in self._encoder.files(contents()):
            done.append(Found(path, columns, result))
        return done


def read(path, known):
    """Reads and describes a file.

    Args:
        path: str.
        known: str, its SHA-256 when it was last encoded, or None.

    Returns:
        (columns, content): columns of its row, and its bytes; None instead of bytes if its SHA-256 is
        `known`. If it cannot be read, {} and the reason; if it does not exist, None and the machine's name.
    """
    try:
        status, content = os.stat(path), Path(path).read_bytes()
    except FileNotFoundError:
        return None, socket.gethostname()
    except OSError as error:
        return {}, error.strerror
    digest = hashlib.sha256(content).hexdigest()
    if digest == known:
        return {"hash": digest}, None
    height, width = image_size(content)
    return {
        "hash": digest, "bytes": status.st_size, "modified": status.st_mtime_ns, "height": height,
        "width": width,
    }, content  # fmt: skip


class _Member:
    """What the driver knows about a worker."""

    def __init__(self, actor):
        self.actor, self.loaded, self.useful, self.batches = actor, False, False, []


class _Pool:
    """Gives batches to workers, replaces workers that die, and gives their batches to others."""

    def __init__(self, ray, model, batches):
        self._ray, self._waiting = ray, collections.deque(batches)
        self._model = ray.put(model)
        self._members, self._running = [], {}  # ObjectRef to (member, batch), None while it loads
        self._deaths = collections.Counter()  # of workers, by the file that they had for themselves
        self.lost, self._in_vain, self._wanted = 0, 0, 1
        self._looked, self._started = -np.inf, time.monotonic()

    def results(self):
        """Yields a `Found` for each file, as they arrive."""
        while self._waiting or any(member.batches for member in self._members):
            self._add_workers()
            self._submit()
            if not self._running:
                time.sleep(WAIT_SECONDS)
            else:
                for ref in self._ray.wait(list(self._running), timeout=WAIT_SECONDS)[0]:
                    yield from self._received(ref)
            self._warn()

    def _add_workers(self):
        """Starts workers for the CPUs or GPUs of the cluster that have none, if there is work for them."""
        if time.monotonic() - self._looked < NODES_SECONDS:
            return
        self._looked = time.monotonic()
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        with_gpu = [node for node in nodes if node.get("GPU")]
        self._wanted = int(sum(node.get("GPU" if with_gpu else "CPU", 0) for node in nodes))
        cpus = min([node.get("CPU", 0) // node["GPU"] for node in with_gpu], default=1)
        resources = {"num_cpus": cpus, "num_gpus": 1} if with_gpu else {"num_cpus": 1}
        work = len(self._waiting) + sum(len(member.batches) for member in self._members)
        actor = self._ray.remote(Worker).options(
            max_restarts=0, max_task_retries=0, max_concurrency=AHEAD, **resources
        )
        for _ in range(min(self._wanted, work) - len(self._members)):
            member = _Member(actor.remote(max(1, int(cpus))))
            self._members.append(member)
            self._running[member.actor.load.remote(*self._ray.get(self._model))] = (member, None)

    def _submit(self):
        """Gives each worker up to two batches, but a file that is alone a worker of its own."""
        for depth in range(AHEAD):
            for member in self._members:
                if not self._waiting or not member.loaded or len(member.batches) > depth:
                    continue
                if member.batches and 1 in (len(self._waiting[0]), len(member.batches[0])):
                    continue
                batch = self._waiting.popleft()
                member.batches.append(batch)
                self._running[member.actor.encode.remote(batch)] = (member, batch)

    def _received(self, ref):
        """Returns the list of `Found` that has arrived; gives the batch of a worker that has died to others."""
        member, batch = self._running.pop(ref)
        errors = self._ray.exceptions
        try:
            result = self._ray.get(ref)
        except errors.RayTaskError as error:
            raise RuntimeError(f"a worker of the cluster failed: {_last_line(error)}") from None
        except errors.RayError as error:
            return self._died(member, batch, error)
        if batch is None:
            if result:
                raise ValueError(result)
            member.loaded = True
            return []
        member.batches.remove(batch)
        member.useful, self._in_vain = True, 0
        return result

    def _died(self, member, batch, error):
        """Counts the death of a worker, and returns a list of `Found` if its file is to blame."""
        if member in self._members:
            self._members.remove(member)
            self._looked = -np.inf  # start another one
            self._ray.kill(member.actor)  # it may only have been out of reach
            self.lost += 1
            self._in_vain += not member.useful
        if self._in_vain > DEATHS * (self._wanted + 1):
            raise RuntimeError(
                f"{self._in_vain} worker processes died before their first result: is there memory for the "
                f"model and a batch? Try a smaller --batch-size ({_last_line(error)})"
            )
        if not batch:
            return []
        if len(batch) > 1:  # halves, so that a file that kills is alone in the end
            half = len(batch) // 2
            self._waiting.extend([batch[:half], batch[half:]])
            return []
        ((path, _),) = batch
        self._deaths[path] += 1
        if self._deaths[path] < DEATHS:
            self._waiting.append(batch)
            return []
        self._in_vain = 0
        return [Found(path, {}, f"{DEATHS} worker processes died of it")]

    def _warn(self):
        """Warns once if no worker has started for half a minute."""
        late = self._started is not None and time.monotonic() - self._started > WARN_SECONDS
        if any(member.loaded for member in self._members):
            self._started = None
        elif late:
            self._started = None
            warnings.warn(
                f"no worker has loaded the model in {WARN_SECONDS} s: the cluster may be busy with other "
                "jobs, or slow",
                stacklevel=2,
            )


def _last_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
