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

OWN = """
import keras, keras_ssl as kssl
@keras.saving.register_keras_serializable(package="my_zoo")
class Own(kssl.tasks.Rotation):
    pass
"""


def python(program, cwd, **environment):
    inherited = ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL")  # set by keras_ssl in this process
    environment |= {name: value for name, value in os.environ.items() if name not in inherited}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, env=environment, check=False, capture_output=True,
        text=True,
    )  # fmt: skip


def test_help_and_usage_errors_do_not_import_tensorflow(tmp_path):
    (tmp_path / "rotation_digits.keras").write_text("hours of work")
    (tmp_path / "half.keras").write_text("half")
    lines = [
        "", "--help", "--version", "tasks", "nonsense",
        "pretrain --help", "serve --help", "data-service --help", "data-service worker --help",
        "pretrain --nonsense", "pretrain nosuchtask", "pretrain rotation --epochs 0",
        "pretrain rotation --data nowhere", "pretrain rotation --blocks a", "pretrain rotation",
        "preview rotation --number 0", "preview nosuchtask", "preview missing.keras",
        "evaluate missing.keras", "evaluate rotation_digits.keras --data nowhere",
        "export missing.keras", "extract nowhere --model m", "extract .", "extract . --model m",
        "export half.keras --card half.keras", "preview rotation --out a.txt",
        "pretrain rotation --log . --out a.keras", "serve --nonsense",
        "serve . --enable_batching=perhaps", "quickstart --out nowhere",
        "data-service worker --dispatcher localhost:1",
        "search --help", "search main.keras --table a.lance", "search half.keras --table nowhere.lance",
        "search half.keras --table a.lance --number 0", "index nowhere.lance", "index --help",
        "duplicates nowhere.lance", "duplicates --help", "explore nowhere.lance", "explore --help",
        "extract . --model half.keras --out a+b.lance", "explore a.lance --port 70000",
    ]  # fmt: skip
    process = python(LIGHT.format(lines=lines), tmp_path)
    assert process.returncode == 0, process.stderr
    assert "deep_cluster" in process.stdout
    assert process.stderr.count("keras-ssl: ") == len(process.stderr.splitlines()) == 31


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_another_backend_is_refused_before_it_is_imported(tmp_path, backend):
    (tmp_path / "one").mkdir()
    process = python(
        LIGHT.format(lines=["preview rotation --data one"]), tmp_path, KERAS_BACKEND=backend
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr.startswith("keras-ssl: keras_ssl runs on Keras' TensorFlow backend, but ")
    assert len(process.stderr.splitlines()) == 1


def test_import_of_a_module_with_a_task_of_ones_own(command, photos, tmp_path):
    (tmp_path / "my_zoo_task.py").write_text(OWN)
    program = """
import my_zoo_task, numpy as np, keras_ssl as kssl
task = my_zoo_task.Own(kssl.encoders.resnet((16, 16, 3), width=2, blocks=(1,)))
task(np.zeros((1, 4, 16, 16, 3), "float32"))
task.save("own.keras")
"""
    process = python(program, tmp_path)
    assert process.returncode == 0, process.stderr
    code, _, err = command("export", "own.keras", "models/own", "--import", "my_zoo_task")
    assert code == 0, err
    code, _, err = command("preview", "own.keras", "--data", photos, "--import", "my_zoo_task")
    assert code == 0, err


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
    assert Path("log.csv").read_text().startswith("epoch,accuracy,loss,feature_std,effective_rank,")
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
    assert [line.split()[0] for line in out.splitlines()[:4]] == stages
    assert "kNN: 20 and 200 neighbors" in out
    columns = "stage kNN untrained kNN 200 untrained linear untrained L2 chance"
    assert " ".join(out.splitlines()[0].split()) == columns
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


def test_unreadable_files_are_one_warning(command, photos):
    good = (photos / "red" / "0.png").read_bytes()
    (photos / "red" / "cut.png").write_bytes(good[:200])
    code, out, err = command("preview", "rotation", "--data", photos)
    assert code == 0
    assert "wrote preview.png" in out
    assert err.startswith("keras-ssl: warning: skipped 1 unreadable of 21 files")
    assert err.count("\n") == 1
