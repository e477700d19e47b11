"""Loading, unloading and failing of versions while others serve."""

import shutil
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
    prediction_log_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

import keras_ssl as kssl
from keras_ssl.serving.server.configs import config_of
from keras_ssl.serving.server.errors import StatusError
from keras_ssl.serving.server.models import Models
from keras_ssl.serving.server.servable import WARMUP

AVAILABLE, END = (
    get_model_status_pb2.ModelVersionStatus.AVAILABLE,
    get_model_status_pb2.ModelVersionStatus.END,
)


@pytest.fixture
def folder(counter, tmp_path):
    """A copy of the counter's versions, which a test may change."""
    shutil.copytree(counter, tmp_path / "counter")
    return tmp_path / "counter"


def spec(version=None, label=""):
    message = model_pb2.ModelSpec(name="counter", version_label=label)
    if version is not None:
        message.version.value = version
    return message


def predict(models, **choice):
    """Runs the version that a ModelSpec selects, checks the result, and returns the version."""
    with models.lease(spec(**choice)) as (version, servable):
        y = servable.run({"x": np.array([[10.0]], np.float32)})["y"]
        assert y[0, 0] == 10 + version
        return version


def states(models):
    return {
        s.version: (s.state, s.status.error_message)
        for s in models.status(spec()).model_version_status
    }


def configured(folder, labels=None, **policy):
    config = config_of({"counter": folder})
    model = config.model_config_list.config[0]
    if "latest" in policy:
        model.model_version_policy.latest.num_versions = policy["latest"]
    if "all" in policy:
        model.model_version_policy.all.SetInParent()
    if "specific" in policy:
        model.model_version_policy.specific.versions.extend(policy["specific"])
    for label, version in (labels or {}).items():
        model.version_labels[label] = version
    return config


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ({}, [3]),
        ({"latest": 2}, [2, 3]),
        ({"all": True}, [1, 2, 3]),
        ({"specific": [1, 3]}, [1, 3]),
    ],
)
def test_version_policies(counter, policy, served):
    models = Models(configured(counter, **policy))
    assert models.versions("counter") == served
    assert [predict(models, version=v) for v in served] == served
    assert predict(models) == max(served)
    assert [v for v, (state, _) in states(models).items() if state == AVAILABLE] == served[::-1]
    models.close()


def test_a_new_version_replaces_the_old_one_which_finishes_its_requests(folder):
    shutil.move(folder / "3", folder.parent / "3")
    models = Models(configured(folder))
    with models.lease(spec()) as (version, old):
        assert version == 2
        shutil.move(folder.parent / "3", folder / "3")
        models.update()
        assert predict(models) == 3
        assert states(models)[2] == (END, "")
        # It is closed after its last request and not before.
        assert old.run({"x": np.zeros((1, 1), np.float32)})["y"] == 2
    with pytest.raises(tf.errors.CancelledError, match="closed"):
        old.run({"x": np.zeros((1, 1), np.float32)})
    with pytest.raises(
        StatusError, match=r"Servable not found for request: Specific\(counter, 2\)"
    ):
        predict(models, version=2)
    models.close()


def damage(version, kind):
    data = version / "variables" / "variables.data-00000-of-00001"
    graph = version / "saved_model.pb"
    if kind == "no graph":
        graph.unlink()
    elif kind == "truncated graph":
        graph.write_bytes(graph.read_bytes()[: graph.stat().st_size // 2])
    elif kind == "truncated variables":
        data.write_bytes(data.read_bytes()[:2])
    elif kind == "missing index":
        (version / "variables" / "variables.index").unlink()
    elif kind == "flipped byte":
        content = bytearray(data.read_bytes())
        content[1] ^= 255
        data.write_bytes(bytes(content))
    elif kind == "no variables":
        shutil.rmtree(version / "variables")
    elif kind == "failing warm-up":
        request = predict_pb2.PredictRequest()
        request.inputs["x"].CopyFrom(tf.make_tensor_proto([[-1.0]]))
        record = prediction_log_pb2.PredictionLog()
        record.predict_log.request.CopyFrom(request)
        (version / "assets.extra").mkdir()
        with tf.io.TFRecordWriter(str(version / "assets.extra" / WARMUP)) as writer:
            writer.write(record.SerializeToString())
    elif kind == "damaged warm-up":
        (version / "assets.extra").mkdir()
        (version / "assets.extra" / WARMUP).write_bytes(b"these are no records")


DAMAGES = [
    "no graph", "truncated graph", "truncated variables", "missing index", "flipped byte",
    "no variables", "failing warm-up", "damaged warm-up",
]  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_version_is_skipped_and_its_status_has_the_reason(folder, counter, kind):
    damage(folder / "3", kind)
    models = Models(configured(folder))  # at start-up
    assert predict(models) == 2
    state, message = states(models)[3]
    assert state == END
    assert "has no SavedModel that can be loaded" in message or "warm-up" in message
    # When its files change it is tried again.
    shutil.rmtree(folder / "3")
    shutil.copytree(counter / "3", folder / "3")
    models.update()
    assert predict(models) == 3
    assert states(models)[3] == (AVAILABLE, "")
    models.close()


def test_a_new_version_that_is_damaged_does_not_replace_the_old_one(folder):
    shutil.move(folder / "3", folder.parent / "3")
    models = Models(configured(folder))
    damage(folder.parent / "3", "truncated variables")
    shutil.move(folder.parent / "3", folder / "3")
    models.update()
    assert predict(models) == 2
    assert states(models)[3][0] == END
    models.close()


def test_a_changed_byte_in_an_export_is_detected(exported, tmp_path):
    """TensorFlow alone loads a graph with a changed byte, and computes nonsense."""
    shutil.copytree(exported, tmp_path / "m")
    names = ("saved_model.pb", "assets.extra/encoder.json", "variables/variables.index")
    for version, name in enumerate(names, 2):
        shutil.copytree(exported / "1", tmp_path / "m" / str(version))
        file = tmp_path / "m" / str(version) / name
        content = bytearray(file.read_bytes())
        content[len(content) // 3] ^= 1
        file.write_bytes(bytes(content))
    models = Models(config_of({"m": tmp_path / "m"}))
    assert models.versions("m") == [1]
    for name in names:
        assert f"{name} differs from what was exported" in models.why_unavailable("m")
    models.close()


def test_versions_are_kept_while_their_folder_is_missing(folder):
    models = Models(configured(folder))
    folder.rename(folder.parent / "elsewhere")
    models.update()
    assert predict(models) == 3
    models.close()


def test_labels(counter):
    models = Models(configured(counter, all=True, labels={"stable": 1}))
    assert predict(models, label="stable") == 1
    with pytest.raises(StatusError, match="Unrecognized servable version label: canary"):
        predict(models, label="canary")
    models.reload(configured(counter, all=True, labels={"stable": 2, "canary": 3}))
    assert (predict(models, label="stable"), predict(models, label="canary")) == (2, 3)
    with pytest.raises(
        StatusError, match="assign label to version 7 of model counter, which"
    ) as error:
        models.reload(configured(counter, latest=1, labels={"stable": 7}))
    assert error.value.code == grpc.StatusCode.FAILED_PRECONDITION
    assert models.versions("counter") == [1, 2, 3]  # the rejected config changes nothing
    assert predict(models, label="stable") == 2
    models.close()


def test_labels_move_to_available_versions_only(counter):
    """A config that both adds a version and labels it is rejected, as by TensorFlow Serving."""
    models = Models(configured(counter, specific=[1], labels={"stable": 1}))
    both = configured(counter, specific=[1, 2], labels={"stable": 2})
    with pytest.raises(StatusError, match="not currently available"):
        models.reload(both)
    models.reload(configured(counter, specific=[1, 2], labels={"stable": 1}))
    models.reload(both)
    assert predict(models, label="stable") == 2
    models.close()
    with pytest.raises(ValueError, match="assign label to version 9 of model counter"):
        Models(configured(counter, labels={"stable": 9}))
    lenient = Models(configured(counter, specific=[1]), any_labels=True)
    lenient.reload(configured(counter, specific=[1, 2], labels={"new": 2}))
    assert predict(lenient, label="new") == 2
    lenient.close()


def test_reload_adds_and_removes_models(counter):
    models = Models(configured(counter))
    models.reload(config_of({"other": counter}))
    assert models.names() == ["other"]
    with pytest.raises(StatusError, match=r"Latest\(counter\)"):
        predict(models)
    with pytest.raises(StatusError, match="1 model.* did not become available: empty: no version"):
        models.reload(config_of({"other": counter, "empty": counter.parent}))
    assert models.names() == ["other"]
    models.close()


def invalid_configs(counter):
    twice = config_of({"counter": counter})
    twice.model_config_list.config.add().CopyFrom(twice.model_config_list.config[0])
    nameless = config_of({"": counter})
    other = config_of({"counter": counter})
    other.model_config_list.config[0].model_platform = "pytorch"
    custom = model_server_config_pb2.ModelServerConfig()
    custom.custom_model_config.SetInParent()
    return [
        (twice, "Illegal to list model counter multiple times"),
        (config_of({"counter": "relative/path"}), "absolute path or URI; got base_path"),
        (config_of({"counter": f"{counter}\0"}), "of model counter has a NUL character: remove it"),
        (nameless, "needs a name"),
        (other, "unsupported platform pytorch"),
        (custom, "Only ModelConfigList is currently supported"),
    ]


def test_invalid_configs_are_rejected_and_change_nothing(counter):
    models = Models(configured(counter))
    for config, message in invalid_configs(counter):
        with pytest.raises(StatusError, match=message) as error:
            models.reload(config)
        assert error.value.code == grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(ValueError, match=message):
            Models(config)
    assert predict(models) == 3
    models.close()


def test_the_server_polls_its_folder_and_its_config_file(counter, tmp_path):
    (tmp_path / "models").mkdir()
    shutil.copytree(counter / "1", tmp_path / "models" / "a" / "1")
    file = tmp_path / "models.config"
    file.write_text(str(config_of({"a": tmp_path / "models" / "a"})))
    follow = {"poll_seconds": 0.1, "port": 0}
    with (
        kssl.serving.Server(tmp_path / "models", **follow) as by_folder,
        kssl.serving.Server(config=file, config_poll_seconds=0.1, **follow) as by_file,
        kssl.serving.Server(config=file, **follow) as by_file_once,
    ):
        shutil.copytree(counter / "2", tmp_path / "models" / "a" / "2")
        shutil.copytree(counter / "3", tmp_path / "models" / "b" / "3")
        file.write_text("no config")  # invalid: the old one stays
        time.sleep(0.5)
        file.write_text(str(config_of({"c": tmp_path / "models" / "a"})))
        end = time.monotonic() + 30
        while by_folder.models.names() != ["a", "b"] or by_file.models.names() != ["c"]:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert by_folder.models.versions("a") == [2]
        assert by_folder.models.versions("b") == [3]
        assert by_file_once.models.names() == ["a"]
