"""A fake server that responds with the numbers of images, and helpers to send it images."""

import asyncio
import contextlib
import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

import keras_ssl as kssl
from keras_ssl.serving.client import extraction, retry


class FakeServer(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Responds to image number i with the row (i, -i).

    `behave(numbers, context)` runs first: it may wait, abort, or return other rows.
    """

    def __init__(self, behave=None, version=1):
        self.behave, self.version = behave or (lambda numbers, context: None), version
        self.lock = threading.Lock()
        self.active = self.max_active = 0
        self.requests, self.specs, self.deadlines = [], [], []

    def Predict(self, request, context):
        (tensor,) = request.inputs.values()
        if tensor.dtype == tf.string.as_datatype_enum:
            numbers = [int(content) for content in tensor.string_val]
        else:
            numbers = [int(x[0, 0, 0]) + 256 * int(x[0, 0, 1]) for x in tf.make_ndarray(tensor)]
        with self.lock:
            self.active += 1
            self.max_active = max(self.max_active, self.active)
            self.requests.append(numbers)
            self.specs.append(request.model_spec)
            self.deadlines.append(context.time_remaining())
        try:
            rows = self.behave(numbers, context)
        finally:
            with self.lock:
                self.active -= 1
        rows = [[i, -i] for i in numbers] if rows is None else rows
        response = predict_pb2.PredictResponse()
        response.model_spec.version.value = self.version
        stages = request.model_spec.signature_name == "stages"
        for key in ("features", "stage1") if stages else ("features",):
            response.outputs[key].CopyFrom(tf.make_tensor_proto(np.array(rows, np.float32)))
        return response

    @contextlib.contextmanager
    def served(self, port=0, credentials=None):
        """Yields the port."""
        server = grpc.server(ThreadPoolExecutor(32), options=[("grpc.so_reuseport", 0)])
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(self, server)
        if credentials is None:
            port = server.add_insecure_port(f"localhost:{port}")
        else:
            port = server.add_secure_port(f"localhost:{port}", credentials)
        server.start()
        try:
            yield port
        finally:
            server.stop(0).wait()

    @contextlib.contextmanager
    def client(self, **arguments):
        """Yields a FeatureClient of this server."""
        with (
            self.served() as port,
            kssl.FeatureClient(f"localhost:{port}", "m", **arguments) as client,
        ):
            yield client


@pytest.fixture(scope="session")
def fake_server():
    """The class FakeServer."""
    return FakeServer


@pytest.fixture(scope="session")
def failing():
    """`failing(*codes)`: a behavior that aborts one request with each code, then responds."""

    def create(*codes):
        codes = iter(codes)

        def behave(numbers, context):
            code = next(codes, None)
            if code is not None:
                context.abort(code, "as configured")

        return behave

    return create


@pytest.fixture(scope="session")
def stalling():
    """A behavior that responds to images 2 to 99 only when their request has been cancelled."""

    def behave(numbers, context):
        if 2 <= numbers[0] < 100:
            while context.is_active():
                time.sleep(0.005)

    return behave


@pytest.fixture(scope="session")
def jittery_server():
    """Address of a server that responds out of order: each request takes up to 8 ms."""
    rng = np.random.default_rng(0)
    fake = FakeServer(lambda numbers, context: time.sleep(rng.uniform(0, 0.008)))
    with fake.served() as port:
        yield f"localhost:{port}"


@pytest.fixture
def short_backoff(monkeypatch):
    monkeypatch.setattr(retry, "INITIAL_BACKOFF", 0.01)


@pytest.fixture(params=[kssl.FeatureClient, kssl.AsyncFeatureClient])
def client_class(request):
    return request.param


@pytest.fixture(scope="session")
def encoded():
    """`encoded(n)`: n files, whose contents are their numbers."""
    return lambda number: [b"%d" % i for i in range(number)]


@pytest.fixture(scope="session")
def arrays():
    """`arrays(n)`: n images, whose first pixels are their numbers."""

    def create(number):
        images = np.zeros((number, 2, 2, 3), np.uint8)
        images[:, 0, 0, 0], images[:, 0, 0, 1] = (
            np.arange(number) % 256,
            np.arange(number) // 256,
        )
        return images

    return create


@pytest.fixture(scope="session")
def rows():
    """`rows(n)`: the features of n images."""
    return lambda number: np.stack([np.arange(number), -np.arange(number)], 1).astype(np.float32)


@pytest.fixture(scope="session")
def features_by():
    """`features_by(client_class, address, images, **arguments)`: features from either client."""

    def features(client_class, address, images, **arguments):
        if client_class is kssl.FeatureClient:
            with client_class(address, "m", **arguments) as client:
                return client.features(images)

        async def main():
            async with client_class(address, "m", **arguments) as client:
                return await client.features(images)

        return asyncio.run(main())

    return features


@pytest.fixture(scope="session")
def numbered_files():
    """`numbered_files(folder, n)`: writes n files whose contents are their numbers."""

    def write(folder, number):
        folder.mkdir()
        paths = [folder / f"{i:04d}.jpg" for i in range(number)]
        for i, path in enumerate(paths):
            path.write_bytes(b"%d" % i)
        return list(map(str, paths))

    return write


@pytest.fixture(scope="session")
def check_result():
    """`check_result(out, paths, numbers)`: every image once, in order, and no other file is left."""

    def check(out, paths, numbers=None):
        numbers = range(len(paths)) if numbers is None else numbers
        with np.load(out) as found:
            assert sorted(found) == ["features", "id", "path"]
            assert found["id"].dtype == np.int64
            assert found["features"].dtype == np.float32
            np.testing.assert_array_equal(found["id"], np.arange(len(numbers)))
            np.testing.assert_array_equal(found["path"], [paths[i] for i in numbers])
            np.testing.assert_array_equal(found["features"], [[i, -i] for i in numbers])
        folder, name = os.path.split(out)
        assert [file for file in os.listdir(folder or ".") if name in file] == [name]

    return check


@pytest.fixture(scope="session")
def interrupt():
    """`interrupt(client, paths, out, after)`: extracts until `after` responses, then fails."""

    def extract(client, paths, out, after):
        calls = itertools.count()
        parse = client._parse_response

        def count(request, response):
            if next(calls) == after:
                raise RuntimeError("interrupted")
            return parse(request, response)

        client._parse_response = count
        with pytest.raises(RuntimeError, match="interrupted"):
            extraction.extract(client, paths, out)
        del client._parse_response

    return extract
