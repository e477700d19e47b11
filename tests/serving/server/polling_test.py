"""Polling of the configuration: the file is reapplied, as by TensorFlow Serving."""

import os
import shutil
import time

import pytest

from keras_ssl.serving.server import polling
from keras_ssl.serving.server.configs import config_of
from keras_ssl.serving.server.models import Models
from keras_ssl.serving.server.polling import ConfigSource, Poller


@pytest.fixture
def start():
    """`start(source)`: polls a source; returns Models, which are closed at the end."""
    started = []

    def begin(source, seconds=0.05):
        models = Models(source.read())
        poller = Poller(models, source, seconds, seconds)
        poller.start()
        started.append((models, poller))
        return models

    yield begin
    for models, poller in started:
        poller.stop()
        assert poller.join(10)
        models.close()


def wait(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_file_replaces_what_a_request_has_changed(root, tmp_path, start):
    file = tmp_path / "models.config"
    file.write_text(str(config_of({"a": root / "a"})))
    models = start(ConfigSource(None, file), 0.5)
    models.reload(config_of({"b": root / "b"}))
    assert models.names() == ["b"]
    wait(lambda: models.names() == ["a"])


def test_a_file_is_applied_as_far_as_possible(root, tmp_path, start, caplog):
    (root / "broken" / "1").mkdir(parents=True)
    file = tmp_path / "models.config"
    file.write_text(str(config_of({"a": root / "a"})))
    models = start(ConfigSource(None, file))
    new = tmp_path / "new.config"
    new.write_text(str(config_of({"b": root / "b", "broken": root / "broken"})))
    new.rename(file)
    wait(lambda: models.names() == ["b"])
    time.sleep(0.3)
    assert caplog.text.count("1 model(s) did not become available: broken") == 1
    file.write_text("")  # TensorFlow Serving: "Taking no action for empty config"
    time.sleep(0.3)
    assert models.names() == ["b"]
    assert caplog.text.count("the models could not be updated: ServerModelConfig type") == 1


def test_a_model_of_a_folder_stays_when_its_folder_has_gone(root, start):
    models = start(ConfigSource(root, None))
    models.reload(config_of({"a": root / "a"}))  # the folder changes this at its next change only
    time.sleep(0.3)
    assert models.names() == ["a"]
    shutil.copytree(root / "a", root / "c")
    wait(lambda: models.names() == ["a", "b", "c"])
    (root / "a").rename(root.parent / "a")
    time.sleep(0.3)
    assert models.names() == ["a", "b", "c"]
    shutil.rmtree(root / "b" / "1")
    wait(lambda: models.names() == ["a", "c"])
    root.rename(root.parent / "elsewhere")
    time.sleep(0.3)
    assert models.names() == ["a", "c"]


def test_a_folder_of_many_entries_is_read_a_tenth_of_the_time(root, start, monkeypatch):
    for i in range(1000):
        os.mkdir(root / f"empty{i}")
    readings = []
    models_in = polling.models_in

    def slow(directory):
        if directory == root:  # not those of the server that all tests share
            readings.append(time.monotonic())
            time.sleep(0.05)
        return models_in(directory)

    monkeypatch.setattr(polling, "models_in", slow)
    models = start(ConfigSource(root, None), 0.01)
    assert models.names() == ["a", "b"]
    time.sleep(2)
    assert 2 <= len(readings) <= 6
