"""The UNIX socket: its mode, a stale one, and one that another server holds."""

import os
import socket
import stat

import grpc
import pytest
from tensorflow_serving.apis import prediction_service_pb2_grpc

from keras_ssl import serving


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "socket")


def predicts(path, message):
    with grpc.insecure_channel(f"unix:{path}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        return stub.Predict(message, timeout=10).outputs["y"].float_val[0] == 4


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_the_owner_and_the_group_may_connect(counter, path, umask, predict_request):
    before = os.umask(umask)
    try:
        with serving.Server(counter, port=None, socket_path=path):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
            assert predicts(path, predict_request("counter", x=[[1.0]]))
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


def test_a_socket_that_another_server_holds(counter, path, predict_request):
    with serving.Server(counter, port=None, socket_path=path):
        with pytest.raises(ValueError, match="socket_path .* is held by another server: stop that"):
            serving.Server(counter, port=None, socket_path=path)
        assert predicts(path, predict_request("counter", x=[[1.0]]))  # it still has its socket
    with socket.socket(socket.AF_UNIX) as other:  # of a program that does not accept
        other.bind(path)
        other.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(path)
            with pytest.raises(ValueError, match="is held by another server"):
                serving.Server(counter, port=None, socket_path=path)


def test_a_stale_socket_is_replaced(counter, path, predict_request):
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(path)
    assert os.path.exists(path)
    with serving.Server(counter, port=None, socket_path=path):
        assert predicts(path, predict_request("counter", x=[[1.0]]))


def test_a_file_is_not_replaced(counter, tmp_path):
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(ValueError, match="exists and is no socket"):
        serving.Server(counter, port=None, socket_path=str(file))
    assert file.read_text() == "precious"
