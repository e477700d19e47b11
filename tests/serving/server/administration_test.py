"""Who may replace the configuration over gRPC, and what a refused request changes: nothing."""

import contextlib
import shutil

import grpc
import pytest
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
)

from keras_ssl import serving
from keras_ssl.serving.server.configs import config_of

DENIED = grpc.StatusCode.PERMISSION_DENIED


@contextlib.contextmanager
def reloading(address):
    """Yields `reload(models)`: sends a HandleReloadConfigRequest and returns its status and message."""
    with grpc.insecure_channel(address) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)

        def reload(models):
            message = model_management_pb2.ReloadConfigRequest(config=config_of(models))
            try:
                stub.HandleReloadConfigRequest(message, timeout=30)
                return grpc.StatusCode.OK, ""
            except grpc.RpcError as error:
                return error.code(), error.details()

        yield reload


def test_reloading_is_off_by_default(root):
    with serving.Server(root) as server, reloading(f"localhost:{server.port}") as reload:
        code, message = reload({"a": root / "a"})
        assert code == DENIED
        assert "--reload_config=socket" in message
        assert server.models.names() == ["a", "b"]


def test_who_may_not_reload_is_refused_before_anything_is_parsed_or_waits(root):
    with (
        serving.Server(root) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        while server._services._reloads.acquire(blocking=False):
            pass
        reload = channel.unary_unary("/tensorflow.serving.ModelService/HandleReloadConfigRequest")
        with pytest.raises(grpc.RpcError) as error:
            reload(b"not a message", timeout=10)
        assert error.value.code() == DENIED


def test_reloading_on_the_unix_socket_only(root, tmp_path):
    path = str(tmp_path / "socket")
    with (
        serving.Server(root, reload="socket", socket_path=path, poll_seconds=0) as server,
        reloading(f"localhost:{server.port}") as from_network,
        reloading(f"unix:{path}") as from_socket,
    ):
        assert from_network({"a": root / "a"}) == (
            DENIED, "HandleReloadConfigRequest is accepted on the UNIX socket only",
        )  # fmt: skip
        assert server.models.names() == ["a", "b"]
        assert from_socket({"c": root / "a"}) == (grpc.StatusCode.OK, "")
        assert server.models.names() == ["c"]


def test_folders_that_a_reload_may_name(root, counter, tmp_path):
    (root / "way_out").symlink_to(counter)
    (tmp_path / "rooted").mkdir()  # has the name of the root as its beginning
    shutil.copytree(counter / "2", tmp_path / "more" / "c" / "2")
    (tmp_path / "way_in").symlink_to(root)
    with (
        serving.Server(root, reload="all", reload_roots=[tmp_path / "more"]) as server,
        reloading(f"localhost:{server.port}") as reload,
    ):
        assert server.models.names() == ["a", "b", "way_out"]  # who owns the folder may link
        outside = (
            counter.parent,
            counter / "3",
            counter / "..",
            root / "..",
            tmp_path / "rooted",
            "/",
            "/etc",
        )
        for path in (*outside, f"{root}/../counter", tmp_path / "more" / ".." / "rooted"):
            code, message = reload({"a": root / "a", "evil": path})
            assert code == DENIED, path
            assert f"base_path {str(path)!r} of model evil is in none of the folders" in message
            assert server.models.names() == ["a", "b", "way_out"]
        for path in (root / "b", tmp_path / "way_in" / "a", counter, tmp_path / "more" / "c"):
            assert reload({"a": root / "a", "new": path}) == (grpc.StatusCode.OK, ""), path
            assert reload({"a": root / "a"})[0] == grpc.StatusCode.OK
        (root / "later").symlink_to(counter.parent / "other")
        assert reload({"new": root / "later"})[0] == DENIED


def test_a_refused_reload_changes_nothing(root, tmp_path):
    (root / "broken" / "1").mkdir(parents=True)
    with (
        serving.Server(
            config=config_of({"a": root / "a"}), reload="all", reload_roots=[root]
        ) as server,
        reloading(f"localhost:{server.port}") as reload,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        status = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus
        config = server.models.config
        for _ in range(2):  # each gives the reason
            code, message = reload({"b": root / "b", "broken": root / "broken"})
            assert code == grpc.StatusCode.FAILED_PRECONDITION
            assert message.startswith("1 model(s) did not become available: broken: path ")
            assert server.models.names() == ["a"]
            assert server.models.config == config
            request = get_model_status_pb2.GetModelStatusRequest()
            for name in ("b", "broken"):
                request.model_spec.name = name
                with pytest.raises(grpc.RpcError, match="Could not find any versions"):
                    status(request, timeout=10)
        server.models.update()
        assert server.models.names() == ["a"]
        code, message = reload({"a": f"{root}/a\0"})
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert "a\\x00' of model a has a NUL character" in message
        code, message = reload({})
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert "Only ModelConfigList is currently supported" in message
        assert server.models.names() == ["a"]
