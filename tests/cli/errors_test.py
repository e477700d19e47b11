"""Every error of the user is one line and exit code 2, and leaves nothing behind."""

import json
import os
import shutil
import zipfile

import keras
import pytest
import tensorflow as tf
from PIL import Image

from keras_ssl.cli import common

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
    "nothing to resume": (
        ("pretrain", "rotation", "--override", "seed"),
        "--override needs --checkpoint",
    ),
    "no rendered images": (
        ("pretrain", "synthetic_multitask", "--synthetic", "nowhere"),
        "--synthetic: there is no folder 'nowhere'",
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
    "neither true nor false": (
        ("preview", "rotation", "--set", "flip=perhaps"),
        "--set flip must be true or false, got 'perhaps'",
    ),
    "a word as integer": (
        ("preview", "gan", "--set", "filters=no"),
        "--set filters must be an integer, got 'no'",
    ),
    "a word as number": (
        ("preview", "rotation", "--set", "shift=no"),
        "--set shift must be a number, got 'no'",
    ),
    "a fraction as integer": (
        ("preview", "gan", "--set", "codes=2.5"),
        "--set codes must be an integer, got '2.5'",
    ),
    "true as integer": (("preview", "gan", "--set", "codes=True"), "must be an integer"),
    "true as pixels": (
        ("preview", "jigsaw", "--set", "tile=True"),
        "--set tile must be an integer or a list, got 'True'",
    ),
    "infinite overlap": (
        ("preview", "inpainting", "--set", "overlap=1e400"),
        "--set overlap must be a finite number of 64 bits at most, got '1e400'",
    ),
    "infinite patch": (("preview", "exemplar", "--set", "patch=1e400"), "must be a finite number"),
    "infinite shift": (("preview", "rotation", "--set", "shift=-1e400"), "must be a finite number"),
    "open bracket": (
        ("preview", "rotation", "--set", "angles=[0,90"),
        "--set angles must be a complete list: close its brackets, got '[0,90'",
    ),
    "angles that are no list": (
        ("preview", "rotation", "--set", "angles=abc"),
        "angles must be two to four",
    ),
    "the seed of a task": (("pretrain", "exemplar", "--set", "seed=no"), "must be an integer"),
    "a gap of half a pixel": (
        ("pretrain", "relative_patch", "--set", "gap=2.5"),
        "--set gap must be an integer",
    ),
    "number of images": (
        ("preview", "exemplar", "--set", "num_images=abc"),
        "--set num_images=abc: '<' not supported",
    ),
    "seed": (
        ("preview", "rotation", "--seed", 99999999999999999999),
        "Invalid value for '--seed': 99999999999999999999 is not in the range",
    ),
    "seed of a training run": (("pretrain", "rotation", "--seed", -1), "not in the range"),
    "the huge seed of a task": (
        ("preview", "exemplar", "--set", f"seed={10**30}"),
        "finite number",
    ),
    "huge filters": (("preview", "gan", "--set", f"filters={10**30}"), "--set filters"),
    "retries": (("extract", "one", "--model", "m", "--retries", -1), "not in the range"),
    "bad blocks": (("pretrain", "rotation", "--blocks", "a"), "--blocks must be numbers"),
    "bad out": (("pretrain", "rotation", "--out", "model.h5"), "ending in .keras, got 'model.h5'"),
    "folder as out": (
        ("pretrain", "rotation", "--out", "a.keras"),
        "--out must be a file, but 'a.keras' is a folder",
    ),
    "folder as log": (("pretrain", "rotation", "--log", "one"), "--log must be a file, but 'one'"),
    "no place for the log": (("pretrain", "rotation", "--log", "no/a.csv"), "--log: there is no"),
    "file as checkpoint": (
        ("pretrain", "rotation", "--checkpoint", "list.json"),
        "--checkpoint must be a folder, but 'list.json' is a file",
    ),
    "file as tensorboard": (
        ("pretrain", "rotation", "--tensorboard", "list.json/logs"),
        "--tensorboard must be a folder, but 'list.json' is a file",
    ),
    "folder as preview": (("preview", "rotation", "--out", "one"), "--out must be a file"),
    "no image file": (("preview", "rotation", "--out", "a.txt"), "--out must end in .png, "),
    "folder as features": (
        ("extract", "one", "--model", "model", "--out", "text"),
        "--out must be a file, but 'text' is a folder",
    ),
    "file as export": (("export", "dense.keras", "list.json"), "OUT must be a folder"),
    "list as card": (
        ("export", "dense.keras", "new", "--card", "list.json"),
        "--card: 'list.json' must hold a JSON object, got a list",
    ),
    "no JSON": (
        ("export", "dense.keras", "new", "--card", "text/a.jpg"),
        "--card: 'text/a.jpg' is no JSON file",
    ),
    "no task": (("export", "dense.keras", "new"), "encoder must take images (H, W, 3) of fixed"),
    "no images": (
        ("extract", "one", "--model", "dense.keras"),
        "'dense.keras' cannot be loaded: encoder must take images (H, W, 3) of fixed size, got (5,)",
    ),
    "evaluate no images": (("evaluate", "dense.keras"), "encoder must take images"),
    "a flipped byte": (("evaluate", "flipped.keras"), "'flipped.keras' is damaged or not complete"),
    "a damaged preview": (("preview", "flipped.keras"), "'flipped.keras' is damaged or not"),
    "a damaged export": (("export", "flipped.keras"), "'flipped.keras' is damaged or not"),
    "half a file": (("evaluate", "half.keras"), "'half.keras' is damaged or not completely copied"),
    "an archive without a model": (("evaluate", "other.keras"), "'other.keras' cannot be loaded"),
    "another's task": (
        ("evaluate", "own.keras"),
        "'own.keras' needs 'Unknown', which keras_ssl does not define: import the module",
    ),
    "another's task in previews": (("preview", "own.keras"), "--import MODULE"),
    "another's task to export": (("export", "own.keras"), "--import MODULE"),
    "no such module": (
        ("evaluate", "own.keras", "--import", "my_zoo"),
        "--import my_zoo failed (ModuleNotFoundError: No module named 'my_zoo')",
    ),
    "no place for out": (("preview", "rotation", "--out", "no/a.png"), "there is no folder 'no'"),
    "no model": (("evaluate", "nowhere"), "there is no file or folder 'nowhere'"),
    "no file": (("evaluate", "one.keras"), "there is no file or folder 'one.keras'"),
    "no export": (("evaluate", "one"), "'one' has no assets.extra/encoder.json"),
    "no labels": (("evaluate", "model", "--data", "one"), "no labels"),
    "nothing to export": (("export", "nowhere.keras"), "does not exist"),
    "no models to serve": (("serve", "empty"), "no model in 'empty'"),
    "model missing": (("extract", "one"), "--model is missing"),
    "nothing to extract": (("extract", "nowhere", "--model", "m"), "there is no folder 'nowhere'"),
    "import for a server": (
        ("extract", "one", "--model", "m", "--server", "localhost:1", "--import", "my_zoo"),
        "--import my_zoo has no effect with --server",
    ),
    "long name of a draft": (
        ("pretrain", "rotation", "--out", "a" * 240 + ".keras"),
        "--out must be a file name of at most 245 bytes, got 'aaa",
    ),
    "long name": (("pretrain", "rotation", "--log", "a" * 300), "--log must be a file name of at"),
    "long name of features": (
        ("extract", "one", "--model", "model", "--out", "ä" * 123),
        "--out must be a file name of at most 245 bytes",
    ),
    "batch of more than 64 bits": (
        ("pretrain", "rotation", "--batch-size", 10**30),
        "batch_size must be an integer (int64) of at least 1",
    ),
    "certificate for nobody": (
        ("extract", "one", "--model", "model", "--ca", "a"),
        "need --server",
    ),
    "no server": (
        ("extract", "one", "--model", "m", "--server", "localhost:1", "--retries", "0"),
        "no server at",
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of .keras files that cannot be used."""
    folder = tmp_path_factory.mktemp("files")
    inputs = keras.Input((5,))
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(folder / "dense.keras")
    content = bytearray((folder / "dense.keras").read_bytes())
    (folder / "half.keras").write_bytes(content[: len(content) // 2])
    content[len(content) // 2] ^= 1
    (folder / "flipped.keras").write_bytes(content)
    with zipfile.ZipFile(folder / "other.keras", "w") as file:
        file.writestr("a", "b")
    with zipfile.ZipFile(folder / "own.keras", "w") as file:
        with zipfile.ZipFile(folder / "dense.keras") as dense:
            config = json.loads(dense.read("config.json"))
            file.writestr("metadata.json", dense.read("metadata.json"))
            file.writestr("model.weights.h5", dense.read("model.weights.h5"))
        config |= {
            "module": None,
            "class_name": "Unknown",
            "registered_name": "somewhere>Unknown",
        }
        file.writestr("config.json", json.dumps(config))
    (folder / "list.json").write_text("[]")
    return folder


@pytest.mark.parametrize("case", WRONG)
def test_errors_are_one_line(command, exported, files, tmp_path, case):
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
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


@pytest.mark.parametrize("check", [common.check_file, common.check_folder])
def test_folders_that_are_not_writable_are_refused(check, tmp_path, monkeypatch):
    """By another answer of os.access, since root may write everywhere."""
    check("--out", f"{tmp_path}/new")
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)))
    with pytest.raises(ValueError, match="--out: the folder '.*' is not writable: give another"):
        check("--out", f"{tmp_path}/new")
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]


def test_too_little_memory(command, monkeypatch):
    """By an error as TensorFlow raises it, after it has waited for ten seconds."""

    def fail(path):
        message = "{{node x}} OOM when allocating tensor with shape[4,99] and type float on /job:localhost"
        raise tf.errors.ResourceExhaustedError(None, None, message)

    monkeypatch.setattr(common, "check_model", fail)
    code, _, err = command("evaluate", "model.keras")
    assert (code, err) == (
        2,
        "keras-ssl: not enough memory for a tensor of shape [4,99]: choose a smaller network, image size "
        "or batch size\n",
    )


@pytest.mark.parametrize("text", ["", "checkpoint a cannot be read (out of memory)"])
def test_too_little_memory_in_python(command, monkeypatch, text):
    def fail(path):
        raise MemoryError(text) if text else MemoryError

    monkeypatch.setattr(common, "check_model", fail)
    expected = f"keras-ssl: {text or 'not enough memory'}\n"
    assert command("evaluate", "model.keras") == (2, "", expected)


def test_a_remote_folder_is_left_to_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    common.check_folder("--tensorboard", "gs://bucket/logs")


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID"])
def test_numbers_of_slurm(command, monkeypatch, name):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv(name, "abc")
    code, _, err = command("pretrain", "rotation")
    assert code == 2
    assert err == f"keras-ssl: {name} must be a number, which Slurm sets, got 'abc': unset it\n"


def test_an_interrupted_command(command, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(common, "find_row", interrupted)
    assert command("preview", "rotation") == (130, "", "\nkeras-ssl: stopped\n")
