"""Updates a table with the processes of a Ray cluster, any of which may die."""

import collections
import itertools
import os
import time
import warnings

from keras_ssl.data.folder import image_files
from keras_ssl.serving.client.progress import progress_bar
from keras_ssl.tables import store
from keras_ssl.tables.ray_cluster import connected
from keras_ssl.tables.ray_worker import Found, Worker
from keras_ssl.tables.update import Writer, has_text, is_same, label_of, read, settle

AT_ONCE = 2  # batches of a worker, which reads and decodes one while the model runs on the other
QUEUED = 4  # batches that a worker has or will get while the driver writes rows
DEATHS = 3  # of workers with a single file, until this file counts as unreadable
NODES_SECONDS, WAIT_SECONDS, WARN_SECONDS = 5, 1, 30
MEMORY_SECONDS = 10  # without new workers after Ray has killed one because memory is full


def update_by_ray(path, folder, identity, engine, progress=False):
    """Brings a table up to date with a folder of images, as `update` does, with workers of a Ray cluster.

    This process compares sizes and time stamps, and is the only one that writes. The workers read the files,
    compare their SHA-256, and encode them. Results arrive in any order, and so do ids. If a worker or machine
    dies, its batches are given to others.

    Args:
        path, folder, progress: as in `update`.
        identity: Identity of a model in a file or folder.
        engine: RayEngine.

    Returns:
        Counts.

    Raises:
        ValueError: as `update`; no cluster answers at the address, or a worker cannot load the model.
        RuntimeError: a worker does not find the files, or all workers die.

    Example:
        >>> identity = of_model("saved_models/rotation_photos")         # doctest: +SKIP
        >>> engine = RayEngine("saved_models/rotation_photos", identity, kssl.load)     # doctest: +SKIP
        >>> update_by_ray("features.lance", "photos/", identity, engine)                # doctest: +SKIP
        Counts(new=1000, changed=0, removed=0, unchanged=0, unreadable=2)
    """
    with store.locked(path):
        writer = Writer(path, folder, identity, encoder=None)
        paths = list(filter(has_text, map(os.path.abspath, image_files(folder))))
        writer.remove_others((name, None) for name in paths)
        with progress_bar(paths, progress) as advance:
            for found in engine.encoded(_candidates(paths, writer, advance)):
                if found.columns is not None:
                    row = {"path": found.path, "label": label_of(found.path, folder)}
                    settle(writer, {**row, **found.columns}, found.result)
                advance(1)
        return writer.close(f"{len(paths)} files in {str(folder)!r}")


def _candidates(paths, writer, advance):
    """Yields (path, known SHA-256 or None) of the files whose size or time stamp differs from the table's."""
    for path in paths:
        known = writer.known(path)
        if is_same(path, known):
            writer.unchanged += 1
            advance(1)
        else:
            yield path, known and known["hash"]


class RayEngine:
    """Encodes files with worker processes: one per GPU of a cluster, or one per CPU if there are no GPUs.

    Machines may come and go. The worker of a GPU has its part of the machine's CPUs.

    Args:
        model: path of the model, the same on all machines.
        identity: Identity of the model, which each worker compares with the model on its machine.
        load: function from the path to a keras.Model, which all machines can import.
        batch_size: int, images per batch.
        address: "HOST:PORT" of a running cluster, or None to start one on this machine.
    """

    def __init__(self, model, identity, load, batch_size=64, address=None):
        self._model = (os.path.abspath(model), identity.sha256, load, batch_size, os.getcwd())
        self._batch_size, self._address = batch_size, address

    def encoded(self, files):
        """Encodes files, in any order.

        Args:
            files: iterable of (path, known SHA-256 or None), which is read only as far ahead as needed.

        Yields:
            Found.
        """
        files = iter(files)
        batches = iter(lambda: list(itertools.islice(files, self._batch_size)), [])
        first = next(batches, None)
        if first is None:  # nothing to do: Ray is not started
            return
        with connected(self._address) as ray:
            pool = _Pool(ray, self._model, itertools.chain([first], batches))
            yield from _while_connected(ray, pool.results())
        if pool.lost:
            warnings.warn(
                f"{pool.lost} worker processes were lost; others have encoded their images",
                stacklevel=2,
            )


def _while_connected(ray, results):
    """Yields results; raises RuntimeError if Ray itself fails, for example when its head node is gone."""
    try:
        yield from results
    except ray.exceptions.RayError as error:
        raise RuntimeError(
            f"the Ray cluster is gone ({_last_line(error)}): the same command continues where it was"
        ) from None


class _Member:
    """What the driver knows about a worker."""

    def __init__(self, actor):
        self.actor, self.loaded, self.useful, self.batches = actor, False, False, []


class _Pool:
    """Gives batches to workers, replaces workers that die, and gives their batches to others.

    Ray's own retries are not used: they wait for a lost machine, and never end for a file that crashes
    workers.
    """

    def __init__(self, ray, model, batches):
        self._ray, self._model, self._batches = ray, model, batches
        options = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": AT_ONCE}
        self._actor = ray.remote(**options)(Worker)
        self._waiting = collections.deque()  # the next batches, and those of dead workers
        self._members, self._running = [], {}  # ObjectRef to (member, batch), None while it loads
        self._deaths = collections.Counter()  # of workers with a single file, by this file
        self._wanted, self._resources, self._looked = 1, {}, -NODES_SECONDS
        self._in_vain = self.lost = 0
        self._started, self._paused_until = time.monotonic(), 0.0

    def results(self):
        """Yields a `Found` for each file, as they arrive."""
        while self._has_work():
            self._add_workers()
            self._submit()
            self._warn()
            if not self._running:
                time.sleep(WAIT_SECONDS)
                continue
            for ref in self._ray.wait(list(self._running), timeout=WAIT_SECONDS)[0]:
                found = self._received(ref)
                self._submit()  # before the rows are written
                yield from found

    def _has_work(self):
        missing = max(1, QUEUED * self._wanted) - len(self._waiting)
        self._waiting.extend(itertools.islice(self._batches, max(0, missing)))
        # Batches of living workers do not count: the second batch of a dead worker comes back later.
        return self._waiting or any(batch for _, batch in self._running.values())

    def _add_workers(self):
        """Starts workers for the CPUs or GPUs of the cluster that have none, if there is work for them."""
        if time.monotonic() - self._looked >= NODES_SECONDS:
            self._looked = time.monotonic()
            self._wanted, self._resources = _capacity(self._ray.nodes())
        if time.monotonic() < self._paused_until:
            return
        work = len(self._waiting) + sum(len(member.batches) for member in self._members)
        actor = self._actor.options(**self._resources)
        for _ in range(min(self._wanted, work) - len(self._members)):
            member = _Member(actor.remote(max(1, self._resources["num_cpus"])))
            self._members.append(member)
            self._running[member.actor.load.remote(*self._model)] = (member, None)

    def _submit(self):
        """Gives each worker up to four batches, and gives a file that is alone its own worker."""
        for depth, member in itertools.product(range(QUEUED), self._members):
            if not self._waiting or not member.loaded or len(member.batches) > depth:
                continue
            if member.batches and 1 in (len(self._waiting[0]), len(member.batches[0])):
                continue
            batch = self._waiting.popleft()
            member.batches.append(batch)
            self._running[member.actor.encode.remote(batch)] = (member, batch)

    def _received(self, ref):
        """Returns the results of a worker; gives its batch to others if it has died."""
        member, batch = self._running.pop(ref)
        try:
            result = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            raise RuntimeError(f"a worker of the cluster failed: {_last_line(error)}") from None
        except self._ray.exceptions.RayError as error:
            self._bury(member, error)
            return self._again(batch) if batch else []
        if batch is None:
            if result:
                raise ValueError(result)
            member.loaded = True
            return []
        for found in result:
            _check(found)
        member.batches.remove(batch)
        member.useful, self._in_vain = True, 0
        return result

    def _bury(self, member, error):
        """Removes a worker that has died, or is out of reach."""
        if member not in self._members:
            return
        self._members.remove(member)
        self._ray.kill(member.actor)
        self.lost += 1
        self._in_vain += not member.useful
        if isinstance(error, self._ray.exceptions.OutOfMemoryError):
            # Another worker that starts at once would be killed, too, and its file would be blamed.
            self._paused_until = time.monotonic() + MEMORY_SECONDS
        if self._in_vain > DEATHS * (self._wanted + 1):
            raise RuntimeError(
                f"{self._in_vain} worker processes died before their first result: is there memory for the "
                f"model and a batch? Try a smaller --batch-size ({_last_line(error)})"
            )

    def _again(self, batch):
        """Queues the batch of a worker that has died; returns a list with a `Found` if a file is to blame."""
        if len(batch) > 1:  # halves, so that a file that crashes workers is alone in the end
            half = len(batch) // 2
            self._waiting.extend([batch[:half], batch[half:]])
            return []
        ((path, _),) = batch
        self._deaths[path] += 1
        if self._deaths[path] < DEATHS:
            self._waiting.appendleft(batch)  # first, or other such files would add up to `_in_vain`
            return []
        self._in_vain = 0
        return [Found(path, {}, f"{DEATHS} worker processes died of it")]

    def _warn(self):
        """Warns if there has been no worker with the model for half a minute."""
        if any(member.loaded for member in self._members):
            self._started = time.monotonic()
        elif self._started is not None and time.monotonic() - self._started > WARN_SECONDS:
            self._started = None
            warnings.warn(
                f"no worker has loaded the model in {WARN_SECONDS} s: the cluster may be slow, or busy with "
                "other jobs",
                stacklevel=2,
            )


def _check(found):
    """Raises RuntimeError if a machine cannot read a file that this machine can read.

    Such a machine would be faster than all others, and most images would be recorded as unreadable.
    """
    if found.columns is None and os.path.exists(found.path):
        raise RuntimeError(
            f"machine {found.result!r} of the cluster finds no file {found.path!r}: all machines need the "
            "folder under the same path"
        )
    if found.columns == {} and isinstance(read(found.path, None)[1], bytes):
        raise RuntimeError(
            f"a machine of the cluster cannot read {found.path!r} ({found.result}), but this one can: all "
            "machines need the rights to read the folder"
        )


def _capacity(nodes):
    """Returns how many workers the nodes of a cluster have room for, and the resources of each worker."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    with_gpu = [node for node in resources if node.get("GPU", 0) >= 1]
    if not with_gpu:
        return int(sum(node.get("CPU", 0) for node in resources)), {"num_cpus": 1}
    cpus = min(int(node.get("CPU", 0) // node["GPU"]) for node in with_gpu)
    return int(sum(node["GPU"] for node in with_gpu)), {"num_cpus": cpus, "num_gpus": 1}


def _last_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
