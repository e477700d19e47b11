"""The zoo is found by name, and its page agrees with the cards."""

import json
import runpy
import shutil
from pathlib import Path

import pytest

import keras_ssl as kssl
from keras_ssl import zoo

ROOT = Path(__file__).parent.parent


def card_of(accuracy):
    row = {"knn": 0.31, "knn200": 0.3, "linear": accuracy, "l2": 10.0, "validation": 0.4}
    first, last = {**row, "linear": 0.9, "selected": False}, {**row, "selected": True}
    results = {"stages": {"stage1": first, "features": last}, "fine_tuned_10": 0.625}
    return {"task": "rotation", "paper": "Gidaris et al. 2018", "results": results}


@pytest.fixture
def models(exported, tmp_path, monkeypatch):
    """Two versions of a model in the folder of the variable, and one model in saved_models/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, "CHECKOUT", tmp_path / "none")
    for folder, version in (
        ("mine/rotation_photos", 2),
        ("mine/rotation_photos", 10),
        ("saved_models/jigsaw_photos", 1),
    ):
        target = tmp_path / folder / str(version)
        shutil.copytree(exported / "1", target)
        (target / "assets.extra" / "card.json").write_text(json.dumps(card_of(version / 100)))
    monkeypatch.setenv("KERAS_SSL_ZOO", str(tmp_path / "mine"))
    return tmp_path


def test_newest_version_of_the_preferred_folder(models):
    found = zoo.models()
    assert list(found) == ["jigsaw_photos", "rotation_photos"]
    path, card = found["rotation_photos"]
    assert path == models / "mine" / "rotation_photos" / "10"
    assert card["results"]["stages"]["features"]["linear"] == 0.1
    other = models / "saved_models" / "rotation_photos" / "11"  # in a folder that comes later
    shutil.copytree(path, other)
    assert zoo.models()["rotation_photos"][0] == path
    shutil.copytree(path, path.parent / ".export-draft")
    assert zoo.models()["rotation_photos"][0] == path


def test_load_by_name(models):
    assert (
        kssl.load("rotation_photos").output_shape == kssl.load("mine/rotation_photos").output_shape
    )
    with pytest.raises(
        ValueError, match="'rotation' has no .* trained models: jigsaw_photos, rotation_photos"
    ):
        kssl.load("rotation")


def test_command(models, command, monkeypatch):
    monkeypatch.chdir(models)
    code, out, _ = command("zoo")
    assert code == 0
    row = next(line for line in out.splitlines() if line.startswith("rotation_photos"))
    assert row.split()[:2] == ["rotation_photos", "10"]
    assert "31.0" in row
    assert "10.0" in row  # of the selected stage
    assert "62.5" in row
    assert "90.0" not in row
    monkeypatch.setenv("KERAS_SSL_ZOO", str(models / "nowhere"))
    shutil.rmtree(models / "saved_models")
    code, _, error = command("zoo")
    assert code == 2
    assert error.startswith("keras-ssl: no trained models found: run this in a clone")


def test_page_agrees_with_the_cards():
    folder = ROOT / "saved_models"
    if not (folder / "untrained.json").exists():
        pytest.skip("the zoo has not been trained yet")
    draw = runpy.run_path(str(ROOT / "tools" / "draw_zoo.py"))
    untrained = list(json.loads((folder / "untrained.json").read_text()).values())
    assert draw["page"](draw["cards"](folder), untrained) == (ROOT / "docs" / "zoo.md").read_text()
