"""Arguments of the embedded server, which models it serves, and its ports."""

import shutil
import sys

import pytest

from keras_ssl import serving


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({}, "give either directory or config"), ({"directory": "x", "config": "y"}, "give either"),
     ({"directory": "x", "port": None}, "nothing to listen on"),
     ({"directory": "x", "limit": 0}, "limit must be at least 1, got 0"),
     ({"directory": "x", "max_rows": 0}, "max_rows must be at least 1, got 0"),
     ({"directory": "x", "rest_timeout": 0}, "rest_timeout must be"),
     ({"directory": "x", "reload": "on"}, "reload must be one of off, socket, all, got 'on'"),
     ({"directory": "x", "reload": "socket"}, "set socket_path, too"),
     ({"directory": "x", "rest_max_request_bytes": 0}, "rest_max_request_bytes must be in 1"),
     ({"directory": "x", "rest_max_connections_per_client": -1}, "0 for half of all connections")],
)  # fmt: skip
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        serving.Server(**arguments)


def test_no_model_that_can_be_loaded(tmp_path):
    (tmp_path / "broken" / "1").mkdir(parents=True)
    message = "no model can be loaded: broken: path .* has no SavedModel"
    with pytest.raises(ValueError, match=message):
        serving.Server(tmp_path)


def test_ports_and_folders_that_cannot_be_used(server, counter, tmp_path):
    with pytest.raises(ValueError, match=f"port {server.port} .* cannot be bound"):
        serving.Server(counter, port=server.port)
    with pytest.raises(ValueError, match=f"rest_port {server.rest_port} .* cannot be bound"):
        serving.Server(counter, rest_port=server.rest_port)
    with pytest.raises(ValueError, match="no folder"):
        serving.models_in(tmp_path / "none")
    with pytest.raises(ValueError, match="no model"):
        serving.models_in(tmp_path)


def test_the_newest_version_of_each_model_is_served(counter, tmp_path):
    for name, version in (("a", "2"), ("a", "10"), ("b", "1")):
        shutil.copytree(counter / "1", tmp_path / name / version)
    (tmp_path / "a" / ".export-x").mkdir()
    assert list(serving.models_in(tmp_path)) == ["a", "b"]
    assert list(serving.models_in(tmp_path / "a")) == ["a"]
    with serving.Server(tmp_path) as server:
        served = {name: server.models.versions(name) for name in server.models.names()}
    assert served == {"a": [10], "b": [1]}


def test_threads_take_short_turns(counter):
    """A thread that works in Python would hold up all others for 5 ms each time that they wait for it."""
    usual = sys.getswitchinterval()
    try:
        for interval, kept in ((0.005, 0.0005), (0.00025, 0.00025)):
            sys.setswitchinterval(interval)
            with serving.Server(counter):
                assert sys.getswitchinterval() == pytest.approx(kept, abs=1e-6)
            assert sys.getswitchinterval() == pytest.approx(interval, abs=1e-6)
    finally:
        sys.setswitchinterval(usual)
