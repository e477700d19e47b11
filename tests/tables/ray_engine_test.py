"""Ray: the pool on a simulated cluster whose workers die, a real cluster that loses a node, wrong input."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import types
import warnings

import numpy as np
import pytest
import soak_ray
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_ssl.tables import FeatureTable, ray_cluster, ray_engine
from keras_ssl.tables.ray_worker import Found

ray = pytest.importorskip("ray", reason="Ray is not installed")


class Died(Exception):
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

    exceptions = types.SimpleNamespace(RayTaskError=Failed, RayError=Died)

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


@pytest.mark.parametrize("cpus", [1, 2, 7])
def test_a_file_that_kills_becomes_unreadable(cpus):
    killers = {"/p/5", "/p/77", "/p/78"}
    simulated = Simulated(lambda _, batch: any(path in killers for path, _ in batch or ()), [cpus])
    found, _ = encode(simulated, 100)
    assert paths(found) == list(range(100))
    reasons = {one.path: one.result for one in found if isinstance(one.result, str)}
    assert reasons == dict.fromkeys(killers, "3 worker processes died of it")


@pytest.mark.parametrize("dies", [lambda *_: True, lambda _, batch: batch is not None])
def test_workers_that_all_die(dies):
    with pytest.raises(RuntimeError, match=r"^10 worker processes died before .* Try a smaller"):
        encode(Simulated(dies), 100)


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
        ([{"CPU": 9.0, "GPU": 2.0}, {"CPU": 5.0, "GPU": 2.0}, {"CPU": 99.0}], (4, {"num_cpus": 2, "num_gpus": 1})),
        ([{"GPU": 1.0}], (1, {"num_cpus": 0, "num_gpus": 1})),
    ],
)  # fmt: skip
def test_capacity(nodes, expected):
    alive = [{"Alive": True, "Resources": resources} for resources in nodes]
    dead = [{"Alive": False, "Resources": {"CPU": 100.0, "GPU": 100.0}}]
    assert ray_engine._capacity(alive + dead) == expected
