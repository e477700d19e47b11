"""Ray: the pool on a simulated cluster whose workers die, a real cluster that loses a node, wrong input."""

import contextlib
import importlib.util
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import soak_ray
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_ssl as kssl
from keras_ssl.tables import FeatureTable, ray_cleanup, ray_cluster, ray_engine
from keras_ssl.tables.identity import of_model
from keras_ssl.tables.ray_worker import Found, Worker
from keras_ssl.tables.update import read

needs_ray = pytest.mark.skipif(
    not importlib.util.find_spec("ray"), reason="Ray is not installed: pip install ray"
)

# Starts a cluster twice; the second time the process is killed.
TWICE = """
import os, signal, sys
sys.argv[0] = "keras-ssl"  # without TensorFlow
from keras_ssl.tables import ray_cluster
for killed in (False, True):
    with ray_cluster.connected() as ray:
        print("lost")
        print(int(ray.cluster_resources()["CPU"]), file=sys.stderr)
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
    print(os.listdir(os.environ["TMPDIR"]))
    assert not [name for name in os.environ if name.startswith("RAY_AUTH")]
"""


@pytest.fixture(autouse=True)
def stay(monkeypatch):
    """A worker changes to the folder of its driver."""
    monkeypatch.chdir(os.getcwd())  # and back


class Died(Exception):
    pass


class Full(Died):
    pass


class Failed(Exception):
    pass


class Simulated:
    """Stands for the module `ray`: workers answer at once, unless they die by `dies(worker, batch)`.

    Args:
        dies: function of the worker's number and of its batch (None while it loads) to bool.
        cpus: list of the CPUs of the nodes each time that the driver looks; the last one stays.
        answer: what loading the model returns.
    """

    exceptions = types.SimpleNamespace(RayTaskError=Failed, RayError=Died, OutOfMemoryError=Full)

    def __init__(self, dies=lambda worker, batch: False, cpus=(2,), answer=None):
        self.dies, self.cpus, self.answer = dies, list(cpus), answer
        self.dead, self.started, self.refs, self.busiest = set(), [], [], 0
        self.batches = []  # in flight: (worker, batch)

    def nodes(self):
        cpus = self.cpus.pop(0) if len(self.cpus) > 1 else self.cpus[0]
        return [
            {"Alive": True, "Resources": {"CPU": float(cpus)}},
            {"Alive": False, "Resources": {}},
        ]

    def remote(self, **fixed):
        def options(**resources):
            every = {**fixed, **resources}
            return types.SimpleNamespace(remote=lambda threads: self._actor(threads, every))

        return lambda actor: types.SimpleNamespace(options=options)

    def _actor(self, threads, resources):
        number = len(self.started)
        self.started.append((threads, resources))

        def method(name):
            def remote(*arguments):
                ref = (len(self.refs), number, None if name == "load" else arguments[0])
                self.refs.append(ref)
                if name == "encode":
                    self.batches.append(ref)
                    mine = [batch for _, worker, batch in self.batches if worker == number]
                    self.busiest = max(self.busiest, len(mine))
                    assert len(mine) == 1 or min(map(len, mine)) > 1, "a file was not alone"
                return Ref(ref)

            return types.SimpleNamespace(remote=remote)

        return types.SimpleNamespace(load=method("load"), encode=method("encode"), number=number)

    def wait(self, refs, timeout):
        return refs[: 1 + len(self.refs) % 2], refs[2:]

    def kill(self, actor):
        assert actor.number in self.dead

    def get(self, ref):
        _, worker, batch = ref.value
        self.batches = [one for one in self.batches if one != ref.value]
        if worker in self.dead or self.dies(worker, batch):
            self.dead.add(worker)
            raise Died("The actor died\nunexpectedly")
        if batch is None:
            return self.answer
        return [Found(path, {"hash": path}, np.ones(2)) for path, _ in batch]


class Ref:
    """As Ray's: equal to itself only."""

    def __init__(self, value):
        self.value = value


def encode(simulated, number, take=None, batch_size=8, **constants):
    """Encodes files on a simulated cluster; returns a list of `Found` and the warnings."""

    @contextlib.contextmanager
    def connected(address):
        assert address == "here:1"
        yield simulated

    identity = types.SimpleNamespace(sha256="ab")
    engine = ray_engine.RayEngine("m", identity, None, batch_size, "here:1")
    simulated.read = itertools.count()
    files = ((f"/p/{next(simulated.read)}", None) for _ in range(number))
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        patch.setattr(ray_engine, "connected", connected)
        for name, value in {"NODES_SECONDS": 0, "WAIT_SECONDS": 0, **constants}.items():
            patch.setattr(ray_engine, name, value)
        found = list(itertools.islice(engine.encoded(files), take))
    return found, [str(one.message) for one in warned]


def paths(found):
    return sorted(int(one.path.rpartition("/")[2]) for one in found)


def test_each_file_once_by_as_many_workers_as_cpus():
    simulated = Simulated(cpus=[3])
    found, warned = encode(simulated, 200)
    assert paths(found) == list(range(200))
    assert simulated.started == [
        (1, {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": 2, "num_cpus": 1})
    ] * 3  # fmt: skip
    assert simulated.busiest == ray_engine.QUEUED
    assert warned == []


def test_no_more_workers_than_batches_and_none_for_no_file():
    simulated = Simulated(cpus=[50])
    assert paths(encode(simulated, 17)[0]) == list(range(17))
    assert len(simulated.started) == 3
    simulated = Simulated()
    assert encode(simulated, 0) == ([], [])
    assert simulated.started == []


def test_files_are_read_only_as_far_ahead_as_needed():
    simulated = Simulated(cpus=[2])
    assert len(encode(simulated, 10**6, take=1)[0]) == 1
    assert next(simulated.read) <= 8 * 2 * (2 * ray_engine.QUEUED)


def test_nodes_that_come_later_get_workers():
    simulated = Simulated(cpus=[0, 0, 1, 1, 1, 4])
    assert paths(encode(simulated, 800)[0]) == list(range(800))
    assert len(simulated.started) == 4


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_each_file_once_whatever_dies(data):
    number, cpus = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 5))
    left = data.draw(st.integers(0, 3 * (cpus + 1)))  # as many deaths as there is patience for
    random = data.draw(st.randoms(use_true_random=False))

    def dies(worker, batch):
        nonlocal left
        # Three deaths of workers that have a single file would be its fault.
        died = left and not (batch and len(batch) == 1) and random.random() < 0.3
        left -= bool(died)
        return died

    simulated = Simulated(dies, [cpus])
    found, warned = encode(simulated, number)
    assert paths(found) == list(range(number))
    assert all(isinstance(one.result, np.ndarray) for one in found)
    lost = f"{len(simulated.dead)} worker processes were lost; others have encoded their images"
    assert warned == ([lost] if simulated.dead else [])


def test_a_death_that_is_told_batch_by_batch():
    """The second batch of a dead worker fails when the others have done everything else."""

    class Late(Simulated):
        def wait(self, refs, timeout):
            return sorted(refs, key=lambda ref: ref.value[1] in self.dead)[:1], []

    simulated = Late(lambda worker, batch: worker == 0 and batch is not None)
    assert paths(encode(simulated, 60)[0]) == list(range(60))
    assert simulated.dead == {0}


def test_the_head_of_the_cluster_dies():
    class Gone(Simulated):
        def wait(self, refs, timeout):
            raise Died("GCS is gone\nfor ever")

    message = r"the Ray cluster is gone \(for ever\): the same command continues"
    with pytest.raises(RuntimeError, match=message):
        encode(Gone(), 5)


@pytest.mark.parametrize("cpus", [1, 2, 7])
@pytest.mark.parametrize("last", [78, 99])
def test_files_that_kill_become_unreadable(cpus, last):
    killers = {"/p/5", *(f"/p/{last - k}" for k in range(4))}
    simulated = Simulated(lambda _, batch: any(path in killers for path, _ in batch or ()), [cpus])
    found, _ = encode(simulated, 100)
    assert paths(found) == list(range(100))
    reasons = {one.path: one.result for one in found if isinstance(one.result, str)}
    assert reasons == dict.fromkeys(killers, "3 worker processes died of it")


@pytest.mark.parametrize("dies", [lambda *_: True, lambda _, batch: batch is not None])
def test_workers_that_all_die(dies):
    with pytest.raises(RuntimeError, match=r"^10 worker processes died before .* Try a smaller"):
        encode(Simulated(dies), 100)


def full(worker):
    """Ray kills this worker at its first batch, because the memory of the machine is full."""

    def dies(number, batch):
        if number == worker and batch:
            raise Full("1 worker(s) were killed")

    return dies


def test_no_new_worker_at_once_where_memory_is_full():
    class Killing(Simulated):
        def get(self, ref):
            try:
                return super().get(ref)
            except Full:
                self.dead.add(ref.value[1])
                self.killed = time.monotonic()
                raise

        def _actor(self, *arguments):
            self.last = time.monotonic()
            return super()._actor(*arguments)

    simulated = Killing(full(1))
    found, _ = encode(simulated, 100, MEMORY_SECONDS=1000)  # the other one goes on
    assert paths(found) == list(range(100))
    assert len(simulated.started) == 2
    simulated = Killing(full(0), cpus=[1])
    found, _ = encode(simulated, 100, MEMORY_SECONDS=0.3)
    assert paths(found) == list(range(100))
    assert len(simulated.started) == 2
    assert simulated.last - simulated.killed >= 0.3
    found, _ = encode(Simulated(lambda *what: what[0] == 0, [1]), 100, MEMORY_SECONDS=1000)
    assert paths(found) == list(range(100))  # any other death: at once


def test_errors_of_workers():
    with pytest.raises(ValueError, match="^machine 'a' cannot load the model$"):
        encode(Simulated(answer="machine 'a' cannot load the model"), 100)
    simulated = Simulated()

    def fail(_):
        raise Failed("ray::Worker.encode()\n  File x\nValueError: out of memory")

    simulated.get = fail
    with pytest.raises(
        RuntimeError, match="^a worker of the cluster failed: ValueError: out of me"
    ):
        encode(simulated, 100)


def test_files_that_only_one_machine_cannot_read(tmp_path):
    simulated = Simulated()
    found = Found(str(tmp_path / "a.jpg"), {}, "Permission denied")
    simulated.get = lambda ref: ref.value[2] and [found]
    assert encode(simulated, 1)[0] == [found]  # here neither
    (tmp_path / "a.jpg").write_text("a")
    with pytest.raises(
        RuntimeError, match=r"cannot read '.*a.jpg' \(Permission denied\), but this"
    ):
        encode(simulated, 1)


def test_files_that_a_machine_does_not_find(tmp_path):
    simulated = Simulated()
    simulated.get = lambda ref: ref.value[2] and [Found(str(tmp_path), None, "lonely")]
    with pytest.raises(
        RuntimeError, match=r"^machine 'lonely' of the cluster finds no file '/.*same p"
    ):
        encode(simulated, 8)
    # One that has been removed meanwhile.
    simulated.get = lambda ref: ref.value[2] and [Found("/nowhere/1.jpg", None, "lonely")]
    assert encode(simulated, 8)[0] == [("/nowhere/1.jpg", None, "lonely")]


def test_warns_if_no_worker_starts():
    _, warned = encode(Simulated(cpus=[0, 0, 0, 2]), 10, WARN_SECONDS=-1)
    assert warned == [
        "no worker has loaded the model in -1 s: the cluster may be slow, or busy with other jobs"
    ]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([{"CPU": 4.0}, {"CPU": 2.5}, {"memory": 1.0}], (6, {"num_cpus": 1})),
        ([], (0, {"num_cpus": 1})),
        ([{"CPU": 64.0, "GPU": 8.0}], (8, {"num_cpus": 8, "num_gpus": 1})),
        # Workers of GPUs must fit on every node; CPUs of other nodes have none.
        (
            [{"CPU": 9.0, "GPU": 2.0}, {"CPU": 5.0, "GPU": 2.0}, {"CPU": 99.0}],
            (4, {"num_cpus": 2, "num_gpus": 1}),
        ),
        ([{"GPU": 1.0}], (1, {"num_cpus": 0, "num_gpus": 1})),
    ],
)  # fmt: skip
def test_capacity(nodes, expected):
    alive = [{"Alive": True, "Resources": resources} for resources in nodes]
    dead = [{"Alive": False, "Resources": {"CPU": 100.0, "GPU": 100.0}}]
    assert ray_engine._capacity(alive + dead) == expected


@pytest.fixture
def photos(tmp_path):
    soak_ray.write_images(tmp_path / "photos", 5, 20)
    (tmp_path / "photos" / "bad.jpg").write_text("text")
    return tmp_path / "photos"


def test_a_worker(photos, exported, tmp_path):
    worker = Worker.__new__(Worker)
    digest = of_model(exported).sha256
    assert worker.load(str(exported), digest, kssl.load, 4, str(tmp_path)) is None
    assert os.getcwd() == str(tmp_path)
    first, second, third, bad, folder, gone = (
        str(photos / name)
        for name in ("0/000000.jpg", "1/000001.jpg", "0/000002.jpg", "bad.jpg", "", "gone.jpg")
    )
    known = read(second, None)[0]["hash"]
    files = [
        (first, None),
        (second, known),
        (third, known),
        (bad, None),
        (folder, None),
        (gone, "ab"),
    ]
    found = {one.path: one for one in worker.encode(files)}
    assert found.keys() == {path for path, _ in files}
    for path in (first, third):
        pixels = kssl.images.resize(kssl.ops.decode.decode(Path(path).read_bytes()), 32, 32)
        expected = worker._encoder._features(pixels[None]).numpy()[0]
        np.testing.assert_allclose(found[path].result, expected, rtol=1e-4, atol=1e-5)
        status = os.stat(path)
        assert found[path].columns == {
            "hash": read(path, None)[0]["hash"], "bytes": status.st_size,
            "modified": status.st_mtime_ns, "height": 20, "width": 20,
        }  # fmt: skip
    assert found[second].columns["hash"] == known
    assert found[second].result is None
    assert found[bad].result == "Unknown image file format (JPEG, PNG, GIF, BMP)"
    assert found[bad].columns["bytes"] == 4
    assert found[folder] == (folder, {}, "Is a directory")
    assert found[gone] == (gone, None, socket.gethostname())


def test_models_that_a_worker_cannot_load(exported):
    worker = Worker.__new__(Worker)
    start = f"machine {socket.gethostname()!r} of the cluster cannot load the model: "
    assert worker.load("/nowhere/m", "ab", kssl.load, 4, "/").startswith(
        start + "there is no export in '/nowhere/m'"
    )
    assert worker.load(str(exported), "ab", kssl.load, 4, "/") == (
        f"{start}{str(exported)!r} has other weights there"
    )

    def fail(path):
        raise KeyError("my_layer")

    assert (
        worker.load(str(exported), of_model(exported).sha256, fail, 4, "/") == start + "'my_layer'"
    )


@needs_ray
def test_a_cluster_of_this_machine_leaves_nothing(tmp_path):
    folder = tmp_path / "t"
    folder.mkdir()
    child = subprocess.run(
        [sys.executable, "-c", TWICE], env={**os.environ, "TMPDIR": str(folder), "HOME": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert child.stdout in ("[]\n", "")  # not flushed before the kill
    assert child.stderr.split() == [str(len(os.sched_getaffinity(0)))] * 2
    end = time.monotonic() + 10
    while (left := os.listdir(folder)) and time.monotonic() < end:
        time.sleep(0.1)
    assert left == []
    assert ray_cleanup.users(str(folder)) == set()
    assert os.listdir(tmp_path) == ["t"]


def test_a_token_of_the_user_is_kept(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with ray_cluster._token():
        assert os.environ["RAY_AUTH_TOKEN"] == "mine"
        os.environ["RAY_AUTH_MODE"] = "token"
    assert os.environ["RAY_AUTH_TOKEN"] == "mine"
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_cleanup_spares_the_driver(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    with open(folder / "log", "w") as log:  # this process is the driver
        other = subprocess.Popen(["sleep", "60"], stdout=log)
        assert ray_cleanup.users(str(folder)) == {os.getpid(), other.pid}
        subprocess.run(
            [sys.executable, ray_cleanup.__file__, folder, str(os.getpid())],
            stdin=subprocess.DEVNULL, check=True,
        )  # fmt: skip
    assert other.wait() == -signal.SIGKILL
    assert not folder.exists()


@needs_ray
def test_a_node_and_a_driver_are_killed(exported, tmp_path):
    moments, difference = soak_ray.soak(
        tmp_path, exported, 150, drivers=2, fragment=8, batch_size=8, pause=0.25
    )
    assert [what for what, _ in moments] == ["node", "driver"]
    assert all(0 < has < 150 for _, has in moments)
    assert difference < 1e-4
    left = map(soak_ray.command_of, soak_ray.descendants())
    assert [line for line in left if "ray" in line] == []


@pytest.fixture
def extract(command, exported, photos):
    def run(*options, out="f.lance", folder=photos):
        begin = time.monotonic()
        code, printed, error = command(
            "extract", folder, "--model", exported, "--out", out, *options
        )
        assert (code, printed) == (2, "")
        assert time.monotonic() - begin < 10
        return error

    return run


def test_wrong_options(extract, monkeypatch):
    ray = ("--engine", "ray")
    assert extract("--address", "a:1") == "keras-ssl: --address needs --engine ray\n"
    assert "a table: give an --out that ends in .lance, not 'f.npz'" in extract(*ray, out="f.npz")
    for address in ("a", "a:", ":1", "a:b", "ray://a:1", "a:0", "a:70000"):
        error = extract(*ray, "--address", address)
        assert (
            f"--address must be of the form HOST:PORT, that of `ray start --head`, got {address!r}"
            in error
        )
        assert error.count("\n") == 1
    assert "leave --server or --engine out" in extract(*ray, "--server", "a:1")
    assert "'spark' is not" in extract("--engine", "spark")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert extract(*ray) == (
        'keras-ssl: --engine ray needs Ray: pip install "keras-ssl[ray]", or pip install ray\n'
    )


@needs_ray
def test_addresses_without_a_cluster(extract, monkeypatch):
    monkeypatch.setattr(ray_cluster, "CONNECT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        error = extract("--engine", "ray", "--address", address)
        assert (
            f"no Ray cluster answers at {address!r} (what listens there is not Ray's): start"
            in error
        )
    error = extract("--engine", "ray", "--address", address)
    assert (
        f"no Ray cluster answers at {address!r} (Connection refused): start it by `ray start"
        in error
    )
    assert "Name or service not known" in extract("--engine", "ray", "--address", "no-such-host:1")


@needs_ray
def test_tables_of_another_model_and_videos(extract, tmp_path):
    identity = kssl.tables.store.Identity("other", 1, "ab12")
    FeatureTable.create(tmp_path / "f.lance", identity, 4)
    error = extract("--engine", "ray")
    assert "'f.lance' holds features of the model other version 1, not of rotation_digits" in error
    assert "reads folders of images only" in extract(
        "--engine", "ray", "--frames", 2, out="c.lance"
    )
