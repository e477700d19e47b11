import json
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_ssl as kssl
from keras_ssl.cli import pretrain

SMALL = ("--width", 2, "--blocks", "1", "--size", 16, "--batch-size", 10)


@pytest.fixture
def checked(monkeypatch):
    """List of the options that pass the checks, instead of training."""
    passed = []
    monkeypatch.setattr(pretrain, "run", passed.append)
    return passed


def parsed(*arguments):
    context = pretrain.pretrain.make_context("pretrain", list(map(str, arguments)))
    return types.SimpleNamespace(**context.params)


@pytest.mark.parametrize(
    "task",
    [
        "relative_patch", "jigsaw", "jigsaw_plus", "exemplar", "exemplar_triplet", "colorization",
        "inpainting", "super_resolution", "gan",
    ],
)  # fmt: skip
def test_trains_on_images_of_all_sizes(command, tmp_path, task):
    rng = np.random.default_rng(0)
    (tmp_path / "album").mkdir()
    for i, size in enumerate([(96, 96), (40, 300), (301, 77), (7, 9), (200, 100), (1, 1)]):
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "album" / f"{i}.png")
    gray = Image.fromarray(rng.integers(0, 256, (50, 60), np.uint8))
    gray.save(tmp_path / "album" / "gray.png")
    Image.new("RGB", (64, 64), "white").save(tmp_path / "album" / "white.png")
    few = ("--set", "num_permutations=10") if task.startswith("jigsaw") else ()
    code, out, err = command(
        "pretrain", task, "--data", "album", "--size", 96, "--width", 2, "--blocks", "1", "--stem",
        "imagenet", "--epochs", 2, "--batch-size", 3, *few,
    )  # fmt: skip
    assert code == 0, err
    assert f"wrote {task}_album.keras" in out
    assert "nan" not in out
    assert command("preview", task, "--data", "album", "--size", 96, *few)[0] == 0


def test_clustering_tasks_from_folders(command, photos, tmp_path):
    clusters = ("--set", "num_clusters=4", "--set", "num_heads=2")
    code, out, _ = command(
        "pretrain", "self_label", "--data", photos, *SMALL, "--epochs", 2, *clusters, "--sobel"
    )
    assert code == 0, out
    assert "nmi" in out
    task = keras.models.load_model("self_label_photos.keras")
    assert task.labels.shape == (2, 20)
    assert command("export", "self_label_photos.keras", "models/self_label")[0] == 0
    assert kssl.load("models/self_label").output_shape == (None, 2)

    pages = tmp_path / "pages"
    pages.mkdir()
    for writer in ("ann", "bob"):
        page = np.full((120, 120, 3), 255, np.uint8)
        for y in range(10, 110, 20):
            page[y : y + 8, 10 : 10 + y] = 0
        Image.fromarray(page).save(pages / f"{writer}_0.png")
    assert command("preview", "sift_clusters", "--data", pages, "--number", 3)[0] == 0
    few = ("--set", "num_clusters=2", "--set", "ratio=0.5")
    small = ("--width", 2, "--blocks", "1", "--epochs", 1, *few)
    code, out, err = command("pretrain", "sift_clusters", "--data", pages, *small)
    assert code == 0, err
    labels = keras.models.load_model("sift_clusters_pages.keras").labels.numpy()
    assert 0 < (labels >= 0).sum() < len(labels)  # patches between two clusters are left out
    assert f"{(labels >= 0).sum()} images" in out


def test_errors_of_clustering_tasks_are_one_line(command, photos, tmp_path):
    many = ("--set", "num_clusters=50")
    code, _, err = command("pretrain", "deep_cluster", "--data", photos, "--size", 16, *many)
    assert code == 2
    assert "num_clusters must be in 2..20, the number of images, got 50" in err
    (tmp_path / "pages").mkdir()
    Image.new("RGB", (60, 60), "white").save(tmp_path / "pages" / "ann_0.png")
    code, _, err = command("pretrain", "sift_clusters", "--data", tmp_path / "pages")
    assert code == 2
    assert "has a keypoint on ink" in err
    assert not list(tmp_path.glob("*.keras"))


def test_refuses_to_overwrite_the_file_of_an_earlier_run(command, checked):
    Path("rotation_digits.keras").write_text("hours of work")
    for more in ((), ("--checkpoint", "saved")):
        code, _, err = command("pretrain", "rotation", *more)
        assert code == 2
        assert err.startswith("keras-ssl: 'rotation_digits.keras' exists already")
        assert "--out" in err
        assert "--overwrite" in err
    for more in (("--overwrite",), ("--out", "other.keras"), ("--data", "cifar10")):
        assert command("pretrain", "rotation", *more)[0] == 0
    assert len(checked) == 3
    assert Path("rotation_digits.keras").read_text() == "hours of work"


def test_a_run_that_is_restarted_after_its_end_replaces_its_own_file(command, photos):
    Path("rotation_photos.keras").write_text("hours of work")
    arguments = ("pretrain", "rotation", "--data", photos, *SMALL, "--checkpoint", "saved")
    one_epoch = (*arguments, "--epochs", 1)
    assert command(*one_epoch, "--out", "a.keras")[0] == 0
    first = keras.models.load_model("a.keras").get_weights()

    code, out, err = command(*one_epoch, "--out", "a.keras")
    assert code == 0, err
    assert "resuming from step 2" in out
    for a, b in zip(first, keras.models.load_model("a.keras").get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)

    assert command(*arguments, "--epochs", 2, "--out", "a.keras")[0] == 0  # the same run, longer
    assert keras.models.load_model("a.keras").optimizer.iterations == 4
    assert command(*one_epoch)[0] == 2  # the checkpoints belong to a.keras
    assert Path("rotation_photos.keras").read_text() == "hours of work"


def test_resumes_with_another_value_only_if_it_is_named(command, photos):
    arguments = (
        "pretrain", "rotation", "--data", photos, *SMALL, "--checkpoint", "saved", "--out", "a.keras",
    )  # fmt: skip
    assert command(*arguments, "--epochs", 1)[0] == 0
    arguments = (*arguments, "--epochs", 2, "--learning-rate", 0.02)
    code, _, err = command(*arguments)
    assert code == 2
    assert "training run with learning_rate CosineDecay(" in err
    assert "warmup_target=0.02" in err
    assert "(--override learning_rate) to go on with the new value" in err
    assert err.count("\n") == 1
    assert command(*arguments, "--override", "rate")[2].count("override must name some of") == 1
    code, out, err = command(*arguments, "--override", "learning_rate")
    assert code == 0, err
    assert "resuming from step 2" in out


def test_a_file_that_appears_while_it_trains_is_not_overwritten(tmp_path, monkeypatch):
    class Task:
        def save(self, path):
            Path(path).write_text("new")

    monkeypatch.chdir(tmp_path)
    for name in ("rotation_digits", "rotation_digits-2"):
        Path(f"{name}.keras").write_text("another run's")
    assert pretrain.save(Task(), parsed("rotation")) == Path("rotation_digits-3.keras")
    assert pretrain.save(Task(), parsed("rotation", "--overwrite")) == Path("rotation_digits.keras")
    texts = [path.read_text() for path in sorted(tmp_path.iterdir())]
    assert texts == ["another run's", "new", "new"]  # -2, -3, and the one without a number


@pytest.mark.parametrize(
    ("environment", "chief"),
    [
        ({}, True),
        ({"TF_CONFIG": ({"worker": ["a:1", "b:1"]}, "worker", 0)}, True),
        ({"TF_CONFIG": ({"worker": ["a:1", "b:1"]}, "worker", 1)}, False),
        ({"TF_CONFIG": ({"chief": ["a:1"], "worker": ["b:1"]}, "chief", 0)}, True),
        ({"TF_CONFIG": ({"chief": ["a:1"], "worker": ["b:1"]}, "worker", 0)}, False),
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "1"}, False),
    ],
)
def test_only_the_chief_refuses(command, checked, monkeypatch, environment, chief):
    for name, value in environment.items():
        if name == "TF_CONFIG":
            cluster, kind, index = value
            value = json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})
        monkeypatch.setenv(name, value)
    Path("rotation_digits.keras").touch()
    assert command("pretrain", "rotation")[0] == (2 if chief else 0)
    # Alone, even if the environment describes other workers.
    assert command("pretrain", "rotation", "--strategy", "mirrored")[0] == 2


@pytest.mark.parametrize("described", ["no json", "{}", "[]", '{"task": 1}', '{"task": {}}'])
def test_a_damaged_tf_config_is_left_to_distribute(command, monkeypatch, described):
    monkeypatch.setenv("TF_CONFIG", described)
    code, _, err = command("pretrain", "rotation")
    assert code == 2
    assert "TF_CONFIG does not name this process" in err


def test_refuses_xla_on_several_devices(command, monkeypatch, two_replicas):
    monkeypatch.setattr(kssl.distribute, "strategy", lambda name: two_replicas)
    code, _, err = command("pretrain", "rotation", "--width", 2, "--blocks", "1", "--xla")
    assert code == 2
    assert "jit_compile=True does not work on 2 replicas" in err
    assert err.count("\n") == 1


def test_trains_on_pairs_of_photos_and_rendered_scenes(command, photos):
    code, out, err = command(
        "pretrain", "synthetic_multitask", "--data", photos, *SMALL, "--size", 16, "--epochs", 1
    )
    assert code == 0, err
    assert "depth_loss" in out
    code, _, err = command("preview", "synthetic_multitask_photos.keras", "--data", photos)
    assert code == 0, err
    assert command("preview", "scenes", "--number", 2, "--size", 16, "--out", "scenes.png")[0] == 0
    assert Image.open("scenes.png").width > 500
