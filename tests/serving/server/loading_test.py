"""Loading of versions: failures that concern one version only, retries, and bounds on folders."""

import os
import shutil
import threading
import time
import urllib.request

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import model_pb2, prediction_log_pb2

from keras_ssl.serving.server import loading, servable
from keras_ssl.serving.server.configs import MonitoringConfig, config_of
from keras_ssl.serving.server.embedded import METRICS_PATH, Server
from keras_ssl.serving.server.loading import RETRIES
from keras_ssl.serving.server.models import Models


@pytest.fixture
def folder(counter, tmp_path):
    """A copy of the counter's versions, which a test may change."""
    shutil.copytree(counter, tmp_path / "counter")
    return tmp_path / "counter"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(loading, "FIRST_RETRY_SECONDS", 0.01)


@pytest.fixture
def failing(monkeypatch, quick):
    """`failing(path, times)`: a version that raises an OSError so often; returns its attempts."""

    def start(path, times):
        attempts = []
        load = loading.Servable

        def flaky(found, config):
            if found == path:
                attempts.append(time.monotonic())
                if len(attempts) <= times:
                    raise OSError(5, "Input/output error")
            return load(found, config)

        monkeypatch.setattr(loading, "Servable", flaky)
        return attempts

    return start


def why(models, version, name="counter"):
    """Returns the code and message that GetModelStatus reports for a version."""
    spec = model_pb2.ModelSpec(name=name)
    spec.version.value = version
    (status,) = models.status(spec).model_version_status
    return status.status.error_code, status.status.error_message


def write_variant(version):
    """Writes a model whose input is a variant, a type that NumPy does not have."""
    spec = tf.TensorSpec((), tf.variant, "handle")

    def work(handle):
        return {"y": tf.raw_ops.TensorListLength(input_handle=handle)}

    tf.saved_model.save(tf.Module(), str(version), tf.function(work, input_signature=[spec]))


def test_any_exception_concerns_one_version_only(folder, tmp_path, monkeypatch):
    write_variant(folder / "4")
    write_variant(tmp_path / "variant" / "1")
    config = config_of({"variant": tmp_path / "variant", "counter": folder})
    models = Models(config)  # at the start
    assert models.names() == ["counter"]
    assert models.versions("counter") == [3]
    assert "an input of a type that NumPy does not have" in models.why_unavailable("variant")
    load = loading.Servable

    def broken(path, options):
        if path.parts[-2:] == ("counter", "5"):
            raise RuntimeError("something new")
        return load(path, options)

    monkeypatch.setattr(loading, "Servable", broken)
    shutil.copytree(folder / "1", folder / "5")
    shutil.copytree(folder / "1", tmp_path / "variant" / "2")
    models.update()  # and while the server runs
    assert models.versions("counter") == [3]
    assert models.versions("variant") == [2]
    code, message = why(models, 5)
    assert code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert message.endswith("cannot be served: RuntimeError: something new")
    models.close()


def test_errors_of_the_file_system_are_retried_at_the_start(folder, failing):
    attempts = failing(folder / "3", times=RETRIES)
    models = Models(config_of({"counter": folder}))
    assert models.versions("counter") == [3]
    waits = np.diff(attempts)
    assert len(attempts) == RETRIES + 1
    assert all(wait >= 0.01 * 2**i for i, wait in enumerate(waits))
    models.close()


def test_errors_of_the_file_system_are_retried_by_polling(folder, failing):
    shutil.move(folder / "3", folder.parent / "3")
    models = Models(config_of({"counter": folder}))
    attempts = failing(folder / "3", times=100)
    shutil.move(folder.parent / "3", folder / "3")
    models.update()
    assert models.versions("counter") == [2]
    code, message = why(models, 3)
    assert code == grpc.StatusCode.UNAVAILABLE.value[0]
    assert message == "[Errno 5] Input/output error (retry 1 of 5 in 0.01 s)"
    end = time.monotonic() + 2
    while time.monotonic() < end:
        models.update()
        time.sleep(0.01)
    assert len(attempts) == RETRIES + 1
    assert why(models, 3)[1] == "[Errno 5] Input/output error (after 5 retries)"
    attempts.extend([0] * 100)  # the disk is back
    (folder / "3" / "saved_model.pb").touch()
    models.update()
    assert models.versions("counter") == [3]
    models.close()


def test_files_that_cannot_be_read_now_are_retried(folder, monkeypatch):
    monkeypatch.setattr(loading, "FIRST_RETRY_SECONDS", 0.2)
    graph = folder / "3" / "saved_model.pb"
    graph.rename(folder / "graph")
    graph.symlink_to(graph)  # ELOOP, also for root

    # One step: between an unlink and a rename the file would be missing, which is not retried.
    timer = threading.Timer(0.3, (folder / "graph").replace, [graph])
    timer.start()
    models = Models(config_of({"counter": folder}))
    assert models.versions("counter") == [3]
    models.close()


def test_links_in_a_circle_do_not_delay_the_start(folder, failing):
    """They are no passing error, as a graph that cannot be read now may be."""
    attempts = failing(folder / "3", times=0)
    (folder / "3" / "loop").symlink_to("loop")
    (folder / "3" / "there").symlink_to("back")
    (folder / "3" / "back").symlink_to("there")
    models = Models(config_of({"counter": folder}))
    assert models.versions("counter") == [3]
    assert len(attempts) == 1
    models.close()


def test_attempts_to_load_are_on_the_metrics_page(folder, failing):
    """By the name and the labels of TensorFlow Serving, so that an alert on failures works with both."""
    (folder / "4").mkdir()
    failing(folder / "3", times=2)
    monitoring = MonitoringConfig()
    monitoring.prometheus_config.enable = True
    with Server(folder, rest_port=0, monitoring=monitoring, poll_seconds=0) as server:
        url = f"http://localhost:{server.rest_port}{METRICS_PATH}"
        with urllib.request.urlopen(url) as response:
            page = response.read().decode()
    name = ":tensorflow:cc:saved_model:load_attempt_count"
    found = {line for line in page.splitlines() if name in line and not line.startswith("# HELP")}
    assert found == {
        f"# TYPE {name} counter",
        f'{name}{{model_path="{folder}/4",status="fail"}} 1.0',
        f'{name}{{model_path="{folder}/3",status="fail"}} 2.0',
        f'{name}{{model_path="{folder}/3",status="success"}} 1.0',
        f'{name}{{model_path="{folder}/2",status="success"}} 1.0',
    }


@pytest.mark.parametrize(
    ("error", "kind"),
    [(OSError(116, "Stale file handle"), OSError), (PermissionError(13, "denied"), OSError),
     (tf.errors.ResourceExhaustedError(None, None, "Too many open files"), OSError),
     (tf.errors.UnknownError(None, None, "Input/output error"), OSError),
     (FileNotFoundError(2, "gone"), ValueError), (OSError("cannot parse file"), ValueError),
     (tf.errors.DataLossError(None, None, "bad block"), ValueError)],
)  # fmt: skip
def test_which_errors_may_pass(counter, monkeypatch, error, kind):
    def load(*_):
        raise error

    monkeypatch.setattr(tf.compat.v1.saved_model, "load", load)
    with pytest.raises(kind, match="has no SavedModel that can be loaded"):
        servable.Servable(counter / "1")


def test_warm_up_skips_other_requests_than_predict(folder, predict_request, write_warmup, caplog):
    caplog.set_level("INFO", "keras_ssl.serving")
    logs = [prediction_log_pb2.PredictionLog() for _ in range(4)]
    logs[0].classify_log.request.model_spec.name = "counter"
    logs[1].regress_log.request.model_spec.signature_name = "none"
    logs[2].multi_inference_log.SetInParent()
    logs[3].session_run_log.SetInParent()
    write_warmup(folder / "3", *logs, predict_request("counter", x=[[1.0]]))
    models = Models(config_of({"counter": folder}))
    assert models.versions("counter") == [3]
    assert "4 records are not of Predict: skipped" in caplog.text
    models.close()


def test_warm_up_has_a_bound(folder, predict_request, write_warmup):
    write_warmup(folder / "3", *[predict_request("counter", x=[[1.0]])] * 1001)
    models = Models(config_of({"counter": folder}))
    assert models.versions("counter") == [2]
    assert "more than 1000 records" in why(models, 3)[1]
    models.close()


def test_folders_that_are_no_versions(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "MAX_FILES", 50)
    os.mkfifo(folder / "3" / "pipe")  # reading it would wait for ever
    (folder / "4").symlink_to("/")  # all files of this machine
    (folder / "5").symlink_to(folder / "5")
    (folder / "6").symlink_to(tmp_path / "nowhere")
    (folder / ("9" * 200)).mkdir()
    (folder / "\u0667").mkdir()  # a digit to Python, but not to TensorFlow Serving
    (folder / "7").write_text("a file")
    (folder / "8").mkdir()
    (folder / "8" / "loop").symlink_to(folder / "8")
    models = Models(config_of({"counter": folder}))
    assert models.versions("counter") == [2]
    assert "'pipe', which is neither a file nor a folder" in why(models, 3)[1]
    assert why(models, 4)[1].startswith(f"path '{folder}/4' ")
    reasons = models.why_unavailable("counter")
    assert "has more than 50 files" in reasons or "neither a file nor a folder" in reasons
    models.close()


def test_links_to_versions_are_served(counter, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "7").symlink_to(counter / "2")
    models = Models(config_of({"linked": tmp_path / "linked"}))
    assert models.versions("linked") == [7]
    models.close()


def test_only_some_versions_that_fail_are_tried(folder):
    for version in range(100, 200):
        (folder / str(version)).mkdir()
    models = Models(config_of({"counter": folder}))
    assert models.names() == []
    tried = models.status(model_pb2.ModelSpec(name="counter")).model_version_status
    assert [status.version for status in tried] == list(range(199, 199 - 17, -1))
    models.close()


def test_a_folder_that_has_gone_and_one_that_is_empty(folder, caplog):
    models = Models(config_of({"counter": folder}))
    folder.rename(folder.parent / "elsewhere")
    for _ in range(3):
        models.update()
    assert models.versions("counter") == [3]
    assert caplog.text.count("its loaded versions stay") == 1
    folder.mkdir()  # without a version: TensorFlow Serving unloads
    models.update()
    assert models.names() == []
    folder.rmdir()
    (folder.parent / "elsewhere").rename(folder)
    models.update()
    assert models.versions("counter") == [3]
    models.close()


def test_closing_does_not_wait_for_a_load(folder, sleeper, write_warmup, predict_request):
    models = Models(config_of({"counter": folder}))
    shutil.copytree(sleeper, folder / "9")
    write_warmup(folder / "9", predict_request("counter", x=[[8.0]]))
    thread = threading.Thread(target=models.update)
    thread.start()
    spec = model_pb2.ModelSpec(name="counter")
    while models.status(spec).model_version_status[0].version != 9:  # LOADING
        time.sleep(0.01)
    start = time.monotonic()
    models.close()
    assert time.monotonic() - start < 6
    assert models.names() == []
    thread.join()
    assert models.names() == []  # what was being loaded is discarded
