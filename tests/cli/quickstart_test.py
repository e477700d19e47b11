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


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            {"row": {**GOOD, "knn": 0.8, "linear": 0.7}, "tuned": 0.8},
            "kNN does not beat .* linear probe does not .* fine-tuning does not beat",
        ),
        ({"served": np.float32(1e-3)}, "served features differ$"),
    ],
)
def test_fails_where_a_step_does(short, tmp_path, wrong, words):
    short(**wrong)
    with pytest.raises(RuntimeError, match=f"quickstart failed: .*{words}"):
        quickstart.run(tmp_path)


def test_refuses_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        quickstart.run(tmp_path / "nowhere")
