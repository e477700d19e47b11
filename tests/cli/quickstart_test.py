"""The quickstart fails if one of its steps fails; .ci/run checks that it succeeds."""

import numpy as np
import pytest

import keras_ssl as kssl
from keras_ssl.cli import quickstart

GOOD = {"knn": 0.9, "knn_untrained": 0.8, "linear": 0.9, "linear_untrained": 0.8}


@pytest.fixture
def short(monkeypatch):
    """One epoch, and results that the tests choose."""

    def choose(row=GOOD, tuned=0.9, served=0.0):
        monkeypatch.setattr(quickstart, "EPOCHS", 1)
        few = {
            name: kssl.data.subset(kssl.data.digits(name), range(80)) for name in ("train", "test")
        }
        monkeypatch.setattr(kssl.data, "digits", few.get)
        monkeypatch.setattr(quickstart, "_fine_tune", lambda *_: (tuned, 0.8))
        results = {"chance": 0.1, "stage1": row}
        monkeypatch.setattr(kssl.evaluation, "compare", lambda *_, **__: results)
        features = kssl.FeatureClient.features
        monkeypatch.setattr(kssl.FeatureClient, "features", lambda *a: features(*a) + served)

    return choose


def test_all_steps_succeed(short, tmp_path, capsys):
    short()
    quickstart.run(tmp_path)
    assert (tmp_path / "quickstart.png").stat().st_size > 10_000
    out = capsys.readouterr().out
    assert "next: keras-ssl serve" in out
    features = kssl.load(tmp_path / "saved_models" / "rotation_digits")(np.zeros((1, 32, 32, 3)))
    assert features.shape == (1, 64)


def test_names_every_step_that_fails(short, tmp_path):
    short({**GOOD, "knn": 0.8, "linear": 0.7}, tuned=0.8, served=np.float32(1e-3))
    words = (
        "served features differ; kNN does not beat the untrained encoder; "
        "the linear probe does not beat the untrained encoder; fine-tuning does not beat training"
    )
    with pytest.raises(RuntimeError, match=f"quickstart failed: .*{words}"):
        quickstart.run(tmp_path)


def test_refuses_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        quickstart.run(tmp_path / "nowhere")
