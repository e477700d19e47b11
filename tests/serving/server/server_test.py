"""The server as a whole: flags, TLS, draining, hostile bytes, and load; with real processes."""

import datetime
import io
import ipaddress
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from keras_ssl import serving
from keras_ssl.cli import common, serve
from keras_ssl.serving.server import configs

sys.path.append(str(Path(__file__).parents[3] / "tools"))
import soak_serving
from soak_serving import request

PREDICT = "/tensorflow.serving.PredictionService/Predict"


def stub(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def server(exported, counter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "rotation_digits").symlink_to(exported)
    (folder / "counter").symlink_to(counter)
    batching = configs.BatchingParameters()
    batching.batch_timeout_micros.value = 1000
    socket_path = str(folder / "socket")
    with serving.Server(folder, socket_path=socket_path, batching=batching) as server:
        server.socket_path = socket_path
        yield server


@pytest.fixture(scope="module")
def channel(server):
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"localhost:{server.port}", options) as channel:
        yield channel


def test_values_are_typed_by_default_and_content_on_a_flag(channel, counter):
    answer = stub(channel).Predict(request("counter", x=[[1.0], [4.5]]), timeout=10)
    assert list(answer.outputs["y"].float_val) == [4, 7.5]
    assert not answer.outputs["y"].tensor_content
    with (
        serving.Server(counter, tensor_content=True) as other,
        grpc.insecure_channel(f"localhost:{other.port}") as there,
    ):
        answer = stub(there).Predict(request("counter", x=[[1.0]]), timeout=10)
        assert answer.outputs["y"].tensor_content == np.float32(4).tobytes()
        assert not answer.outputs["y"].float_val


def test_a_vector_for_a_column(tmp_path):
    soak_serving.write_counters(tmp_path, versions=[3])
    with (
        serving.Server(tmp_path) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        answer = stub(channel).Predict(request("counter", x=[1.0]), timeout=10)
    assert list(answer.outputs["y"].float_val) == [4]
    assert [dim.size for dim in answer.outputs["y"].tensor_shape.dim] == [1]


def test_what_is_not_there_is_unimplemented(channel):
    for name, message in (
        ("Classify", classification_pb2.ClassificationRequest()),
        ("Regress", regression_pb2.RegressionRequest()),
        ("MultiInference", inference_pb2.MultiInferenceRequest()),
    ):
        with pytest.raises(grpc.RpcError) as error:
            getattr(stub(channel), name)(message, timeout=10)
        assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_unix_socket(server):
    with grpc.insecure_channel(f"unix:{server.socket_path}") as channel:
        answer = stub(channel).Predict(request("counter", x=[[1.0]]), timeout=10)
        assert answer.model_spec.version.value == 3


def test_health_and_reflection(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "tensorflow.serving.PredictionService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    listed = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10
    )
    names = {service.name for service in next(listed).list_services_response.service}
    assert {"tensorflow.serving.ModelService", "grpc.health.v1.Health"} <= names


def test_reload_over_grpc(counter, tmp_path):
    shutil.copytree(counter, tmp_path / "counter")
    with (
        serving.Server(config=configs.config_of({"a": tmp_path / "counter"})) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        message = model_management_pb2.ReloadConfigRequest()
        message.config.CopyFrom(configs.config_of({"b": tmp_path / "counter"}))
        answer = models.HandleReloadConfigRequest(message, timeout=30)
        assert answer.status.error_code == 0
        assert stub(channel).Predict(request("b", x=[[1.0]]), timeout=10).outputs["y"].float_val
        message.config.model_config_list.config[0].base_path = "relative"
        with pytest.raises(grpc.RpcError, match="absolute path"):
            models.HandleReloadConfigRequest(message, timeout=30)
        status = get_model_status_pb2.GetModelStatusRequest()
        with pytest.raises(grpc.RpcError, match="Missing ModelSpec"):
            models.GetModelStatus(status, timeout=10)


def test_requests_beyond_the_limit_are_refused(counter):
    batching = configs.BatchingParameters()
    batching.batch_timeout_micros.value = 10**6  # so that two wait inside for a while
    with (
        serving.Server(counter, batching=batching, limit=2) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        first = [stub(channel).Predict.future(request("counter", x=[[1.0]])) for _ in range(2)]
        time.sleep(0.3)
        with pytest.raises(grpc.RpcError, match="2 requests are in flight") as error:
            stub(channel).Predict(request("counter", x=[[1.0]]), timeout=10)
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert all(f.result().outputs["y"].float_val[0] == 4 for f in first)


def test_a_request_whose_deadline_passed_in_the_queue_is_not_computed(counter, monkeypatch):
    batching = configs.BatchingParameters()
    batching.batch_timeout_micros.value = 500_000
    with (
        serving.Server(counter, batching=batching) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        sizes = []
        with server.models.lease(request("counter").model_spec) as (_, servable):
            run = servable.run
            monkeypatch.setattr(
                servable,
                "run",
                lambda inputs, *a: sizes.append(len(inputs["x"])) or run(inputs, *a),
            )
        late = stub(channel).Predict.future(request("counter", x=[[1.0]] * 7), timeout=0.1)
        in_time = stub(channel).Predict.future(request("counter", x=[[1.0]]), timeout=10)
        assert late.exception().code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert in_time.result().outputs["y"].float_val[0] == 4
        assert sizes == [1]


# What a client may send: pictures of all sorts, and what only looks like one.


def picture(kind, mode="RGB", size=(9, 7), **options):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def sixteen_bits():
    return tf.io.encode_png(tf.cast(tf.random.uniform((5, 6, 3), 0, 65535), tf.uint16)).numpy()


def animation():
    frames = [Image.new("RGB", (8, 6), (40 * i, 10, 90)) for i in range(4)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def gif_bomb():
    """A frame of 65,535 x 65,535 on a screen of 8 x 8."""
    content = bytearray(picture("GIF", size=(8, 8)))
    place = content.index(b"\x2c\0\0\0\0")
    content[place + 5 : place + 9] = b"\xff\xff\xff\xff"
    return bytes(content)


def jpeg_claim():
    content = bytearray(picture("JPEG", size=(16, 16)))
    place = content.index(b"\xff\xc0")
    content[place + 5 : place + 9] = (12000).to_bytes(2, "big") * 2
    return bytes(content)


def png_claim():
    content = bytearray(picture("PNG", size=(16, 16)))
    content[16:24] = (50_000).to_bytes(4, "big") * 2
    return bytes(content)


RIGHT = {
    "jpeg": picture("JPEG"),
    "gray": picture("JPEG", "L"),
    "cmyk": picture("JPEG", "CMYK"),
    "rgba": picture("PNG", "RGBA"),
    "palette": picture("PNG", "P"),
    "16 bits": sixteen_bits(),
    "bmp": picture("BMP"),
    "gif": animation(),
}
WRONG = {
    "empty": b"",
    "garbage": bytes(range(256)) * 9,
    "webp": picture("WEBP"),
    "gif bomb": gif_bomb(),
    "jpeg claim": jpeg_claim(),
    "png claim": png_claim(),
    "magic only": b"\xff\xd8\xff",
    "text": b"GET / HTTP/1.1\r\n\r\n" * 3,
}


def encoded(*contents):
    message = request("rotation_digits", encoded=np.array(contents, object))
    message.model_spec.signature_name = "encoded"
    return message


@pytest.mark.parametrize("kind", RIGHT)
def test_pictures_of_all_sorts(channel, task, kind):
    answer = stub(channel).Predict(encoded(RIGHT[kind], RIGHT["jpeg"]), timeout=20)
    rows = tf.make_ndarray(answer.outputs["features"])
    from keras_ssl.ops import decode, images

    resized = images.resize(decode.decode(RIGHT[kind]), 32, 32)
    np.testing.assert_allclose(rows[:1], task.features(resized[None]), rtol=1e-4, atol=1e-4)


def test_bytes_that_are_no_picture_are_refused_and_take_no_memory(channel):
    stub(channel).Predict(encoded(RIGHT["jpeg"]), timeout=20)
    before = resident()
    cut = [content[: i * len(content) // 21] for content in RIGHT.values() for i in range(1, 21)]
    accepted, refusals = [], []
    for content in [*WRONG.values(), *cut]:
        try:
            stub(channel).Predict(encoded(content), timeout=20)
            accepted.append(content)
        except grpc.RpcError as error:
            refusals.append(error)
    assert not set(accepted) & set(WRONG.values())  # a decoder may fill up what was cut off
    assert {error.code() for error in refusals} == {grpc.StatusCode.INVALID_ARGUMENT}
    assert len(refusals) > len(cut) / 2
    assert max(len(error.details()) for error in refusals) <= 1024
    assert resident() - before < 256 * 2**20


def test_a_small_tensor_that_claims_much(channel):
    before = resident()
    for dims in ([2**28, 32, 32, 3], [2**62, 2**62, 3, 3], [2**31, 1, 1, 1], [1] * 300):
        message = request("rotation_digits", images=np.zeros((1, 32, 32, 3), np.uint8))
        tensor = message.inputs["images"]
        tensor.tensor_content = b""
        tensor.int_val.append(3)
        del tensor.tensor_shape.dim[:]
        for size in dims:
            tensor.tensor_shape.dim.add(size=size)
        with pytest.raises(grpc.RpcError) as error:
            stub(channel).Predict(message, timeout=10)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert resident() - before < 64 * 2**20


@pytest.fixture(scope="module")
def good():
    return request("rotation_digits", images=np.zeros((2, 32, 32, 3), np.uint8))


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32), pixels=st.booleans())
def test_mutated_requests(channel, good, seed, pixels):
    """The short form of `tools/soak_serving.py nonsense`."""
    data = soak_serving.mutated(
        good if pixels else encoded(RIGHT["jpeg"]), np.random.default_rng(seed)
    )
    call = channel.unary_unary(PREDICT)
    try:
        call(data, timeout=20)
    except grpc.RpcError as error:
        assert error.code().name in (  # noqa: PT017
            "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION",
        ), error  # fmt: skip
    if seed % 10 == 0:
        call(good.SerializeToString(), timeout=20)


# TLS


def certificate(name, authority=None):
    """(certificate, key) as PEM, signed by `authority` or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    issuer, signer = (authority[2].subject, authority[3]) if authority else (subject, key)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), True)
        .add_extension(x509.SubjectAlternativeName(names), False)
        .sign(signer, hashes.SHA256())
    )
    pem = signed.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return pem, private, signed, key


def test_tls_and_mutual_tls(counter):
    authority = certificate("authority")
    ours, theirs, stranger = (
        certificate("server", authority), certificate("client", authority), certificate("stranger"),
    )  # fmt: skip
    tls = configs.SSLConfig(server_key=ours[1].decode(), server_cert=ours[0].decode())

    def ask(server, credentials):
        with grpc.secure_channel(f"localhost:{server.port}", credentials) as channel:
            return stub(channel).Predict(request("counter", x=[[1.0]]), timeout=3)

    trusting = grpc.ssl_channel_credentials(authority[0])
    with serving.Server(counter, tls=tls) as server:
        assert ask(server, trusting).outputs["y"].float_val[0] == 4
        with pytest.raises(grpc.RpcError):
            ask(server, grpc.ssl_channel_credentials(stranger[0]))
    tls.custom_ca, tls.client_verify = authority[0].decode(), True
    with serving.Server(counter, tls=tls) as server:
        known = grpc.ssl_channel_credentials(authority[0], theirs[1], theirs[0])
        assert ask(server, known).outputs["y"].float_val[0] == 4
        for unknown in (
            trusting,
            grpc.ssl_channel_credentials(authority[0], stranger[1], stranger[0]),
        ):
            with pytest.raises(grpc.RpcError):
                ask(server, unknown)
    for bad, words in (
        (configs.SSLConfig(server_key="x"), "server_key and server_cert"),
        (configs.SSLConfig(server_key="x", server_cert="y", client_verify=True), "custom_ca"),
        (configs.SSLConfig(server_key="no", server_cert="certificate"), "certificates of tls"),
    ):
        with pytest.raises(ValueError, match=words):
            serving.Server(counter, tls=bad)


# Processes


def slow_model(folder):
    """Writes a model that multiplies matrices x times: some seconds of work."""

    def work(x):
        matrix = tf.eye(900) * tf.reduce_mean(x) / tf.reduce_mean(x)
        turns = tf.cast(tf.reduce_max(x), tf.int32)
        _, matrix = tf.while_loop(lambda i, _: i < turns, lambda i, m: (i + 1, m @ m), (0, matrix))
        return {"y": x * matrix[0, 0]}

    spec = tf.TensorSpec((None, 1), tf.float32, "x")
    tf.saved_model.save(
        tf.Module(), str(folder / "slow" / "1"), tf.function(work, input_signature=[spec])
    )


def test_sigterm_finishes_what_is_in_flight(tmp_path):
    slow_model(tmp_path)
    with soak_serving.Served(tmp_path) as server, server.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for _ in range(2):  # the first warms up
            start = time.monotonic()
            stub(channel).Predict(request("slow", x=[[20.0]]), timeout=60)
        turns = 20 * 2.5 / (time.monotonic() - start)  # two and a half seconds
        in_flight = stub(channel).Predict.future(request("slow", x=[[np.float32(turns)]]))
        time.sleep(0.3)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as error:
            stub(channel).Predict(request("slow", x=[[1.0]]), timeout=5)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        assert in_flight.result(timeout=20).outputs["y"].float_val[0] == np.float32(turns)
        assert server.process.wait(timeout=20) == 0
        assert time.monotonic() - start < 10


def test_load_swaps_and_overload(exported, counter, tmp_path):
    """The short forms of `tools/soak_serving.py`."""
    shutil.copytree(exported, tmp_path / "models" / exported.name)
    assert soak_serving.load(tmp_path / "models", seconds=5, number=16) > 16
    shutil.copytree(counter, tmp_path / "counters" / "counter")
    growth = soak_serving.swaps(tmp_path / "counters", seconds=8, number=8, times=4)
    assert growth < 0.1
    statuses, slowest, recovery = soak_serving.overload(tmp_path / "models", seconds=5, number=100)
    assert set(statuses) <= {"OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}
    assert statuses["OK"] > 0 < statuses["RESOURCE_EXHAUSTED"]
    assert slowest < 2  # other tests have the other core: alone it is under a second
    assert recovery < 2


# Flags


BAD_FLAGS = [
    (["--model_base_path=/nowhere", "--port=0"], "no folder '/nowhere'"),
    (["{counter}", "--model_base_path={counter}"], "not two of them"),
    (["{counter}", "--batching_parameters_file=x"], "needs --enable_batching"),
    (["{counter}", "--enable_batching", "--batching_parameters_file=/none"], "cannot read '/none'"),
    (["{counter}", "--enable_batching=perhaps"], "must be true or false, got 'perhaps'"),
    (["{counter}", "--prot=1"], "unrecognized arguments: --prot=1"),
    (["{counter}", "--port=8500", "--rest_api_port=8500"], "are both 8500"),
    (["{counter}", "--grpc_channel_arguments=a"], "must be a=1,b=2, got 'a'"),
    (["{counter}", "--port=many"], "--port: invalid int value: 'many'"),
    (["{counter}", "--grpc_max_threads=0", "--port=0"], "limit must be at least 1"),
    (["{counter}", "--rest_api_timeout_in_ms=0", "--port=0"], "rest_timeout must be a positive"),
    (["--model_config_file={bad}"], "Error parsing text-format tensorflow.serving.ModelServerConfig"),
    (["--model_base_path={counter}", "--port=0"], "nothing to listen on"),
    (["{empty}", "--port=0"], "no model in"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "words"), BAD_FLAGS)
def test_bad_flags(counter, tmp_path, monkeypatch, flags, words):
    monkeypatch.setenv("PATH", "")
    (tmp_path / "bad").write_text("no config")
    (tmp_path / "empty").mkdir()
    places = {"counter": counter, "bad": tmp_path / "bad", "empty": tmp_path / "empty"}
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        serve.main([flag.format(**places) for flag in flags])


def test_the_flags_of_tensorflow_model_server(counter, tmp_path):
    (tmp_path / "monitoring").write_text('prometheus_config { enable: true path: "/metrics" }')
    (tmp_path / "batching").write_text("max_batch_size { value: 8 }")
    ports = [common.free_port() for _ in range(2)]
    flags = [
        "--model_name=half", f"--model_base_path={counter}", f"--port={ports[0]}",
        f"--rest_api_port={ports[1]}", "--rest_api_timeout_in_ms=5000", "--enable_batching=true",
        f"--grpc_socket_path={tmp_path}/socket", f"--monitoring_config_file={tmp_path}/monitoring",
        f"--batching_parameters_file={tmp_path}/batching", "--flush_filesystem_caches=false",
        "--grpc_channel_arguments=grpc.max_connection_age_ms=2000,grpc.lb_policy_name=grpclb",
        "--tensorflow_intra_op_parallelism=1", "--enable_serialization_as_tensor_content",
    ]  # fmt: skip
    program = "from keras_ssl.cli import serve; import sys; serve.main(sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", program, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "half version 3\n"
        assert f"0.0.0.0:{ports[0]} (gRPC) and port {ports[1]} (REST)" in process.stdout.readline()
        for address in (f"localhost:{ports[0]}", f"unix:{tmp_path}/socket"):
            with grpc.insecure_channel(address) as channel:
                answer = stub(channel).Predict(request("half", x=[[1.0]]), timeout=10)
                assert answer.outputs["y"].tensor_content == np.float32(4).tobytes()
        with soak_serving.urllib.request.urlopen(
            f"http://localhost:{ports[1]}/metrics", timeout=10
        ) as page:
            assert b":tensorflow:serving:batching_session:queuing_latency" in page.read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert "--flush_filesystem_caches has no effect" in process.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({}, "give either directory or config"), ({"directory": "x", "config": "y"}, "give either"),
     ({"directory": "x", "port": None}, "nothing to listen on"),
     ({"directory": "x", "limit": 0}, "limit must be at least 1, got 0"),
     ({"directory": "x", "rest_timeout": 0}, "rest_timeout must be")],
)  # fmt: skip
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        serving.Server(**arguments)


def test_no_model_that_loads(tmp_path):
    (tmp_path / "broken" / "1").mkdir(parents=True)
    with pytest.raises(
        ValueError, match="no model can be loaded: broken: path .* has no SavedModel"
    ):
        serving.Server(tmp_path)
