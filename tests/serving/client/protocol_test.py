"""Requests and responses of both clients: order, concurrency, arguments, malformed responses."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import predict_pb2

import keras_ssl as kssl
from keras_ssl.serving.client import protocol

IMAGE = np.zeros((2, 2, 3), np.uint8)


@settings(max_examples=25, deadline=None)
@given(
    client_class=st.sampled_from([kssl.FeatureClient, kssl.AsyncFeatureClient]),
    number=st.integers(1, 60), batch_size=st.integers(1, 9), window=st.integers(1, 6),
    as_files=st.booleans(), lazy=st.booleans(),
)  # fmt: skip
def test_features_keep_the_order_of_the_images(
    jittery_server,
    encoded,
    arrays,
    rows,
    features_by,
    client_class,
    number,
    batch_size,
    window,
    as_files,
    lazy,
):
    images = (encoded if as_files else arrays)(number)
    given = iter(images) if lazy else images
    found = features_by(client_class, jittery_server, given, batch_size=batch_size, window=window)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, rows(number))


@pytest.mark.parametrize("window", [1, 4])
def test_the_window_limits_the_requests_in_flight(
    client_class, window, fake_server, encoded, rows, features_by
):
    together = threading.Barrier(window)

    def behave(numbers, context):
        together.wait(timeout=10)
        time.sleep(0.03)  # long enough to notice a further request

    fake = fake_server(behave)
    with fake.served() as port:
        found = features_by(
            client_class, f"localhost:{port}", encoded(8 * window), batch_size=2, window=window
        )
    np.testing.assert_array_equal(found, rows(8 * window))
    assert fake.max_active == window


def test_threads_can_share_a_client(jittery_server, encoded, rows):
    client = kssl.FeatureClient(jittery_server, "m", batch_size=3)
    with client, ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda n: client.features(encoded(n)), range(20, 36)):
            np.testing.assert_array_equal(found, rows(len(found)))
        assert len(found) == 35


def test_requests_carry_the_version_or_label(fake_server):
    fake = fake_server()
    for arguments in ({}, {"version": 3}, {"label": "stable"}):
        with fake.client(**arguments) as client:
            client.features([b"0"])
    newest, version, label = fake.specs
    assert newest.WhichOneof("version_choice") is None
    assert version.version.value == 3
    assert label.version_label == "stable"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"window": 0}, "window must be at least 1, got 0"), ({"retries": -1}, "retries must be"),
     ({"version": 1, "label": "stable"}, "give only one"), ({"credentials": "ca.crt"}, "credentials must be"),
     ({"timeout": -1}, "timeout must be"), ({"batch_size": 0}, "batch_size must be")],
)  # fmt: skip
def test_arguments_are_checked(client_class, arguments, message):
    with pytest.raises(ValueError, match=message):
        client_class("localhost:1", "m", **arguments)


@pytest.mark.parametrize(
    ("method", "images", "message"),
    [("features", 3, "images must be a sequence or generator"), ("features", iter(()), "at least one"),
     ("features", [b"0", IMAGE], "another is of type ndarray"),
     ("features", [IMAGE, b"0"], "got a file or bytes"), ("stages", [b"0"], "got a file or bytes"),
     ("pretext", ["a.jpg"], "got a file or bytes"), ("stages", [], "at least one"),
     ("features", IMAGE, r"uint8 of shape \(2, 3\)")],
)  # fmt: skip
def test_images_are_checked(method, images, message):
    with kssl.FeatureClient("localhost:1", "m") as client, pytest.raises(ValueError, match=message):
        getattr(client, method)(images)


@pytest.mark.parametrize("returned", [[[1, 2]], [[1, 2]] * 3, 1.0])
def test_a_wrong_number_of_rows_is_an_error(returned, fake_server, encoded):
    fake = fake_server(lambda numbers, context: returned)
    message = "for 2 images; every output must have one row per image"
    with fake.client() as client, pytest.raises(RuntimeError, match=message):
        client.features(encoded(2))


def test_a_malformed_response_is_an_error(encoded):
    request = protocol.ClientBase._build_request
    with kssl.FeatureClient("localhost:1", "m") as client:
        response = predict_pb2.PredictResponse()
        response.outputs["features"].CopyFrom(tf.make_tensor_proto(np.ones((1, 2), np.float32)))
        response.outputs["features"].tensor_content = b"abc"
        with pytest.raises(RuntimeError, match="malformed"):
            client._parse_response(request(client, "encoded", [b"0"]), response)
        with pytest.raises(RuntimeError, match="one row per image"):
            client._parse_response(
                request(client, "encoded", [b"0"]), predict_pb2.PredictResponse()
            )


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from([np.float32, np.uint8, np.int32, np.int64, np.float64, np.bool_, np.float16]),
    shape=st.lists(st.integers(0, 4), max_size=3), seed=st.integers(0, 9), one=st.booleans(),
)  # fmt: skip
def test_decode_tensor_agrees_with_make_ndarray(dtype, shape, seed, one):
    value = np.random.default_rng(seed).uniform(0, 100, shape).astype(dtype)
    packed = tf.make_tensor_proto(value)
    spread = tf.make_tensor_proto(value)
    spread.ClearField("tensor_content")
    field = {np.float32: "float_val", np.float64: "double_val", np.int64: "int64_val",
             np.bool_: "bool_val", np.float16: "half_val"}.get(dtype, "int_val")  # fmt: skip
    flat = value.view(np.uint16) if dtype is np.float16 else value
    spread.ClearField(field)
    getattr(spread, field).extend(flat.ravel().tolist()[: 1 if one else None])
    for proto in (packed, spread):
        got = protocol.decode_tensor(proto)
        assert got.dtype == value.dtype
        np.testing.assert_array_equal(got, tf.make_ndarray(proto))
    if not one:
        np.testing.assert_array_equal(protocol.decode_tensor(spread), value)


def test_features_are_writable(fake_server, encoded):
    with fake_server().client() as client:
        for vector in client.stream(encoded(3)):
            vector += 1


def test_the_progress_bar_is_shown_on_a_terminal_only(monkeypatch, capsys, fake_server, encoded):
    with fake_server().client(batch_size=2) as client:
        client.features(encoded(6), progress=True)
        assert capsys.readouterr() == ("", "")
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        client.features(encoded(6), progress=True)
        out, err = capsys.readouterr()
        assert out == ""
        assert "6/6" in err
        assert "images/s" in err
        client.features(iter(encoded(6)), progress=True)
        out, err = capsys.readouterr()
        assert "  6  " in err
        assert "images/s" in err
        client.features(encoded(6))
        assert capsys.readouterr() == ("", "")
