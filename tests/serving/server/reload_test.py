"""Reloads of a model that has a loaded version already."""

import shutil

import numpy as np
import pytest
from tensorflow_serving.apis import model_pb2

from keras_ssl.serving.server.configs import config_of
from keras_ssl.serving.server.errors import StatusError
from keras_ssl.serving.server.models import Models

SPEC = model_pb2.ModelSpec(name="counter")


@pytest.fixture
def models(counter):
    """Models with version 3 of the counter."""
    loaded = Models(config_of({"counter": counter}))
    yield loaded
    loaded.close()


def added(models):
    """Runs the newest version, and returns what it adds, which is the version it was written as."""
    with models.lease(SPEC) as (_, servable):
        return servable.run({"x": np.zeros((1, 1), np.float32)})["y"].item()


def specific(folder, *versions):
    config = config_of({"counter": folder})
    config.model_config_list.config[0].model_version_policy.specific.versions.extend(versions)
    return config


def test_a_version_with_the_same_number_is_not_loaded_again(models, counter, tmp_path):
    """As in TensorFlow Serving, which has loaded a version when one with its name and number is loaded."""
    shutil.copytree(counter / "1", tmp_path / "m" / "3")
    models.reload(config_of({"counter": tmp_path / "m"}))
    assert added(models) == 3
    shutil.copytree(counter / "2", tmp_path / "m" / "4")
    models.update()
    assert models.versions("counter") == [4]
    assert added(models) == 2


@pytest.mark.parametrize("name", ["nowhere", "damaged"])
def test_the_old_version_stays_if_the_new_folder_has_none_that_loads(models, tmp_path, name):
    (tmp_path / "damaged" / "9").mkdir(parents=True)
    models.reload(config_of({"counter": tmp_path / name}))
    assert models.versions("counter") == [3]
    if name == "damaged":
        newest = models.status(SPEC).model_version_status[0]
        assert (newest.version, newest.state) == (9, newest.END)
        assert "has no SavedModel" in newest.status.error_message


def test_a_policy_of_versions_that_do_not_exist_unloads_all(models, counter):
    """As in TensorFlow Serving without --servable_versions_always_present."""
    models.reload(specific(counter, 1, 99))
    assert models.versions("counter") == [1]
    models.reload(specific(counter, 99))
    with pytest.raises(StatusError, match=r"Latest\(counter\)"):
        added(models)
