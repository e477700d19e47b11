"""What is put together, when, and who pays for a bad neighbour."""

import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_ssl.serving.server.batching import Batcher
from keras_ssl.serving.server.configs import BatchingParameters
from keras_ssl.serving.server.errors import StatusError


def parameters(**fields):
    message = BatchingParameters()
    for name, value in fields.items():
        if name == "allowed_batch_sizes":
            message.allowed_batch_sizes.extend(value)
        elif name == "pad_variable_length_inputs":
            message.pad_variable_length_inputs = value
        else:
            getattr(message, name).value = value
    return message


class Model:
    """Squares x, slowly if asked, and writes down the sizes of its batches."""

    def __init__(self, gate=None):
        self.sizes, self.gate = [], gate

    def __call__(self, inputs):
        x = inputs["x"]
        self.sizes.append(len(x))
        if self.gate is not None:
            self.gate.wait(10)
        if (x < 0).any():
            raise ValueError("x must not be negative")
        return {"y": x**2}


def ask(batcher, model, arrays, key="k", **options):
    """Answers of requests that are sent at the same time."""
    with futures.ThreadPoolExecutor(len(arrays)) as pool:
        return list(pool.map(lambda x: batcher.run(key, model, {"x": x}, **options), arrays))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(2, 8))
def test_each_gets_its_own_rows(sizes, largest):
    batcher = Batcher(
        parameters(max_batch_size=largest, batch_timeout_micros=3000, num_batch_threads=2)
    )
    model = Model()
    arrays = [np.arange(n) + 100.0 * i for i, n in enumerate(sizes)]
    for x, answer in zip(arrays, ask(batcher, model, arrays), strict=True):
        np.testing.assert_array_equal(answer["y"], x**2)
    batcher.close()
    assert sum(model.sizes) == sum(sizes)
    assert all(n <= max(largest, *sizes) for n in model.sizes)


def test_a_full_batch_does_not_wait_and_a_small_one_waits_its_time():
    batcher = Batcher(
        parameters(max_batch_size=4, batch_timeout_micros=2_000_000, num_batch_threads=1)
    )
    model = Model()
    start = time.monotonic()
    ask(batcher, model, [np.ones(1)] * 4)
    assert time.monotonic() - start < 1.5
    assert model.sizes == [4]
    start = time.monotonic()
    ask(batcher, model, [np.ones(1)] * 2)
    assert 1.9 < time.monotonic() - start < 6
    assert model.sizes == [4, 2]
    batcher.close()


def test_keys_are_not_mixed():
    batcher = Batcher(parameters(batch_timeout_micros=50_000, num_batch_threads=1))
    models = {key: Model() for key in "ab"}
    with futures.ThreadPoolExecutor(6) as pool:
        answers = [
            pool.submit(batcher.run, key, models[key], {"x": np.full(1, i)})
            for i, key in enumerate("ababab")
        ]
    assert [answer.result()["y"][0] for answer in answers] == [0, 1, 4, 9, 16, 25]
    assert models["a"].sizes == models["b"].sizes == [3]
    batcher.close()


def test_a_bad_request_hurts_nobody_else():
    batcher = Batcher(parameters(batch_timeout_micros=50_000, num_batch_threads=1))
    model = Model()
    arrays = [np.full(1, value) for value in (1.0, -1.0, 3.0)]
    with futures.ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(batcher.run, "k", model, {"x": x}) for x in arrays]
    assert [answers[i].result()["y"][0] for i in (0, 2)] == [1, 9]
    with pytest.raises(ValueError, match="must not be negative"):
        answers[1].result()
    assert model.sizes == [3, 1, 1, 1]
    batcher.close()


def test_allowed_sizes_are_filled_up_and_cut_off_again():
    batcher = Batcher(
        parameters(
            max_batch_size=8, batch_timeout_micros=50_000, num_batch_threads=1,
            allowed_batch_sizes=[2, 4, 8],
        )
    )  # fmt: skip
    model = Model()
    answers = ask(batcher, model, [np.array([1.0]), np.array([2.0, 3.0])])
    assert [answer["y"].tolist() for answer in answers] == [[1], [4, 9]]
    assert model.sizes == [4]
    assert ask(batcher, model, [np.array([5.0])])[0]["y"].tolist() == [25]
    assert model.sizes == [4, 2]
    batcher.close()


def test_outputs_that_cannot_be_cut_apart_are_asked_for_one_by_one():
    batcher = Batcher(parameters(batch_timeout_micros=50_000, num_batch_threads=1))
    answers = ask(batcher, lambda inputs: {"sum": inputs["x"].sum()}, [np.ones(1), np.full(2, 3)])
    assert [answer["sum"] for answer in answers] == [1, 6]
    batcher.close()


def test_the_queue_has_an_end():
    gate = threading.Event()
    batcher = Batcher(parameters(max_batch_size=2, max_enqueued_batches=2, num_batch_threads=1))
    model = Model(gate)
    with futures.ThreadPoolExecutor(9) as pool:
        running = pool.submit(batcher.run, "k", model, {"x": np.ones(1)})
        while not model.sizes:
            time.sleep(0.01)
        waiting = [pool.submit(batcher.run, "k", model, {"x": np.ones(1)}) for _ in range(4)]
        while sum(map(len, batcher._queues.values())) < 4:
            time.sleep(0.01)
        with pytest.raises(
            StatusError, match="queue to which this task was submitted is full"
        ) as error:
            batcher.run("k", model, {"x": np.ones(1)})
        assert error.value.code == grpc.StatusCode.UNAVAILABLE
        gate.set()
        assert all(f.result()["y"].tolist() == [1] for f in [running, *waiting])
    batcher.close()


def test_what_nobody_waits_for_is_not_run():
    gate = threading.Event()
    batcher = Batcher(parameters(max_batch_size=4, num_batch_threads=1))
    model, dead = Model(gate), Model()
    with futures.ThreadPoolExecutor(2) as pool:
        running = pool.submit(batcher.run, "k", model, {"x": np.ones(1)})
        while not model.sizes:
            time.sleep(0.01)
        left = pool.submit(batcher.run, "other", dead, {"x": np.ones(1)}, lambda: False)
        gate.set()
        assert left.result() is None
        assert running.result()["y"].tolist() == [1]
    assert dead.sizes == []
    batcher.close()


def test_a_large_request_or_one_without_a_common_length_runs_alone():
    batcher = Batcher(parameters(max_batch_size=4, batch_timeout_micros=10**7, num_batch_threads=1))
    model = Model()
    assert len(batcher.run("k", model, {"x": np.ones(9)})["y"]) == 9  # and at once
    assert batcher.run("k", lambda inputs: inputs, {"a": np.ones(2), "b": np.ones(3)}).keys() == {
        "a",
        "b",
    }
    batcher.close()


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"max_batch_size": 0}, "max_batch_size must be at least 1, got 0"),
     ({"num_batch_threads": -1}, "num_batch_threads must be at least 1"),
     ({"max_enqueued_batches": 0}, "max_enqueued_batches must be at least 1"),
     ({"batch_timeout_micros": -5}, "batch_timeout_micros must not be negative, got -5"),
     ({"max_batch_size": 8, "allowed_batch_sizes": [4, 2, 8]}, "must increase"),
     ({"max_batch_size": 8, "allowed_batch_sizes": [2, 4]}, "end with max_batch_size 8"),
     ({"pad_variable_length_inputs": True}, "not available in the embedded server")],
)  # fmt: skip
def test_bad_parameters(fields, words):
    with pytest.raises(ValueError, match=words):
        Batcher(parameters(**fields))
