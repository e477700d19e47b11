"""Small models, certificates, and one embedded server that tests share."""

import datetime
import ipaddress
import shutil
import time

import grpc
import pytest
import server_process
import tensorflow as tf
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tensorflow.python.data.experimental.ops import testing
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2, prediction_service_pb2_grpc

from keras_ssl import serving
from keras_ssl.serving.server import configs
from keras_ssl.serving.server.servable import WARMUP


@pytest.fixture(scope="session")
def wait_for():
    """`wait_for(condition)`: waits until a condition is true."""

    def wait(condition):
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    return wait


@pytest.fixture(scope="session")
def counter(tmp_path_factory):
    """Folder of a model `counter` with the versions 1, 2 and 3: y = x + version, and x must be >= 0."""
    folder = tmp_path_factory.mktemp("counters")
    server_process.write_counters(folder)
    return folder / "counter"


@pytest.fixture
def root(counter, tmp_path):
    """Folder of the models `a` and `b`."""
    for name in ("a", "b"):
        shutil.copytree(counter / "1", tmp_path / "root" / name / "1")
    return tmp_path / "root"


@pytest.fixture(scope="session")
def predict_request():
    """`predict_request(model, signature="", **arrays)`: a PredictRequest."""

    def create(model, signature="", **arrays):
        message = server_process.request(model, **arrays)
        message.model_spec.signature_name = signature
        return message

    return create


@pytest.fixture(scope="session")
def server(exported, counter, tmp_path_factory):
    """A server of `rotation_digits` and `counter` with batching, REST, metrics and a UNIX socket."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "rotation_digits").symlink_to(exported)
    (folder / "counter").symlink_to(counter)
    batching = configs.BatchingParameters()
    batching.batch_timeout_micros.value = 1000
    monitoring = configs.MonitoringConfig()
    monitoring.prometheus_config.enable = True
    socket_path = str(folder / "socket")
    with serving.Server(
        folder, socket_path=socket_path, rest_port=0, batching=batching, monitoring=monitoring
    ) as server:
        server.socket_path = socket_path
        yield server


@pytest.fixture(scope="session")
def channel(server):
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"localhost:{server.port}", options) as channel:
        yield channel


@pytest.fixture(scope="session")
def stub(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """Folder of certificates and keys for `ca`, `server`, `client` and `stranger`, as PEM files.

    The first signs those of server and client; the stranger's is signed by itself.
    """
    folder = tmp_path_factory.mktemp("certificates")
    authority = None
    for name in ("ca", "server", "client", "stranger"):
        signer = None if name == "stranger" else authority
        certificate, key = _certificate(name, signer)
        if name == "ca":
            authority = certificate, key
        pem = serialization.Encoding.PEM
        (folder / f"{name}.crt").write_bytes(certificate.public_bytes(pem))
        private = key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{name}.key").write_bytes(private)
    return folder


def _certificate(name, signer):
    """Creates a certificate and its key, signed by a (certificate, key) or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer[0].subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), True)
        .add_extension(x509.SubjectAlternativeName(names), False)
        .sign(signer[1] if signer else key, hashes.SHA256())
    )
    return certificate, key


@pytest.fixture(scope="session")
def sleeper(tmp_path_factory):
    """Folder of a version whose signature sleeps for x seconds, without holding the interpreter."""
    folder = tmp_path_factory.mktemp("sleeper") / "1"

    def work(x):
        # It sleeps before the element and before the end.
        micros = tf.cast(tf.reduce_max(x) * 5e5, tf.int64)
        slow = tf.data.Dataset.from_tensors(0.0).apply(testing.sleep(micros))
        return {"y": x + slow.reduce(0.0, lambda a, b: a + b)}

    spec = tf.TensorSpec((None, 1), tf.float32, "x")
    tf.saved_model.save(tf.Module(), str(folder), tf.function(work, input_signature=[spec]))
    return folder


@pytest.fixture(scope="session")
def write_warmup():
    """`write_warmup(version, *requests)`: writes warm-up records, PredictRequests or PredictionLogs."""

    def write(version, *requests):
        (version / "assets.extra").mkdir(exist_ok=True)
        with tf.io.TFRecordWriter(str(version / "assets.extra" / WARMUP)) as writer:
            for request in requests:
                record = request
                if isinstance(request, predict_pb2.PredictRequest):
                    record = prediction_log_pb2.PredictionLog()
                    record.predict_log.request.CopyFrom(request)
                writer.write(record.SerializeToString())

    return write
