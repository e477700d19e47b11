"""The code in docs/adding_a_task.md: it runs, and what it defines are tasks that train."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_ssl as kssl
from keras_ssl.data.columns import random_access

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def page():
    names = {}
    for code in re.findall(
        r"```python\n(.*?)```", (DOCS / "adding_a_task.md").read_text(), re.DOTALL
    ):
        exec(compile(code, "adding_a_task.md", "exec"), names)
    return names


@pytest.mark.parametrize("name", ["TwoRotations", "MomentumContrast", "Order"])
def test_the_tasks_of_the_tutorial_train_and_are_saved(page, name, noise, tmp_path):
    images = {
        "image": noise,
        "id": np.arange(40, dtype=np.int64),
        "frames": np.stack([noise] * 3, 1),
    }
    encoder = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1, 1))
    task = page[name](encoder)
    task.compile("adam")
    data = task.dataset(random_access(images), 16)
    assert np.isfinite(task.fit(data, verbose=0).history["loss"]).all()
    assert len(task.preview(*next(data.as_numpy_iterator()))) == 16
    task.save(tmp_path / "task.keras")
    copy = keras.models.load_model(tmp_path / "task.keras")
    for a, b in zip(task.weights, copy.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
