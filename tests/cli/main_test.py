from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import keras_ssl as kssl
from keras_ssl import cli, serving


@pytest.fixture
def photos(tmp_path):
    """A folder of two classes, ten pictures each, told apart by their colour."""
    rng = np.random.default_rng(0)
    for name, channel in (("blue", 2), ("red", 0)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 100, (20, 24, 3), np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_tasks_prints_the_table(command):
    code, out, _ = command("tasks")
    assert code == 0
    assert "rotation context Gidaris et al. 2018" in " ".join(out.split())


def test_from_pictures_to_features(command, photos, tmp_path):
    """preview, pretrain, evaluate, export and extract, each from what the one before wrote."""
    assert command("preview", "rotation", "--data", photos, "--size", 16)[0] == 0
    assert Image.open("preview.png").size[0] > 300

    small = (
        "--width",
        2,
        "--blocks",
        "1,1",
        "--size",
        16,
        "--epochs",
        1,
        "--set",
        "num_rotations=2",
    )
    code, out, _ = command(
        "pretrain", "rotation", "--data", photos, *small, "--batch-size", 8, "--tensorboard", "logs",
        "--log", "log.csv", "--checkpoint", "saved", "--checkpoint-every", 2,
    )  # fmt: skip
    assert code == 0
    assert "20 images, 3 steps an epoch, 1 epoch, 1 CPU, float32" in out
    assert "checkpoints in saved" in out
    assert " images/s" in out
    assert [p.name for p in sorted(Path("saved").iterdir())] == [
        "step-000000002.npz", "step-000000003.npz"
    ]  # fmt: skip
    assert (
        Path("log.csv").read_text().startswith("epoch,accuracy,loss,feature_std,effective_rank\n0,")
    )
    assert (tmp_path / "logs" / "projector_config.pbtxt").exists()
    assert list((tmp_path / "logs").rglob("events*"))
    assert list((tmp_path / "logs" / "pictures").glob("events*"))
    code, out, _ = command(
        "preview", "rotation_photos.keras", "--data", photos, "--out", "said.png"
    )
    assert code == 0
    assert Image.open("said.png").size[0] > 300

    code, out, _ = command("evaluate", "rotation_photos.keras", "--data", photos)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "stage",
        "stage1",
        "stage2",
        "features",
    ]
    assert out.splitlines()[0].split() == [
        "stage",
        "kNN",
        "untrained",
        "linear",
        "untrained",
        "chance",
    ]
    assert out.splitlines()[1].split()[-1] == "50.0"

    code, out, _ = command("export", "rotation_photos.keras")
    assert code == 0
    assert "wrote saved_models/rotation_photos/1" in out

    assert (
        command("extract", photos, "--model", "saved_models/rotation_photos", "--batch-size", 6)[0]
        == 0
    )
    local = dict(np.load("features.npz"))
    assert local["id"].tolist() == list(range(20))
    assert [p.endswith("blue/0.png") for p in local["path"]] == [True] + [False] * 19
    with serving.Server("saved_models") as server:
        address = f"localhost:{server.port}"
        code, _, _ = command(
            "extract",
            photos,
            "--model",
            "rotation_photos",
            "--server",
            address,
            "--out",
            "served.npz",
        )
    assert code == 0
    served = dict(np.load("served.npz"))
    np.testing.assert_array_equal(served["path"], local["path"])
    np.testing.assert_allclose(served["features"], local["features"], rtol=1e-5, atol=1e-5)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    "task",
    [
        "relative_patch", "jigsaw", "jigsaw_plus", "exemplar", "exemplar_triplet", "colorization",
        "inpainting", "super_resolution", "gan",
    ],
)  # fmt: skip
def test_pretrains_on_pictures_of_all_sizes(command, tmp_path, task):
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
        "pretrain", task, "--data", "album", "--size", 96, "--width", 2, "--blocks", "1,1", "--stem",
        "imagenet", "--epochs", 2, "--batch-size", 3, *few,
    )  # fmt: skip
    assert code == 0, err
    assert f"wrote {task}_album.keras" in out
    assert "nan" not in out
    assert command("preview", task, "--data", "album", "--size", 96, *few)[0] == 0


def test_evaluate_says_how_well_pictures_are_given_back(command, photos):
    small = ("--width", 2, "--blocks", "1,1", "--size", 16, "--epochs", 1, "--batch-size", 8)
    assert command("pretrain", "super_resolution", "--data", photos, *small)[0] == 0
    code, out, _ = command("evaluate", "super_resolution_photos.keras", "--data", photos)
    assert code == 0
    *_, names, figures = out.splitlines()
    assert names.split() == ["psnr", "ssim", "trivial_psnr", "trivial_ssim"]
    psnr, ssim, trivial, _ = (float(figure) for figure in figures.split())
    assert psnr == pytest.approx(trivial, abs=2)  # one epoch is hardly more than bicubic
    assert ssim <= 1


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
        "one.keras has its --size and --set from its training",
    ),
    "no such trained task": (("preview", "one.keras"), "there is no file 'one.keras'"),
    "target": (("preview", "colorization", "--set", "target=lab"), 'must be "rgb" or "ab_bins"'),
    "mask": (("preview", "inpainting", "--set", "mask=left"), "mask must be one of centre"),
    "scale": (("preview", "super_resolution", "--set", "scale=3"), "scale must be 2 or 4, got 3"),
    "oblique scale": (
        ("preview", "super_resolution", "--data", "one", "--size", 31),
        "scale 2 must divide the pictures' size, 31x31",
    ),
    "codes": (("preview", "gan", "--set", "codes=0"), "codes must be at least 1, got 0"),
    "learning rate": (
        ("pretrain", "gan", "--learning-rate", 0),
        "--learning-rate must be positive, got 0.0",
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
    "empty folder": (("pretrain", "rotation", "--data", "empty"), "no pictures in 'empty'"),
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
    "bad out": (("pretrain", "rotation", "--out", "model.h5"), "must end in .keras"),
    "no place for out": (("preview", "rotation", "--out", "no/a.png"), "there is no folder 'no'"),
    "no model": (("evaluate", "nowhere"), "'nowhere' has no assets.extra/encoder.json"),
    "no labels": (("evaluate", "model", "--data", "one"), "no labels"),
    "nothing to export": (("export", "nowhere.keras"), "does not exist"),
    "no models to serve": (("serve", "empty"), "no model in 'empty'"),
    "model missing": (("extract", "one"), "--model is missing"),
    "no server": (
        ("extract", "one", "--model", "m", "--server", "localhost:1", "--retries", "0"),
        "no server at",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_are_one_line(command, exported, tmp_path, case):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.jpg").write_text("hello")
    (tmp_path / "one").mkdir()
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


def test_train_and_test_folders_are_used_as_they_are(photos, tmp_path):
    (tmp_path / "both").mkdir()
    photos.rename(tmp_path / "both" / "train")
    for name in ("red", "blue"):
        (tmp_path / "both" / "test" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "both" / "test" / name / "x.png")
        if name == "red":  # alone it would be class 0, while it is class 1 of the training pictures
            with pytest.raises(ValueError, match="same class folders"):
                cli.named(str(tmp_path / "both"), 16, split=True)
    train, test = cli.named(str(tmp_path / "both"), 16, split=True)
    assert (int(train.cardinality()), int(test.cardinality())) == (20, 2)
    assert kssl.data.to_arrays(test)["label"].tolist() == [0, 1]
    assert int(cli.named(str(tmp_path / "both"), 16)[0].cardinality()) == 20
    train, test = cli.named(str(tmp_path / "both" / "train"), 16, split=True)
    assert (int(train.cardinality()), int(test.cardinality())) == (16, 4)
    assert sorted(kssl.data.to_arrays(test)["label"]) == [0, 0, 1, 1]


def test_clustering_tasks_from_folders(command, photos, tmp_path):
    small = ("--width", 2, "--blocks", "1", "--size", 16, "--epochs", 2, "--batch-size", 10)
    clusters = ("--set", "num_clusters=4", "--set", "num_heads=2")
    code, out, _ = command("pretrain", "self_label", "--data", photos, *small, *clusters, "--sobel")
    assert code == 0, out
    assert "nmi" in out
    task = cli.keras.models.load_model("self_label_photos.keras")
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
    small = ("--width", 2, "--blocks", "1", "--epochs", 1, "--set", "num_clusters=3")
    assert command("pretrain", "sift_clusters", "--data", pages, *small)[0] == 0


def test_clustering_says_what_is_wrong_in_one_line(command, photos, tmp_path):
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
