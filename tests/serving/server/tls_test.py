"""TLS and mutual TLS of the embedded server."""

import grpc
import pytest
from tensorflow_serving.apis import prediction_service_pb2_grpc

from keras_ssl import serving
from keras_ssl.serving.server import configs


def test_tls_and_mutual_tls(counter, certificates, predict_request):
    def read(name):
        return (certificates / name).read_bytes()

    def predict(server, credentials):
        with grpc.secure_channel(f"localhost:{server.port}", credentials) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            return stub.Predict(predict_request("counter", x=[[1.0]]), timeout=3)

    def credentials(authority, name=None):
        pair = (read(f"{name}.key"), read(f"{name}.crt")) if name else ()
        return grpc.ssl_channel_credentials(read(f"{authority}.crt"), *pair)

    tls = configs.SSLConfig(
        server_key=read("server.key").decode(), server_cert=read("server.crt").decode()
    )
    with serving.Server(counter, tls=tls) as server:
        assert predict(server, credentials("ca")).outputs["y"].float_val[0] == 4
        with pytest.raises(grpc.RpcError):
            predict(server, credentials("stranger"))
    tls.custom_ca, tls.client_verify = read("ca.crt").decode(), True
    with serving.Server(counter, tls=tls) as server:
        assert predict(server, credentials("ca", "client")).outputs["y"].float_val[0] == 4
        for unknown in (credentials("ca"), credentials("ca", "stranger")):
            with pytest.raises(grpc.RpcError):
                predict(server, unknown)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"server_key": "x"}, "server_key and server_cert"),
     ({"server_key": "x", "server_cert": "y", "client_verify": True}, "custom_ca"),
     ({"server_key": "no", "server_cert": "certificate"}, "certificates of tls")],
)  # fmt: skip
def test_invalid_configurations(counter, fields, message):
    with pytest.raises(ValueError, match=message):
        serving.Server(counter, tls=configs.SSLConfig(**fields))
