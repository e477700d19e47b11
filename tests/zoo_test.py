"""The zoo is found by name, and its page agrees with the cards."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

import keras_ssl as kssl
from keras_ssl import zoo
from keras_ssl.data.renderer.render import CLASSES

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


@pytest.fixture
def tool(monkeypatch):
    """Runs a file of tools/, and returns its names."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    return lambda name: runpy.run_path(str(ROOT / "tools" / name))


def test_every_task_has_arguments_for_the_zoo(tool):
    # CIFAR-10 has images, labels and, beside rendered ones, real images.
    others = {"depth", "frames", "moving", "relative_depth"}
    possible = {row.name for row in kssl.tasks.TASKS if others.isdisjoint(row.task.needs)}
    known = set(tool("build_zoo.py")["TASKS"])
    assert known == possible | {"synthetic_multitask"}, "mend TASKS of tools/build_zoo.py"


@pytest.mark.parametrize(
    ("task", "shape", "views"),
    [
        ("Rotation", (8, 4, 32, 32, 3), 4),
        ("Jigsaw", (8, 4, 16, 16, 3), 1),
        ("Colorization", (8, 32, 64, 3), 2),
        ("DeepCluster", (8, 32, 32, 3), 4 / 3),  # each epoch's relabeling: the forward third
        ("SiftClusters", (8, 32, 32, 3), 1),  # clusters descriptors
    ],
)
def test_views_of_an_image(tool, task, shape, views):
    encoder = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,))
    arguments = {"num_images": 10} if "Cluster" in task else {}
    task = getattr(kssl.tasks, task)(encoder, **arguments)
    assert tool("build_zoo.py")["views_per_image"](task, np.zeros(shape)) == pytest.approx(views)


def test_page_of_cards(tool):
    """The stage in bold is the selected one, and its gain is that over the mean of the seeds."""
    row = {"knn": 0.3, "l2": 1.0, "selected": False}
    stages = {f"stage{k}": {**row, "linear": k / 10} for k in range(1, 5)}
    stages["features"] = {**stages["stage4"], "linear": 0.4}
    others = {
        "fine_tuned_10": 0.6,
        "effective_rank": 12.34,
        "alignment": 0.1236,
        "uniformity": -2.5,
    }
    results = [
        {**others, "stages": {**stages, name: {**stages[name], "selected": True}}}
        for name in ("stage3", "stage1", "stage2")
    ]
    card = {
        "results": results[0], "pretext": {"accuracy": 0.875}, "views_per_second": 1234, "minutes": 8.8,
        "machine": "2 cores, avx2", "views": 600_000,
    }  # fmt: skip
    local = {
        **card,
        "encoder": "local_resnet, width 64",
        "untrained": [0.2, 0.24],
        "views": 200_000,
    }
    text = tool("draw_zoo.py")["page"]({"jigsaw": card, "amdim": local}, results[1:])
    assert "| `jigsaw` | 10.0 | 20.0 | **30.0** | 40.0 | +15.0 | 30.0 | 60.0 |" in text
    assert "| `jigsaw` | accuracy 87.5 | 12.3 | 0.124 | -2.50 | 1,234 | 9 |" in text
    assert "`amdim`: local_resnet, width 64, untrained 22.0" in text
    assert "| `amdim` | 10.0 | 20.0 | **30.0** | 40.0 | +8.0 | 30.0 | 60.0 |" in text
    assert "2 seeds, whose best stages have 10.0 and 20.0" in text
    assert "a view. Less was spent on `amdim` (200,000 views).\n" in text
    assert "Not trained yet: `rotation`," in text


def test_page_agrees_with_the_cards(tool):
    folder = ROOT / "saved_models"
    if not (folder / "untrained.json").exists():
        pytest.skip("the zoo has not been trained yet")
    draw = tool("draw_zoo.py")
    untrained = list(json.loads((folder / "untrained.json").read_text()).values())
    assert draw["page"](draw["cards"](folder), untrained) == (ROOT / "docs" / "zoo.md").read_text()


def test_labels_of_a_scene(tool):
    """Instance 2 is the largest, 3 the nearest, 4 has too few pixels to count."""
    instances = np.repeat([0, 1, 2, 3, 4], [6, 4, 7, 5, 3])
    kinds = np.repeat(["ground", "box", "cone", "sphere", "box"], [6, 4, 7, 5, 3])
    row = {
        "instances": instances.reshape(5, 5, 1),
        "classes": np.array([CLASSES.index(kind) for kind in kinds]).reshape(5, 5, 1),
        "depth": np.repeat([9, 5, 4, 3, 2], [6, 4, 7, 5, 3]).reshape(5, 5, 1),
    }
    label = tool("build_scenes.py")["label"]
    assert label(row) == {"largest": "cone", "nearest": "sphere", "number": 3}
    row["instances"][:] = 0
    assert label(row) == {"largest": None, "nearest": None, "number": 0}
