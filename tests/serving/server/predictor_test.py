"""Admission control, deadlines and slices of requests."""

import contextlib
import struct
import time

import grpc
import numpy as np
import pytest
import server_process
import tensorflow as tf
from tensorflow_serving.apis import prediction_service_pb2_grpc

from keras_ssl import serving
from keras_ssl.serving.server import configs, predictor, requests
from keras_ssl.serving.server.errors import StatusError
from keras_ssl.serving.server.predictor import MAX_RUN_ROWS


@pytest.fixture
def batching_server(counter):
    """`batching_server(micros, limit)`: starts a server and returns it with its stub."""
    opened = []

    def start(micros, limit=128):
        batching = configs.BatchingParameters()
        batching.batch_timeout_micros.value = micros
        server = serving.Server(counter, batching=batching, limit=limit).__enter__()
        channel = grpc.insecure_channel(f"localhost:{server.port}")
        opened.extend([channel.close, server.stop])
        return server, prediction_service_pb2_grpc.PredictionServiceStub(channel)

    yield start
    for close in opened:
        close()


def test_requests_beyond_the_limit_are_rejected(batching_server, predict_request):
    message = predict_request("counter", x=[[1.0]])
    _, stub = batching_server(10**6, limit=2)  # two requests wait for a second
    first = [stub.Predict.future(message) for _ in range(2)]
    time.sleep(0.3)
    with pytest.raises(grpc.RpcError, match="2 requests are in flight") as error:
        stub.Predict(message, timeout=10)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert all(f.result().outputs["y"].float_val[0] == 4 for f in first)


def test_one_connection_leaves_places_for_others(batching_server, predict_request):
    message = predict_request("counter", x=[[1.0]])
    server, stub = batching_server(10**6, limit=4)
    mine = [stub.Predict.future(message) for _ in range(4)]
    time.sleep(0.3)
    with grpc.insecure_channel(
        f"localhost:{server.port}", [("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        other = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        assert other.Predict(message, timeout=10).outputs["y"].float_val[0] == 4
    errors = [one.exception() for one in mine]
    assert errors.count(None) == 3
    (error,) = filter(None, errors)
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "3 requests of this client are in flight" in error.details()


def test_one_client_leaves_bytes_for_others(server, monkeypatch):
    monkeypatch.setattr(predictor, "MAX_BYTES", 100)
    admit = server._predictor.admit
    with contextlib.ExitStack() as held:
        held.enter_context(admit("a", size=1000))  # alone it may be of any size
        assert (
            _refusal(admit, "b", 1)
            == "requests of 1000 bytes are in flight already, of this client 0"
        )
    with contextlib.ExitStack() as held:
        for _ in range(4):
            held.enter_context(admit("a", size=12))
        assert _refusal(admit, "a", 12).endswith(
            "48 bytes are in flight already, of this client 48"
        )
        held.enter_context(admit("a"))  # a small message
        held.enter_context(admit("b", size=26))
        assert _refusal(admit, "b", 26).endswith("of this client 26")
        held.enter_context(admit("c", size=26))
    assert not server._predictor._bytes


def _refusal(admit, client, size):
    with pytest.raises(StatusError) as error:
        admit(client, size=size)
    assert error.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    return error.value.message.removesuffix("; retry later")


def test_a_request_whose_deadline_passes_in_the_queue_is_not_run(
    batching_server, predict_request, monkeypatch
):
    server, stub = batching_server(500_000)
    sizes = []
    with server.models.lease(predict_request("counter").model_spec) as (_, servable):
        run = servable.run
        monkeypatch.setattr(
            servable,
            "run",
            lambda inputs, *a: sizes.append(len(inputs["x"])) or run(inputs, *a),
        )
    late = stub.Predict.future(predict_request("counter", x=[[1.0]] * 7), timeout=0.1)
    in_time = stub.Predict.future(predict_request("counter", x=[[1.0]]), timeout=10)
    assert late.exception().code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert in_time.result().outputs["y"].float_val[0] == 4
    assert sizes == [1]


class Runs:
    """Runs a servable, `seconds` slower, and records the rows of each run."""

    def __init__(self, run):
        self.run, self.rows, self.seconds = run, [], 0.0

    def __call__(self, inputs, *args):
        self.rows.append(len(next(iter(inputs.values()))))
        time.sleep(self.seconds)
        return self.run(inputs, *args)


@pytest.fixture
def runs(server, monkeypatch):
    """Runs of `rotation_digits` in the shared server."""
    with server.models.lease(server_process.request("rotation_digits").model_spec) as (_, servable):
        recorded = Runs(servable.run)
        monkeypatch.setattr(servable, "run", recorded)
        yield recorded


def png_fill(rows):
    """A request that carries one image and declares `rows` of them."""
    content = tf.io.encode_png(np.zeros((1, 1, 3), np.uint8)).numpy()
    message = server_process.request("rotation_digits", encoded=np.array([content], object))
    message.model_spec.signature_name = "encoded"
    message.inputs["encoded"].tensor_shape.dim[0].size = rows
    return message


def rejected(stub, message):
    """Returns the details with which a request is INVALID_ARGUMENT."""
    with pytest.raises(grpc.RpcError) as error:
        stub.Predict(message, timeout=60)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return error.value.details()


def test_a_request_of_many_rows_runs_in_slices(server, stub, runs, noise, task, monkeypatch):
    monkeypatch.setattr(server._predictor.costs, "check", None)  # for files only
    images = np.concatenate([noise] * 5)[:150]
    response = stub.Predict(server_process.request("rotation_digits", images=images), timeout=60)
    assert runs.rows == [MAX_RUN_ROWS, MAX_RUN_ROWS, 150 - 2 * MAX_RUN_ROWS]
    expected = task.features(images)
    rows = tf.make_ndarray(response.outputs["features"])
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-4)


def test_one_image_may_stand_for_many_but_not_for_any_number(stub, runs):
    response = stub.Predict(png_fill(1024), timeout=60)
    rows = tf.make_ndarray(response.outputs["features"])
    assert rows.shape == (1024, 8)
    np.testing.assert_allclose(rows, rows[:1].repeat(1024, 0), rtol=1e-5, atol=1e-5)
    assert max(runs.rows) == MAX_RUN_ROWS
    runs.rows.clear()
    details = rejected(stub, png_fill(1025))
    assert "input encoded has 1025 rows, more than the 1024 of one request" in details
    message = png_fill(1024)
    message.inputs["encoded"].string_val[0] = bytes(requests.MAX_FILL // 1000)
    assert rejected(stub, message) == "tensor parsing error: encoded"
    assert runs.rows == []


def png_header(height, width):
    """The start of a PNG; what decoding a file costs follows from it."""
    size = struct.pack(">II", width, height)
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + size + b"\1\0\0\0\0" + bytes(20)


def test_the_cost_of_all_files_is_bounded_although_they_are_decoded_in_slices(stub, runs):
    message = png_fill(101)  # more than MAX_COST of 2^29 pixels
    files = message.inputs["encoded"].string_val
    files[0] = png_header(2300, 2300)
    assert "decoding the files of the request takes too long" in rejected(stub, message)
    # Its cost is negative as an int64: it must not pay for the others.
    files.extend([files[0]] * 99 + [png_header(2**32 - 1, 2**31)])
    assert "decoding the files of the request takes too long" in rejected(stub, message)
    assert runs.rows == []
    message.inputs["encoded"].tensor_shape.dim[0].size = 100
    del files[1:]
    assert "takes too long" not in rejected(stub, message)  # it is no complete PNG


def test_text_that_begins_as_an_image_does_costs_nothing(tmp_path, predict_request):
    lengths = tf.function(
        lambda x: {"y": tf.strings.length(x)},
        input_signature=[tf.TensorSpec((None,), tf.string, "x")],
    )
    tf.saved_model.save(tf.Module(), str(tmp_path / "text" / "1"), lengths)
    with (
        serving.Server(tmp_path) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        x = np.array([b"BMW cars are my favorite thing in this world"] * 65, object)
        response = stub.Predict(predict_request("text", x=x), timeout=10)
        assert list(response.outputs["y"].int_val) == [44] * 65


def test_the_outputs_of_all_rows_together_are_not_sliced(tmp_path, predict_request):
    similarity = tf.function(
        lambda x: {"y": x @ tf.transpose(x)},
        input_signature=[tf.TensorSpec((None, 1), tf.float32, "x")],
    )
    tf.saved_model.save(tf.Module(), str(tmp_path / "similarity" / "1"), similarity)
    with (
        serving.Server(tmp_path, max_rows=200) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        x = np.arange(150, dtype=np.float32)[:, None]
        response = stub.Predict(predict_request("similarity", x=x), timeout=10)
        np.testing.assert_array_equal(tf.make_ndarray(response.outputs["y"]), x @ x.T)
        assert "201 rows" in rejected(
            stub, predict_request("similarity", x=np.ones((201, 1), "f4"))
        )


def test_nothing_more_is_run_for_a_client_that_has_left(server, stub, runs):
    runs.seconds = 0.1
    call = stub.Predict.future(png_fill(1024))
    while len(runs.rows) < 2:
        time.sleep(0.01)
    call.cancel()
    time.sleep(0.5)
    number = len(runs.rows)
    assert number < 8
    time.sleep(0.5)
    assert len(runs.rows) == number
    assert server._predictor.drain(5)
    server._predictor._draining = False


def test_a_request_whose_deadline_has_passed_is_not_even_parsed(server, runs):
    parsed, answers = [], []
    server._predictor.submit(
        "a", png_fill(1), lambda *args: parsed.append(args), "GRPC", server._predictor.admit("a"),
        lambda: False, lambda *answer: answers.append(answer),
    )  # fmt: skip
    ((result, error),) = answers
    assert result is None
    assert error.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert not parsed
    assert runs.rows == []


@pytest.mark.parametrize("fails", ["place", "outputs"])
def test_the_client_gets_an_error_if_the_end_of_a_request_fails(server, monkeypatch, fails):
    answers, place = [], server._predictor.admit("a")
    if fails == "place":
        place.callback(divmod, 1, 0)
    else:
        monkeypatch.setattr(predictor, "_joined", lambda parts: divmod(1, 0))
    server._predictor.submit(
        "a", server_process.request("counter", x=np.ones((1, 1), np.float32)), requests.inputs_of,
        "GRPC", place, lambda: True, lambda *answer: answers.append(answer),
    )  # fmt: skip
    assert server._predictor.drain(5)
    server._predictor._draining = False
    deadline = time.monotonic() + 5
    while not answers and time.monotonic() < deadline:
        time.sleep(0.01)
    ((result, error),) = answers
    assert result is None
    assert error.code == grpc.StatusCode.INTERNAL
