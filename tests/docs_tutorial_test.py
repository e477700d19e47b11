"""The tasks of the tutorial, docs/adding_a_task.md, train."""

import keras
import numpy as np
import pytest
from doc_pages import PAGES, blocks

import keras_ssl as kssl
from keras_ssl.data.columns import random_access


@pytest.fixture(scope="module")
def tutorial():
    names = {}
    for block in blocks(PAGES["docs/adding_a_task.md"].read_text()):
        if block.language == "python":
            exec(compile(block.text, "adding_a_task.md", "exec"), names)
    return names


@pytest.mark.parametrize("name", ["TwoRotations", "MomentumContrast", "Order"])
def test_the_tasks_of_the_tutorial_train_and_are_saved(tutorial, name, noise, tmp_path):
    images = {
        "image": noise,
        "id": np.arange(40, dtype=np.int64),
        "frames": np.stack([noise] * 3, 1),
    }
    encoder = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1, 1))
    task = tutorial[name](encoder)
    task.compile("adam")
    data = task.dataset(random_access(images), 16)
    assert np.isfinite(task.fit(data, verbose=0).history["loss"]).all()
    assert len(task.preview(*next(data.as_numpy_iterator()))) == 16
    task.save(tmp_path / "task.keras")
    copy = keras.models.load_model(tmp_path / "task.keras")
    for a, b in zip(task.weights, copy.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
