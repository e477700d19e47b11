"""Which requests share a batch, when it runs, and which of them fail."""

import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_ssl.serving.server.batching import Batcher, Runner
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
    """Squares x, once `gate` is open, and records the sizes of its batches."""

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


def submit(batcher, key, model, inputs, is_active=lambda: True, client="a"):
    """Submits a request and returns a future of its outputs."""
    future = futures.Future()

    def done(outputs, error):
        if error is None:
            future.set_result(outputs)
        else:
            future.set_exception(error)

    batcher.submit(client, key, model, inputs, is_active, done)
    return future


def run_concurrently(batcher, model, arrays):
    """Runs requests at the same time and returns their outputs."""
    submitted = [submit(batcher, "k", model, {"x": x}) for x in arrays]
    return [future.result() for future in submitted]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(2, 8))
def test_each_request_gets_its_own_rows(sizes, largest):
    batcher = Batcher(
        parameters(max_batch_size=largest, batch_timeout_micros=3000, num_batch_threads=2)
    )
    model = Model()
    arrays = [np.arange(n) + 100.0 * i for i, n in enumerate(sizes)]
    for x, output in zip(arrays, run_concurrently(batcher, model, arrays), strict=True):
        np.testing.assert_array_equal(output["y"], x**2)
    batcher.close()
    assert sum(model.sizes) == sum(sizes)
    assert all(n <= max(largest, *sizes) for n in model.sizes)


def test_only_a_batch_that_is_not_full_waits_for_the_timeout():
    batcher = Batcher(
        parameters(max_batch_size=4, batch_timeout_micros=1_000_000, num_batch_threads=1)
    )
    model = Model()
    start = time.monotonic()
    run_concurrently(batcher, model, [np.ones(1)] * 4)
    assert time.monotonic() - start < 0.8
    assert model.sizes == [4]
    start = time.monotonic()
    run_concurrently(batcher, model, [np.ones(1)] * 2)
    assert 0.95 < time.monotonic() - start < 6
    assert model.sizes == [4, 2]
    batcher.close()


def test_requests_of_different_keys_do_not_share_a_batch():
    batcher = Batcher(parameters(batch_timeout_micros=50_000, num_batch_threads=1))
    models = {key: Model() for key in "ab"}
    outputs = [
        submit(batcher, key, models[key], {"x": np.full(1, i)}) for i, key in enumerate("ababab")
    ]
    assert [output.result()["y"][0] for output in outputs] == [0, 1, 4, 9, 16, 25]
    assert models["a"].sizes == models["b"].sizes == [3]
    batcher.close()


def test_a_faulty_request_fails_alone():
    batcher = Batcher(parameters(batch_timeout_micros=50_000, num_batch_threads=1))
    model = Model()
    arrays = [np.full(1, value) for value in (1.0, -1.0, 3.0)]
    outputs = [submit(batcher, "k", model, {"x": x}) for x in arrays]
    assert [outputs[i].result()["y"][0] for i in (0, 2)] == [1, 9]
    with pytest.raises(ValueError, match="must not be negative"):
        outputs[1].result()
    assert model.sizes == [3, 1, 1, 1]
    batcher.close()


def test_batches_are_padded_to_allowed_sizes():
    batcher = Batcher(
        parameters(
            max_batch_size=8, batch_timeout_micros=50_000, num_batch_threads=1,
            allowed_batch_sizes=[2, 4, 8],
        )
    )  # fmt: skip
    model = Model()
    outputs = run_concurrently(batcher, model, [np.array([1.0]), np.array([2.0, 3.0])])
    assert [output["y"].tolist() for output in outputs] == [[1], [4, 9]]
    assert model.sizes == [4]
    assert run_concurrently(batcher, model, [np.array([5.0])])[0]["y"].tolist() == [25]
    assert model.sizes == [4, 2]
    batcher.close()


def test_requests_run_alone_if_outputs_cannot_be_split():
    batcher = Batcher(parameters(batch_timeout_micros=50_000, num_batch_threads=1))
    outputs = run_concurrently(
        batcher, lambda inputs: {"sum": inputs["x"].sum()}, [np.ones(1), np.full(2, 3)]
    )
    assert [output["sum"] for output in outputs] == [1, 6]
    batcher.close()


def test_a_full_queue_is_unavailable(wait_for):
    gate = threading.Event()
    batcher = Batcher(parameters(max_batch_size=2, max_enqueued_batches=2, num_batch_threads=1))
    model = Model(gate)
    running = submit(batcher, "k", model, {"x": np.ones(1)})
    wait_for(lambda: model.sizes)
    waiting = [submit(batcher, "k", model, {"x": np.ones(1)}) for _ in range(4)]
    with pytest.raises(
        StatusError, match="queue to which this task was submitted is full"
    ) as error:
        submit(batcher, "k", model, {"x": np.ones(1)})
    assert error.value.code == grpc.StatusCode.UNAVAILABLE
    gate.set()
    assert all(f.result()["y"].tolist() == [1] for f in [running, *waiting])
    batcher.close()


def test_clients_take_turns_and_one_does_not_fill_the_queue_for_others(wait_for):
    gate = threading.Event()
    batcher = Batcher(parameters(max_batch_size=4, max_enqueued_batches=2, num_batch_threads=1))
    model = Model(gate)
    running = submit(batcher, "k", model, {"x": np.zeros(1)})
    wait_for(lambda: model.sizes)
    done = []

    def queue(client, *values):
        for value in values:
            future = submit(batcher, "k", model, {"x": np.float32([value])}, client=client)
            future.add_done_callback(lambda f: done.append(float(f.result()["y"][0])))

    queue("many", 1, 2, 3, 4, 5, 6, 7, 8)
    with pytest.raises(StatusError, match="is full"):
        queue("many", 9)
    queue("some", 10)
    with pytest.raises(StatusError, match="is full"):
        queue("some", 11, 11, 11, 11)
    queue("few", 12)
    gate.set()
    batcher.close()
    assert running.result()["y"].tolist() == [0]
    assert done == [1, 100, 144, 4, 121, 9, 121, 16, 121, 25, 36, 49, 64]
    assert model.sizes == [1, 4, 4, 4, 1]


def test_a_client_with_many_keys_does_not_delay_another_one(wait_for):
    gate = threading.Event()
    batcher = Batcher(parameters(max_batch_size=4, num_batch_threads=1))
    model = Model(gate)
    done = []

    def queue(client, key, value):
        future = submit(batcher, key, model, {"x": np.float32([value])}, client=client)
        future.add_done_callback(lambda f: done.append(float(f.result()["y"][0])))

    queue("many", "first", 0)
    wait_for(lambda: model.sizes)
    for i in range(1, 6):
        queue("many", f"key {i}", i)
    queue("other", "key", 10)
    gate.set()
    batcher.close()
    assert done == [0, 100, 1, 4, 9, 16, 25]


def test_a_client_with_many_requests_does_not_delay_another_one():
    runner, gate = Runner(4), threading.Event()
    for _ in range(20):
        submit(runner, None, lambda _: gate.wait(10), {}, client="many")
    try:
        other = submit(runner, None, lambda inputs: inputs, {"x": 1}, client="other")
        assert other.result(5) == {"x": 1}
    finally:
        gate.set()
        runner.close()


def test_requests_of_clients_that_left_are_not_run(wait_for):
    gate = threading.Event()
    batcher = Batcher(parameters(max_batch_size=4, num_batch_threads=1))
    model, dead = Model(gate), Model()
    running = submit(batcher, "k", model, {"x": np.ones(1)})
    wait_for(lambda: model.sizes)
    left = submit(batcher, "other", dead, {"x": np.ones(1)}, lambda: False)
    gate.set()
    assert left.result() is None
    assert running.result()["y"].tolist() == [1]
    assert dead.sizes == []
    batcher.close()


def test_large_requests_and_those_without_a_common_length_run_alone():
    batcher = Batcher(parameters(max_batch_size=4, batch_timeout_micros=10**7, num_batch_threads=1))
    model = Model()
    (output,) = run_concurrently(batcher, model, [np.ones(9)])
    assert len(output["y"]) == 9  # and immediately
    two = {"a": np.ones(2), "b": np.ones(3)}
    assert submit(batcher, "k", lambda inputs: inputs, two).result().keys() == {"a", "b"}
    batcher.close()


def test_what_has_no_inputs_runs_once_and_immediately():
    batcher = Batcher(
        parameters(max_batch_size=8, allowed_batch_sizes=[4, 8], batch_timeout_micros=10**7)
    )
    runs = []
    assert submit(batcher, None, lambda inputs: runs.append(inputs) or {}, {}).result(5) == {}
    assert runs == [{}]
    batcher.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"max_batch_size": 0}, "max_batch_size must be at least 1, got 0"),
     ({"num_batch_threads": -1}, "num_batch_threads must be at least 1"),
     ({"max_enqueued_batches": 0}, "max_enqueued_batches must be at least 1"),
     ({"batch_timeout_micros": -5}, "batch_timeout_micros must not be negative, got -5"),
     ({"max_batch_size": 8, "allowed_batch_sizes": [4, 2, 8]}, "must increase"),
     ({"max_batch_size": 8, "allowed_batch_sizes": [2, 4]}, "end with max_batch_size 8"),
     ({"pad_variable_length_inputs": True}, "not available in the embedded server")],
)  # fmt: skip
def test_invalid_parameters(fields, message):
    with pytest.raises(ValueError, match=message):
        Batcher(parameters(**fields))
