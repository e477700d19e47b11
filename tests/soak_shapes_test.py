"""A short form of tools/soak_shapes.py."""

import itertools
import json

import pytest
import soak_shapes
import zoo_operations

from keras_ssl.tasks import TASKS

SIZE = {"batch": 1, "height": 8, "width": 8, "inputs": 1, "outputs": 1, "dtype": "float32"}


@pytest.fixture(scope="module")
def zoo():
    return zoo_operations.zoo()


def test_reads_the_operations_of_every_network(zoo):
    assert {row.name for row in TASKS} <= set(itertools.chain(*zoo.values()))
    kinds = [json.loads(kind) for kind in zoo]
    # Stems, the subsampled shortcut, transposed convolutions, and discriminators.
    kernels = {(k["op"], k["stride"], *k["kernel"]) for k in kinds if "kernel" in k}
    assert {("Conv2D", 1, 3, 3), ("Conv2D", 2, 7, 7), ("MaxPool", 2, 3, 3)} <= kernels
    assert {("MaxPool", 2, 1, 1), ("Conv2D", 1, 1, 1), ("Conv2D", 2, 4, 4)} <= kernels
    assert {"op": "MatMul"} in kinds  # heads


def test_no_network_has_an_operation_that_is_known_to_corrupt_the_heap(zoo):
    kinds = [json.loads(kind) for kind in zoo]
    assert not [k for k in kinds if "Conv" in k["op"] and k["kernel"] == [1, 1] and k["stride"] > 1]
    assert not [k for k in kinds if len({*k.get("ranks", [])}) > 1]


def test_zoo_is_clean_and_planted_faults_are_found(zoo):
    # One process runs all cases, and a new one those after the crash.
    kinds = [json.loads(kind) for kind in zoo]
    sample = soak_shapes.sample(kinds, seed=0, most=1e6)
    planted = [{**SIZE, "op": f"planted_{fault}"} for fault in ("difference", "abort")]
    cases = [*itertools.islice(sample, 30), *planted, *itertools.islice(sample, 5)]
    counts = []
    faults = list(soak_shapes.soak(cases, (2,), lambda *numbers: counts.append(numbers)))
    assert [case["op"] for case, _ in faults] == ["planted_difference", "planted_abort"], faults
    assert "1 of 64 numbers differ" in faults[0][1]
    assert "crashed in planted_abort: Aborted" in faults[1][1]
    assert counts[-1] == (37, 2)  # it continued after the crash
