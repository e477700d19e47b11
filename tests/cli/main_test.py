"""The command as a whole: every subcommand once, usage errors, and when TensorFlow is imported."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import keras_ssl as kssl
from keras_ssl import serving

# Runs command lines one after the other, as the console script does, and stops at the first that imports
# TensorFlow.
LIGHT = """
import sys
sys.argv[0] = "keras-ssl"
from keras_ssl.cli import main
for line in {lines!r}:
    sys.argv[1:] = line.split()
    try:
        main()
    except SystemExit:
        pass
    assert "tensorflow" not in sys.modules, line
    assert "matplotlib" not in sys.modules, line
"""


def python(program, cwd):
    inherited = ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL")  # set by keras_ssl in this process
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, env=environment, check=False, capture_output=True,
        text=True,
    )  # fmt: skip


def test_help_and_usage_errors_do_not_import_tensorflow(tmp_path):
    (tmp_path / "rotation_digits.keras").write_text("hours of work")
    lines = [
        "", "--help", "--version", "tasks", "nonsense",
        "pretrain --help", "serve --help", "data-service --help", "data-service worker --help",
        "pretrain --nonsense", "pretrain nosuchtask", "pretrain rotation --epochs 0",
        "pretrain rotation --data nowhere", "pretrain rotation --blocks a", "pretrain rotation",
        "preview rotation --number 0", "preview nosuchtask", "preview missing.keras",
        "evaluate missing.keras", "evaluate rotation_digits.keras --data nowhere",
        "export missing.keras", "extract nowhere --model m", "extract .", "extract . --model m",
        "serve --nonsense", "serve . --enable_batching=perhaps", "quickstart --out nowhere",
        "data-service worker --dispatcher localhost:1",
    ]  # fmt: skip
    process = python(LIGHT.format(lines=lines), tmp_path)
    assert process.returncode == 0, process.stderr
    assert "deep_cluster" in process.stdout
    assert process.stderr.count("keras-ssl: ") == len(process.stderr.splitlines()) == 20


def test_the_command_imports_tensorflow_quietly_and_all_public_names_with_it(task, tmp_path):
    task.save(tmp_path / "task.keras")
    program = """
import sys
sys.argv[0] = "keras-ssl"
import keras_ssl as kssl
assert not hasattr(kssl, "nonsense")
assert "tensorflow" not in sys.modules
from keras_ssl.cli import common
common.import_tensorflow()
from keras_ssl import encoders
assert kssl.encoders is encoders and kssl.tasks.Rotation.__name__ == "Rotation"
assert not hasattr(kssl, "nonsense") and not hasattr(kssl.tasks, "nonsense")
assert not [name for name in kssl.__all__ if not hasattr(kssl, name)]
import keras
keras.models.load_model("task.keras")
"""
    process = python(program, tmp_path)
    assert (process.returncode, process.stderr) == (0, "")  # nor a line of TensorFlow's log


def test_import_keras_ssl_registers_every_class(task, tmp_path):
    task.save(tmp_path / "task.keras")
    program = "import keras_ssl, keras; print(type(keras.models.load_model('task.keras')))"
    process = python(program, tmp_path)
    assert process.returncode == 0, process.stderr
    assert "keras_ssl.tasks.context.rotation.Rotation" in process.stdout


def test_public_names():
    public = kssl._public
    assert {name for name in vars(public) if not name.startswith("_")} == set(kssl.__all__)
    assert set(kssl.tasks.__all__) <= set(dir(kssl.tasks))


def test_tasks_prints_the_table(command):
    code, out, _ = command("tasks")
    assert code == 0
    assert "rotation context Gidaris et al. 2018" in " ".join(out.split())


def test_from_images_to_features(command, photos, tmp_path):
    """preview, pretrain, evaluate, export and extract, each on the output of the previous one."""
    assert command("preview", "rotation", "--data", photos, "--size", 16)[0] == 0
    assert Image.open("preview.png").size[0] > 300

    small = (
        "--width", 2, "--blocks", "1,1", "--size", 16, "--epochs", 1, "--set", "num_rotations=2",
    )  # fmt: skip
    code, out, _ = command(
        "pretrain", "rotation", "--data", photos, *small, "--batch-size", 8, "--tensorboard", "logs",
        "--log", "log.csv", "--checkpoint", "saved", "--checkpoint-every", 2,
    )  # fmt: skip
    assert code == 0
    assert "20 images, 3 steps per epoch, 1 epoch, 1 CPU, float32" in out
    assert "checkpoints in saved" in out
    assert " images/s" in out
    assert [p.name for p in sorted(Path("saved").iterdir())] == [
        "output.txt", "step-000000002.npz", "step-000000003.npz"
    ]  # fmt: skip
    assert (
        Path("log.csv").read_text().startswith("epoch,accuracy,loss,feature_std,effective_rank\n0,")
    )
    assert (tmp_path / "logs" / "projector_config.pbtxt").exists()
    assert list((tmp_path / "logs").rglob("events*"))
    assert list((tmp_path / "logs" / "pictures").glob("events*"))
    code, out, _ = command(
        "preview", "rotation_photos.keras", "--data", photos, "--out", "predicted.png"
    )
    assert code == 0
    assert Image.open("predicted.png").size[0] > 300

    code, out, _ = command("evaluate", "rotation_photos.keras", "--data", photos)
    assert code == 0
    stages = ["stage", "stage1", "stage2", "features"]
    assert [line.split()[0] for line in out.splitlines()] == stages
    columns = ["stage", "kNN", "untrained", "linear", "untrained", "chance"]
    assert out.splitlines()[0].split() == columns
    assert out.splitlines()[1].split()[-1] == "50.0"

    code, out, _ = command("export", "rotation_photos.keras")
    assert code == 0
    assert "wrote saved_models/rotation_photos/1" in out

    export = ("--model", "saved_models/rotation_photos")
    assert command("extract", photos, *export, "--batch-size", 6)[0] == 0
    local = dict(np.load("features.npz"))
    assert local["id"].tolist() == list(range(20))
    assert [p.endswith("blue/0.png") for p in local["path"]] == [True] + [False] * 19
    with serving.Server("saved_models") as server:
        code, _, _ = command(
            "extract", photos, "--model", "rotation_photos", "--server", f"localhost:{server.port}",
            "--out", "served.npz",
        )  # fmt: skip
    assert code == 0
    served = dict(np.load("served.npz"))
    np.testing.assert_array_equal(served["path"], local["path"])
    np.testing.assert_allclose(served["features"], local["features"], rtol=1e-5, atol=1e-5)
    assert not list(tmp_path.glob("*.part"))


WRONG = {
    "grid": (("pretrain", "jigsaw", "--set", "grid=4"), "grid must be 2 or 3, got 4"),
    "permutations": (
        ("preview", "jigsaw", "--set", "grid=2", "--set", "num_permutations=25"),
        "number must be in 1..24",
    ),
    "strangers": (
        ("preview", "jigsaw_plus", "--set", "max_replaced=9"),
        "max_replaced must be in 0..8",
    ),
    "trained with another size": (
        ("preview", "one.keras", "--size", 96),
        "one.keras has the --size and --set of its training run",
    ),
    "no such trained task": (("preview", "one.keras"), "there is no file 'one.keras'"),
    "target": (("preview", "colorization", "--set", "target=lab"), 'must be "rgb" or "ab_bins"'),
    "mask": (("preview", "inpainting", "--set", "mask=left"), "mask must be one of cent"),
    "scale": (("preview", "super_resolution", "--set", "scale=3"), "scale must be 2 or 4, got 3"),
    "oblique scale": (
        ("preview", "super_resolution", "--data", "one", "--size", 31),
        "scale 2 must divide the ",
    ),
    "codes": (("preview", "gan", "--set", "codes=0"), "codes must be at least 1, got 0"),
    "learning rate": (
        ("pretrain", "gan", "--learning-rate", 0),
        "Invalid value for '--learning-rate': 0.0 is not in the range x>0",
    ),
    "epochs": (
        ("pretrain", "gan", "--epochs", 0),
        "Invalid value for '--epochs': 0 is not in the range x>=1",
    ),
    "number": (
        ("preview", "gan", "--number", 0),
        "Invalid value for '--number': 0 is not in the range x>=1",
    ),
    "gap": (("preview", "relative_patch", "--set", "gap=20"), "need 45 pixels"),
    "nowhere to save": (
        ("pretrain", "rotation", "--checkpoint-every", 5),
        "--checkpoint-every needs --checkpoint",
    ),
    "no workers": (
        ("pretrain", "rotation", "--strategy", "multi_worker"),
        "multi_worker finds no other worker: set TF_CONFIG",
    ),
    "precision": (("pretrain", "rotation", "--precision", "int8"), "'int8' is not one of"),
    "service": (
        ("pretrain", "rotation", "--service", "localhost"),
        "service must be of the form grpc://host:port, got 'localhost'",
    ),
    "unknown task": (
        ("pretrain", "rotatoin"),
        "there is no task 'rotatoin': choose one of rotation",
    ),
    "unknown option": (("pretrain", "rotation", "--epoch", 3), "No such option"),
    "unknown command": (("train",), "No such command"),
    "wrong type": (("pretrain", "rotation", "--epochs", "many"), "not a valid integer"),
    "no folder": (("preview", "rotation", "--data", "nowhere"), "there is no folder 'nowhere'"),
    "empty folder": (("pretrain", "rotation", "--data", "empty"), "in 'empty'"),
    "text as jpg": (("pretrain", "rotation", "--data", "text"), "none of the 1 files in 'text'"),
    "unknown setting": (
        ("preview", "rotation", "--set", "turns=4"),
        "NAME of num_rotations, angles",
    ),
    "bad setting": (
        ("preview", "rotation", "--set", "num_rotations=3"),
        "num_rotations must be 2 or 4",
    ),
    "setting of a wrong type": (("preview", "rotation", "--set", "angles=3"), "--set angles=3"),
    "no value": (("preview", "rotation", "--set", "flip"), "NAME=VALUE"),
    "bad blocks": (("pretrain", "rotation", "--blocks", "a"), "--blocks must be numbers"),
    "bad out": (("pretrain", "rotation", "--out", "model.h5"), "ending in .keras, got 'model.h5'"),
    "folder as out": (("pretrain", "rotation", "--out", "a.keras"), "must be a file ending in"),
    "no place for out": (("preview", "rotation", "--out", "no/a.png"), "there is no folder 'no'"),
    "no model": (("evaluate", "nowhere"), "there is no file or folder 'nowhere'"),
    "no file": (("evaluate", "one.keras"), "there is no file or folder 'one.keras'"),
    "no export": (("evaluate", "one"), "'one' has no assets.extra/encoder.json"),
    "no labels": (("evaluate", "model", "--data", "one"), "no labels"),
    "nothing to export": (("export", "nowhere.keras"), "does not exist"),
    "no models to serve": (("serve", "empty"), "no model in 'empty'"),
    "model missing": (("extract", "one"), "--model is missing"),
    "nothing to extract": (("extract", "nowhere", "--model", "m"), "there is no folder 'nowhere'"),
    "certificate for nobody": (
        ("extract", "one", "--model", "model", "--ca", "a"),
        "need --server",
    ),
    "no server": (
        ("extract", "one", "--model", "m", "--server", "localhost:1", "--retries", "0"),
        "no server at",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_are_one_line(command, exported, tmp_path, case):
    for name in ("empty", "text", "one", "a.keras"):
        (tmp_path / name).mkdir()
    (tmp_path / "text" / "a.jpg").write_text("hello")
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / "one" / f"{name}.png")
    (tmp_path / "model").symlink_to(exported)
    before = sorted(tmp_path.rglob("*"))
    arguments, words = WRONG[case]
    code, _, err = command(*arguments)
    assert code == 2
    assert err.startswith("keras-ssl: ")
    assert err.count("\n") == 1
    assert words in err
    assert sorted(tmp_path.rglob("*")) == before  # nothing half-written


def test_unreadable_files_are_one_warning(command, photos):
    good = (photos / "red" / "0.png").read_bytes()
    (photos / "red" / "cut.png").write_bytes(good[:200])
    code, out, err = command("preview", "rotation", "--data", photos)
    assert code == 0
    assert "wrote preview.png" in out
    assert err.startswith("keras-ssl: warning: skipped 1 unreadable of 21 files")
    assert err.count("\n") == 1
