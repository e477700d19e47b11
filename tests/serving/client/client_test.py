"""The clients and `extract` against a server that is slow, away, wrong, or killed."""

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

import keras_ssl as kssl
from keras_ssl import serving
from keras_ssl.serving.client import extraction, protocol, retry

Code = grpc.StatusCode


class Fake(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers picture number i with the row (i, -i); `behave(asked, context)` may do more first."""

    def __init__(self, behave=None, version=1):
        self.behave, self.version = behave or (lambda asked, context: None), version
        self.lock = threading.Lock()
        self.active = self.most = 0
        self.asked, self.specs, self.left = [], [], []

    def Predict(self, request, context):
        (tensor,) = request.inputs.values()
        if tensor.dtype == tf.string.as_datatype_enum:
            asked = [int(content) for content in tensor.string_val]
        else:
            asked = [int(x[0, 0, 0]) + 256 * int(x[0, 0, 1]) for x in tf.make_ndarray(tensor)]
        with self.lock:
            self.active += 1
            self.most = max(self.most, self.active)
            self.asked.append(asked)
            self.specs.append(request.model_spec)
            self.left.append(context.time_remaining())
        try:
            rows = self.behave(asked, context)
        finally:
            with self.lock:
                self.active -= 1
        rows = [[i, -i] for i in asked] if rows is None else rows
        response = predict_pb2.PredictResponse()
        response.model_spec.version.value = self.version
        keys = (
            ["features", "stage1"]
            if request.model_spec.signature_name == "stages"
            else ["features"]
        )
        for key in keys:
            response.outputs[key].CopyFrom(tf.make_tensor_proto(np.array(rows, np.float32)))
        return response

    @contextlib.contextmanager
    def served(self, port=0, credentials=None):
        """Gives the port."""
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
def asked(fake, **arguments):
    """A client of the fake."""
    with (
        fake.served() as port,
        kssl.FeatureClient(f"localhost:{port}", "m", **arguments) as client,
    ):
        yield client


def encoded(number):
    return [b"%d" % i for i in range(number)]


def arrays(number):
    pictures = np.zeros((number, 2, 2, 3), np.uint8)
    pictures[:, 0, 0, 0], pictures[:, 0, 0, 1] = np.arange(number) % 256, np.arange(number) // 256
    return pictures


def rows(number):
    return np.stack([np.arange(number), -np.arange(number)], 1).astype(np.float32)


def refuse(*codes):
    """Fails with each code once, for the whole server, then answers."""
    codes = iter(codes)

    def behave(asked, context):
        code = next(codes, None)
        if code is not None:
            context.abort(code, "as told")

    return behave


def features(kind, address, pictures, **arguments):
    """Features by a client of that kind."""
    if kind is kssl.FeatureClient:
        with kind(address, "m", **arguments) as client:
            return client.features(pictures)

    async def main():
        async with kind(address, "m", **arguments) as client:
            return await client.features(pictures)

    return asyncio.run(main())


both = pytest.mark.parametrize("kind", [kssl.FeatureClient, kssl.AsyncFeatureClient])


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(retry, "INITIAL_BACKOFF", 0.01)


@pytest.fixture(scope="module")
def jittery():
    """A server that answers out of order: each request takes up to 8 ms, by chance."""
    chance = np.random.default_rng(0)
    fake = Fake(lambda asked, context: time.sleep(chance.uniform(0, 0.008)))
    with fake.served() as port:
        yield f"localhost:{port}"


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from([kssl.FeatureClient, kssl.AsyncFeatureClient]),
    number=st.integers(1, 60), batch_size=st.integers(1, 9), window=st.integers(1, 6),
    pictures=st.sampled_from([encoded, arrays]), lazy=st.booleans(),
)  # fmt: skip
def test_order_is_kept(jittery, kind, number, batch_size, window, pictures, lazy):
    given = (picture for picture in pictures(number)) if lazy else pictures(number)
    found = features(kind, jittery, given, batch_size=batch_size, window=window)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, rows(number))


@both
@pytest.mark.parametrize("window", [1, 4])
def test_the_window_is_full_and_never_more(kind, window):
    together = threading.Barrier(window)

    def behave(asked, context):
        together.wait(timeout=10)
        time.sleep(0.03)  # long enough to see one more

    fake = Fake(behave)
    with fake.served() as port:
        found = features(
            kind, f"localhost:{port}", encoded(8 * window), batch_size=2, window=window
        )
    np.testing.assert_array_equal(found, rows(8 * window))
    assert fake.most == window


KINDS = {
    Code.UNAVAILABLE: ConnectionError, Code.DEADLINE_EXCEEDED: TimeoutError,
    Code.INVALID_ARGUMENT: ValueError, Code.NOT_FOUND: ValueError,
    Code.FAILED_PRECONDITION: ValueError,
}  # fmt: skip


@both
@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_only_an_unavailable_server_is_asked_again(short, code, kind):
    fake = Fake(refuse(*[code] * 9))
    with fake.served() as port, pytest.raises(KINDS.get(code, RuntimeError)) as raised:
        features(kind, f"localhost:{port}", encoded(1), retries=3)
    assert raised.value.code == code.name
    assert len(fake.asked) == (4 if code is Code.UNAVAILABLE else 1)


@both
def test_what_was_unavailable_keeps_its_place(short, kind):
    fake = Fake(refuse(Code.UNAVAILABLE, None, None, Code.UNAVAILABLE, Code.UNAVAILABLE, None))
    with fake.served() as port:
        found = features(kind, f"localhost:{port}", encoded(20), batch_size=2)
    np.testing.assert_array_equal(found, rows(20))
    assert len(fake.asked) == 13


def test_an_overloaded_server_is_said_to_be_so():
    words = "is overloaded; lower window or batch_size, or retry later"
    fake = Fake(refuse(Code.RESOURCE_EXHAUSTED))
    with asked(fake) as client, pytest.raises(RuntimeError, match=words):
        client.features(encoded(1))


@both
def test_the_deadline_holds_for_all_attempts(monkeypatch, kind):
    monkeypatch.setattr(retry, "INITIAL_BACKOFF", 0.2)
    monkeypatch.setattr(retry, "MAX_BACKOFF", 0.2)
    fake = Fake(refuse(*[Code.UNAVAILABLE] * 99))
    start = time.monotonic()
    with fake.served() as port, pytest.raises(ConnectionError):
        features(kind, f"localhost:{port}", encoded(1), timeout=1, retries=90)
    assert time.monotonic() - start < 6
    assert 2 <= len(fake.left) <= 7
    assert 0.5 < fake.left[0] <= 1.1
    assert all(a - b > 0.1 for a, b in itertools.pairwise(fake.left))


def test_a_slow_server_is_a_timeout_and_is_not_asked_again():
    fake = Fake(lambda asked, context: time.sleep(1))
    with (
        asked(fake, timeout=0.2) as client,
        pytest.raises(TimeoutError, match="within 0.2 s; raise"),
    ):
        client.features(encoded(1))
    assert len(fake.asked) == 1


def test_waits_double_and_outlast_a_restart():
    with kssl.FeatureClient("localhost:1", "m", retries=9, timeout=1000) as client:
        policy = retry.RetryPolicy(client.timeout, client.retries)
        waits = [policy.backoff(Code.UNAVAILABLE) for _ in range(10)]
    usual = [0.7, 1.4, 2.8, 5.6, 11.2, 20, 20, 20, 20]
    assert waits.pop() is None
    assert all(0.8 * b <= a <= 1.2 * b for a, b in zip(waits, usual, strict=True))
    assert any(a != b for a, b in zip(waits, usual, strict=True))
    with kssl.FeatureClient("localhost:1", "m") as client:
        assert 0.8 * sum(usual[: client.retries]) > 17
        assert 1.2 * sum(usual[: client.retries]) < client.timeout


def test_a_server_that_starts_late_is_waited_for():
    with Fake().served() as port:
        pass
    with kssl.FeatureClient(f"localhost:{port}", "m") as client, ThreadPoolExecutor(1) as pool:
        found = pool.submit(client.features, encoded(9))
        time.sleep(1)
        with Fake().served(port):
            np.testing.assert_array_equal(found.result(timeout=20), rows(9))


def test_nothing_is_read_ahead_of_the_window():
    taken = []

    def pictures():
        for i in itertools.count():
            taken.append(i)
            yield b"%d" % i

    with asked(Fake(), batch_size=3, window=2) as client:
        stream = client.stream(pictures())
        assert not taken
        for given in range(50):
            np.testing.assert_array_equal(next(stream), [given, -given])
            assert len(taken) - given <= (2 + 1) * 3
        stream.close()


def test_the_twin_reads_no_further_and_takes_async_iterables():
    taken = []

    async def pictures():
        for i in itertools.count():
            taken.append(i)
            yield b"%d" % i

    async def main(port):
        async with kssl.AsyncFeatureClient(
            f"localhost:{port}", "m", batch_size=3, window=2
        ) as client:
            async with contextlib.aclosing(client.stream(pictures())) as stream:
                given = 0
                async for vector in stream:
                    np.testing.assert_array_equal(vector, [given, -given])
                    given += 1
                    assert len(taken) - given <= (2 + 1) * 3
                    if given == 50:
                        break
            return await client.features([b"7"])

    with Fake().served() as port:
        np.testing.assert_array_equal(asyncio.run(main(port)), [[7, -7]])


def stalling(asked, context):
    """Answers the first pictures; the others only when their request was cancelled."""
    if asked[0] >= 2 and asked[0] < 100:
        while context.is_active():
            time.sleep(0.005)


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_leaving_early_cancels_what_is_on_its_way():
    fake = Fake(stalling)
    with asked(fake, batch_size=2, window=3) as client:
        stream = client.stream(encoded(40))
        next(stream)
        wait_for(lambda: fake.active == 3)
        stream.close()
        wait_for(lambda: fake.active == 0)
        assert sum(map(len, fake.asked)) == 8
        np.testing.assert_array_equal(client.features([b"100"]), [[100, -100]])

    async def twin(port):
        tasks = asyncio.all_tasks()
        async with kssl.AsyncFeatureClient(
            f"localhost:{port}", "m", batch_size=2, window=3
        ) as client:
            async with contextlib.aclosing(client.stream(encoded(40))) as stream:
                await anext(stream)
                await asyncio.to_thread(wait_for, lambda: fake.active == 3)
            await asyncio.to_thread(wait_for, lambda: fake.active == 0)
            assert asyncio.all_tasks() == tasks
            return await client.features([b"100"])

    with fake.served() as port:
        np.testing.assert_array_equal(asyncio.run(asyncio.wait_for(twin(port), 15)), [[100, -100]])


def test_what_the_pictures_raise_passes_through():
    def pictures():
        yield from encoded(8)
        raise KeyError("no more")

    fake = Fake(stalling)
    with asked(fake, batch_size=2, window=9) as client:
        with pytest.raises(KeyError, match="no more"):
            list(client.stream(pictures()))
        wait_for(lambda: fake.active == 0)
        np.testing.assert_array_equal(client.features([b"100"]), [[100, -100]])

    async def twin(port):
        tasks = asyncio.all_tasks()
        async with kssl.AsyncFeatureClient(
            f"localhost:{port}", "m", batch_size=2, window=9
        ) as client:
            with pytest.raises(KeyError, match="no more"):
                await client.features(pictures())
            assert asyncio.all_tasks() == tasks
            return await client.features([b"100"])

    with fake.served() as port:
        np.testing.assert_array_equal(asyncio.run(asyncio.wait_for(twin(port), 15)), [[100, -100]])


def test_a_client_closed_in_a_wait_does_not_hang():
    fake, errors = Fake(refuse(*[Code.UNAVAILABLE] * 9)), []
    with asked(fake) as client:

        def ask():
            with pytest.raises(ValueError, match="closed") as raised:
                client.features([b"0"])
            errors.append(raised.value)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        wait_for(lambda: fake.asked)
        time.sleep(0.1)
        client.close()
        thread.join(timeout=10)
    assert len(errors) == 1


def test_threads_share_a_client(jittery):
    client = kssl.FeatureClient(jittery, "m", batch_size=3)
    with client, ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda n: client.features(encoded(n)), range(20, 36)):
            np.testing.assert_array_equal(found, rows(len(found)))
        assert len(found) == 35


def test_version_and_label_are_asked_for():
    fake = Fake()
    for arguments in ({}, {"version": 3}, {"label": "stable"}):
        with asked(fake, **arguments) as client:
            client.features([b"0"])
    newest, version, label = fake.specs
    assert newest.WhichOneof("version_choice") is None
    assert version.version.value == 3
    assert label.version_label == "stable"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"window": 0}, "window must be at least 1, got 0"), ({"retries": -1}, "retries must be"),
     ({"version": 1, "label": "stable"}, "give only one"), ({"credentials": "ca.crt"}, "credentials must be"),
     ({"timeout": -1}, "timeout must be"), ({"batch_size": 0}, "batch_size must be")],
)  # fmt: skip
@both
def test_arguments_are_checked(kind, arguments, words):
    with pytest.raises(ValueError, match=words):
        kind("localhost:1", "m", **arguments)


@pytest.mark.parametrize(
    ("ask", "pictures", "words"),
    [("features", 3, "images must be a sequence or generator"), ("features", iter(()), "at least one"),
     ("features", [b"0", arrays(1)[0]], "another is of type ndarray"),
     ("features", [arrays(1)[0], b"0"], "got a file or bytes"), ("stages", [b"0"], "got a file or bytes"),
     ("pretext", ["a.jpg"], "got a file or bytes"), ("stages", [], "at least one"),
     ("features", arrays(3)[0], r"uint8 of shape \(2, 3\)")],
)  # fmt: skip
def test_wrong_pictures_are_one_clear_error(ask, pictures, words):
    with kssl.FeatureClient("localhost:1", "m") as client, pytest.raises(ValueError, match=words):
        getattr(client, ask)(pictures)


def test_a_stream_may_be_empty():
    with kssl.FeatureClient("localhost:1", "m") as client:
        assert list(client.stream(iter(()))) == []


@pytest.mark.parametrize("answer", [[[1, 2]], [[1, 2]] * 3, 1.0])
def test_a_wrong_number_of_rows_is_an_error(answer):
    fake, words = (
        Fake(lambda asked, context: answer),
        "for 2 images; every output must have one row per image",
    )
    with asked(fake) as client, pytest.raises(RuntimeError, match=words):
        client.features(encoded(2))


def test_a_damaged_answer_is_an_error():
    request = protocol.ClientBase._build_request
    with kssl.FeatureClient("localhost:1", "m") as client:
        response = predict_pb2.PredictResponse()
        response.outputs["features"].CopyFrom(tf.make_tensor_proto(np.ones((1, 2), np.float32)))
        response.outputs["features"].tensor_content = b"abc"
        with pytest.raises(RuntimeError, match="malformed"):
            client._parse_response(request(client, "encoded", [b"0"]), response)
        with pytest.raises(RuntimeError, match="one row"):
            client._parse_response(
                request(client, "encoded", [b"0"]), predict_pb2.PredictResponse()
            )


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from([np.float32, np.uint8, np.int32, np.int64, np.float64, np.bool_, np.float16]),
    shape=st.lists(st.integers(0, 4), max_size=3), seed=st.integers(0, 9), one=st.booleans(),
)  # fmt: skip
def test_answers_are_read_as_tensorflow_reads_them(dtype, shape, seed, one):
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


def test_rows_are_the_callers_to_write():
    with asked(Fake()) as client:
        for vector in client.stream(encoded(3)):
            vector += 1


def test_a_bar_tells_the_speed_on_a_terminal_only(monkeypatch, capsys):
    with asked(Fake(), batch_size=2) as client:
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


def test_the_real_server_answers_both_clients(exported, task, noise, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(20)]
    for path, picture in zip(paths, noise, strict=False):
        path.write_bytes(tf.io.encode_png(picture).numpy())
    expected = task.features(noise[:20]).numpy()

    async def twin(address):
        async with kssl.AsyncFeatureClient(address, "rotation_digits", batch_size=6) as client:
            vectors = [vector async for vector in client.stream(map(str, paths))]
            pretext = await client.pretext(noise[:20])
            return np.array(vectors), await client.stages(noise[:20]), pretext

    with serving.Server(exported.parent) as server:
        address = f"localhost:{server.port}"
        with kssl.FeatureClient(address, "rotation_digits", batch_size=6) as client:
            ours = np.array(list(client.stream(iter(noise[:20]))))
            stages, pretext = client.stages(noise[:20]), client.pretext(noise[:20])
        theirs, their_stages, their_pretext = asyncio.run(twin(address))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(theirs, expected, rtol=1e-5, atol=1e-5)
    assert sorted(stages) == ["features", "stage1", "stage2"]
    np.testing.assert_allclose(stages["features"], expected, rtol=1e-5, atol=1e-5)
    for some, others in ((stages, their_stages), (pretext, their_pretext)):
        assert set(some) == set(others)
        for key in some:
            np.testing.assert_allclose(some[key], others[key], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Folder with an authority, and keys and certificates for server, client and a stranger."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates, and is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    new = "openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    sign = "openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names"
    commands = [
        f"{new} -x509 -days 2 -keyout {name}.key -out {name}.crt -subj /CN={name}"
        for name in ("ca", "stranger")
    ]
    for name in ("server", "client"):
        commands.append(f"{new} -keyout {name}.key -out {name}.csr -subj /CN={name}")
        commands.append(f"{sign} -in {name}.csr -out {name}.crt")
    for command in commands:
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder


@both
def test_tls(certificates, kind):
    def read(name):
        return (certificates / name).read_bytes()

    def credentials(*names):
        return serving.credentials(*(certificates / name for name in names))

    pair = [(read("server.key"), read("server.crt"))]
    with Fake().served(credentials=grpc.ssl_server_credentials(pair)) as port:
        address = f"localhost:{port}"
        found = features(kind, address, encoded(9), credentials=credentials("ca.crt"))
        np.testing.assert_array_equal(found, rows(9))
        for wrong in (credentials("stranger.crt"), serving.credentials(), None):
            with pytest.raises(ConnectionError):
                features(kind, address, encoded(1), credentials=wrong, retries=0)

    mutual = grpc.ssl_server_credentials(pair, read("ca.crt"), require_client_auth=True)
    with Fake().served(credentials=mutual) as port:
        address = f"localhost:{port}"
        known = credentials("ca.crt", "client.crt", "client.key")
        found = features(kind, address, encoded(9), credentials=known)
        np.testing.assert_array_equal(found, rows(9))
        for wrong in (
            credentials("ca.crt"), credentials("ca.crt", "stranger.crt", "stranger.key"),
        ):  # fmt: skip
            with pytest.raises(ConnectionError):
                features(kind, address, encoded(1), credentials=wrong, retries=0)
    with pytest.raises(ValueError, match="certificate and key belong together"):
        serving.credentials(certificates / "ca.crt", certificates / "client.crt")


def numbered(folder, number):
    """Files whose content is their number, and their paths in order."""
    folder.mkdir()
    paths = [str(folder / f"{i:04d}.jpg") for i in range(number)]
    for i, path in enumerate(paths):
        with open(path, "wb") as file:
            file.write(b"%d" % i)
    return paths


def holds(out, paths, numbers=None):
    """Is `out` the whole result, each image once and in order, and nothing left beside it?"""
    numbers = range(len(paths)) if numbers is None else numbers
    with np.load(out) as found:
        assert sorted(found) == ["features", "id", "path"]
        assert found["id"].dtype == np.int64
        assert found["features"].dtype == np.float32
        np.testing.assert_array_equal(found["id"], np.arange(len(numbers)))
        np.testing.assert_array_equal(found["path"], [paths[i] for i in numbers])
        np.testing.assert_array_equal(found["features"], [[i, -i] for i in numbers])
    assert not os.path.exists(f"{out}.part")
    assert not os.path.exists(f"{out}.new")


def test_extract_over_tls_by_the_command(certificates, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    numbered(tmp_path / "photos", 30)
    paths = sorted(os.path.join("photos", name) for name in os.listdir("photos"))
    mutual = grpc.ssl_server_credentials(
        [((certificates / "server.key").read_bytes(), (certificates / "server.crt").read_bytes())],
        (certificates / "ca.crt").read_bytes(), require_client_auth=True,
    )  # fmt: skip
    with Fake().served(credentials=mutual) as port:
        common = ("extract", "photos", "--model", "m", "--server", f"localhost:{port}")
        files = (("ca", "ca.crt"), ("certificate", "client.crt"), ("key", "client.key"))
        tls = [part for option, name in files for part in (f"--{option}", certificates / name)]
        code, out, err = command(*common, *tls)
        assert (code, out, err) == (0, "wrote features.npz: 30 x 2\n", "")
        holds("features.npz", paths)
        code, _, err = command(*common, *tls[:4])
        assert code == 2
        assert "certificate and key belong together" in err
        code, _, err = command("extract", "photos", "--model", "m", *tls)
        assert code == 2
        assert "--ca, --certificate and --key need --server" in err


# Without TensorFlow and most of keras_ssl a process starts in half a second.
LIGHT = """
import importlib.util, sys, types
for name in ("tensorflow", "keras_ssl", "keras_ssl.serving", "keras_ssl.serving.client"):
    module = types.ModuleType(name)
    module.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
    sys.modules[name] = module
"""
CLIENT = (
    LIGHT
    + """
from keras_ssl.serving.client.feature_client import FeatureClient
from keras_ssl.serving.client.extraction import extract
address, names, out = sys.argv[1:]
with FeatureClient(address, "m", batch_size=4) as client:
    extract(client, open(names).read().split(), out, progress=True)
"""
)
SERVER = (
    LIGHT
    + """
import time
from concurrent import futures
import grpc
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
class Fake(prediction_service_pb2_grpc.PredictionServiceServicer):
    def Predict(self, request, context):
        asked = [int(content) for content in request.inputs["encoded"].string_val]
        time.sleep(0.03)
        response = predict_pb2.PredictResponse()
        response.model_spec.version.value = 1
        tensor = response.outputs["features"]
        tensor.dtype = 1
        for size in (len(asked), 2):
            tensor.tensor_shape.dim.add(size=size)
        tensor.float_val.extend(value for i in asked for value in (i, -i))
        return response
server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Fake(), server)
print(server.add_insecure_port("localhost:" + sys.argv[1]), flush=True)
server.start()
server.wait_for_termination()
"""
)


def started(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def size(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


def test_extract_goes_on_after_its_process_was_killed(tmp_path):
    paths = numbered(tmp_path / "photos", 800)
    (tmp_path / "names").write_text("\n".join(paths))
    fake, out = Fake(lambda asked, context: time.sleep(0.02)), tmp_path / "features.npz"
    chance, kills, continued = np.random.default_rng(0), 0, 0
    with fake.served() as port:
        while not out.exists():
            process = started(CLIENT, f"localhost:{port}", tmp_path / "names", out)
            # In the middle of the work, the fourth time not before the end.
            enough = size(f"{out}.part") + (chance.integers(1, 800) if kills < 4 else 10**9)
            while process.poll() is None and size(f"{out}.part") < enough:
                time.sleep(0.001)
            if kills < 4:
                assert process.poll() is None
                time.sleep(chance.uniform(0, 0.03))
                process.send_signal(signal.SIGKILL)
                kills += 1
            _, err = process.communicate(timeout=30)
            assert "Traceback" not in err
            continued += "resuming at image" in err
    assert (kills, continued) == (4, 4)
    holds(out, paths)
    # No more than what was on its way was asked for twice.
    assert sum(map(len, fake.asked)) <= 800 + kills * 5 * 4 + 1
    again = tmp_path / "again.npz"
    with asked(Fake(), batch_size=64) as client:
        extraction.extract(client, paths, again)
    assert again.read_bytes() == out.read_bytes()


def test_extract_outlasts_a_server_that_is_killed_and_started_again(tmp_path):
    paths, out = numbered(tmp_path / "photos", 800), tmp_path / "features.npz"
    server = started(SERVER, 0)
    port = int(server.stdout.readline())

    def kill(enough):
        wait_for(lambda: size(f"{out}.part") > enough)
        server.kill()
        server.communicate()

    try:
        with kssl.FeatureClient(f"localhost:{port}", "m", batch_size=4, retries=0) as client:
            killer = threading.Thread(target=kill, args=(1000,))
            killer.start()
            with pytest.raises(
                ConnectionError, match=r"\d+ of 800 images are in .*, run the same command again"
            ):
                extraction.extract(client, paths, out)
            killer.join()
        assert 1000 < size(f"{out}.part") < 7000
        server = started(SERVER, port)
        assert int(server.stdout.readline()) == port
        with (
            kssl.FeatureClient(f"localhost:{port}", "m", batch_size=4) as client,
            ThreadPoolExecutor(1) as pool,
        ):
            shape = pool.submit(extraction.extract, client, paths, out)
            kill(size(f"{out}.part") + 1000)
            time.sleep(1)
            server = started(SERVER, port)
            assert shape.result(timeout=30) == (800, 2)
    finally:
        server.kill()
        server.communicate()
    holds(out, paths)


def stopped(client, paths, out, after):
    """Extracts until so many requests were answered, then fails."""
    calls = itertools.count()
    answer = client._parse_response

    def count(request, response):
        if next(calls) == after:
            raise RuntimeError("stopped")
        return answer(request, response)

    client._parse_response = count
    with pytest.raises(RuntimeError, match="stopped"):
        extraction.extract(client, paths, out)
    del client._parse_response


def test_a_torn_draft_goes_on_with_its_whole_rows(tmp_path, capsys):
    paths, out, fake = numbered(tmp_path / "photos", 50), tmp_path / "features.npz", Fake()
    with asked(Fake(), batch_size=5) as client:
        stopped(client, paths, out, after=4)
    with open(f"{out}.part", "r+b") as file:
        file.truncate(size(f"{out}.part") - 3)
    with asked(fake, batch_size=5) as client:
        extraction.extract(client, paths, out, progress=True)
    assert capsys.readouterr() == ("", "resuming at image 16 of 50\n")
    assert sorted(itertools.chain(*fake.asked)) == list(range(15, 50))
    holds(out, paths)


def test_a_draft_is_continued_by_its_own_version_only(tmp_path):
    paths, out, fake = numbered(tmp_path / "photos", 50), tmp_path / "features.npz", Fake(version=3)
    with fake.served() as port:
        address = f"localhost:{port}"
        with kssl.FeatureClient(address, "m", label="stable", batch_size=5) as client:
            stopped(client, paths, out, after=4)
            assert fake.specs[0].version_label == "stable"
            assert {spec.version.value for spec in fake.specs[1:]} == {3}

            # A newer one is there by now, and the server takes no notice of what is asked for.
            fake.version = 4
            with pytest.raises(RuntimeError, match="requested version 3 .* with version 4"):
                extraction.extract(client, paths, out)
            # It takes notice, and the old version is gone.
            fake.behave = lambda asked, context: context.abort(Code.NOT_FOUND, "Servable not found")
            with pytest.raises(
                ValueError, match=r"computed by version 3: serve it, or delete that file"
            ):
                extraction.extract(client, paths, out)

            fake.version, fake.behave = 3, lambda asked, context: None
            fake.specs.clear()
            extraction.extract(client, paths, out)
            assert {spec.version.value for spec in fake.specs} == {3}
    holds(out, paths)


def test_a_draft_of_something_else_is_left_alone(tmp_path):
    paths, out = numbered(tmp_path / "photos", 50), tmp_path / "features.npz"
    with asked(Fake(), batch_size=5) as client:
        stopped(client, paths, out, after=4)
        draft = (tmp_path / "features.npz.part").read_bytes()
        address = client.address
        cases = [
            ({"model": "n"}, paths, r"\(different model"), ({"label": "stable"}, paths, r"\(different label"),
            ({"version": 2}, paths, r"\(different version"), ({}, paths[1:], r"\(different files"),
            ({"model": "n"}, paths[::-1], r"\(different model and files"),
        ]  # fmt: skip
        for arguments, files, words in cases:
            other = kssl.FeatureClient(address, **{"model": "m", **arguments})
            with other, pytest.raises(ValueError, match=f"{words}.*delete it to start again"):
                extraction.extract(other, files, out)
        with open(paths[7], "ab") as file:
            file.write(b"0")
        with pytest.raises(ValueError, match="different files"):
            extraction.extract(client, paths, out)
        assert (tmp_path / "features.npz.part").read_bytes() == draft
        for foreign in (b"PK\3\4 something", b"[]\n", b'{"draft of": "tea"}\n'):
            (tmp_path / "features.npz.part").write_bytes(foreign)
            with pytest.raises(ValueError, match="contains something else"):
                extraction.extract(client, paths, out)
            assert (tmp_path / "features.npz.part").read_bytes() == foreign
    assert not out.exists()


def test_unreadable_files_are_left_out_with_a_warning(tmp_path):
    paths, out = numbered(tmp_path / "photos", 60), tmp_path / "features.npz"
    bad = {0, 1, 17, 18, 40, 59}

    def behave(asked, context):
        if bad & set(asked):
            context.abort(Code.INVALID_ARGUMENT, "Unknown image file format")

    with asked(Fake(behave), batch_size=7) as client:
        with pytest.warns(UserWarning, match=r"skipped 6 of 60 files, .*0000.jpg, .*0059.jpg"):
            shape = extraction.extract(client, paths, out)
        assert shape == (54, 2)
        holds(out, paths, [i for i in range(60) if i not in bad])
        with pytest.raises(ValueError, match="none of the 2 files is an image"):
            extraction.extract(client, paths[:2], tmp_path / "none.npz")
        with pytest.raises(ValueError, match="at least one file"):
            extraction.extract(client, [], tmp_path / "none.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.npz", "photos"]


def test_a_million_rows_are_not_in_memory(tmp_path):
    client = kssl.FeatureClient("localhost:1", "m")
    draft = extraction._PartialFile(str(tmp_path / "features.npz.part"), client, [])
    draft.create(1, 64)
    number = 50 * 4096
    paths = [f"{i:06d}" for i in range(number)]
    for i in range(0, number, 4096):
        draft.append(np.repeat(np.arange(i, i + 4096, dtype=np.float32)[:, None], 64, 1))
    tracemalloc.start()
    extraction._write(draft, paths, str(tmp_path / "features.npz"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16e6  # the features are 52 MB
    found = np.load(tmp_path / "features.npz")
    np.testing.assert_array_equal(found["features"][:, 3], np.arange(number))
    assert found["path"][-1] == f"{number - 1:06d}"
    client.close()
