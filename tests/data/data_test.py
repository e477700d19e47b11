import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_ssl import data
from keras_ssl.data.arrays import subset


@pytest.fixture
def folder(tmp_path):
    """Class folders with pictures of many kinds and sizes."""
    rng = np.random.default_rng(0)

    def save(name, mode="RGB", size=(20, 30), **arguments):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).convert(mode).save(
            path, **arguments
        )

    save("cat/a.JPG", size=(300, 200))
    save("cat/deep/er/b.jpeg", "CMYK")
    save("cat/gray.png", "L")
    save("dog/one.png", size=(1, 1))
    save("dog/alpha.png", "RGBA")
    save("dog/p.gif", "P")
    save("eel/x.bmp")
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100).save(
        tmp_path / "eel/16.png"
    )
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_from_folder_reads_everything_in_order(folder):
    dataset = data.from_folder(folder, size=24)
    names = [str(path).removeprefix(f"{folder}/") for path in dataset.paths]
    assert names == sorted(names) == [
        "cat/a.JPG", "cat/deep/er/b.jpeg", "cat/gray.png", "dog/alpha.png", "dog/one.png",
        "dog/p.gif", "eel/16.png", "eel/x.bmp",
    ]  # fmt: skip
    arrays = data.to_arrays(dataset)
    assert arrays["image"].shape == (8, 24, 24, 3)
    assert arrays["image"].dtype == np.uint8
    assert arrays["id"].tolist() == list(range(8))
    assert arrays["label"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert dataset.class_names == ["cat", "dog", "eel"]
    assert dataset.cardinality() == 8
    gray = arrays["image"][2]
    assert (gray[..., 0] == gray[..., 1]).all()
    assert len(np.unique(arrays["image"][4].reshape(-1, 3), axis=0)) == 1  # the 1x1 picture


def test_pictures_beside_folders_have_no_classes(folder):
    (folder / "cat/a.JPG").rename(folder / "a.jpg")
    dataset = data.from_folder(folder, size=(8, 16))
    assert "label" not in dataset.element_spec
    assert dataset.class_names is None
    assert dataset.element_spec["image"].shape == (8, 16, 3)


def test_unreadable_files_are_named_in_one_warning(folder):
    good = (folder / "cat/a.JPG").read_bytes()
    (folder / "cat/cut.jpg").write_bytes(good[: len(good) // 2])
    (folder / "dog/text.jpg").write_text("hello")
    (folder / "dog/empty.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="skipped 3 unreadable of 11 files") as record:
        dataset = data.from_folder(folder, size=8)
    assert len(record) == 1
    for name in ("cat/cut.jpg", "dog/text.jpg", "dog/empty.png"):
        assert name in str(record[0].message)
    assert data.to_arrays(dataset)["id"].tolist() == list(range(8))


def test_without_check_unreadable_files_fail_when_they_are_loaded(folder):
    (folder / "dog/a.jpg").write_text("hello")
    dataset = data.from_folder(folder, size=8, check=False)
    assert int(dataset.cardinality()) == len(dataset.paths) == 9
    bad = dataset.paths.index(str(folder / "dog/a.jpg"))
    loaded = data.to_arrays(dataset.ignore_errors())
    assert loaded["id"].tolist() == [i for i in range(9) if i != bad]
    assert dataset.columns["label"].numpy().tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    with pytest.raises(tf.errors.InvalidArgumentError):
        dataset.load_row({name: column[bad] for name, column in dataset.columns.items()})


def test_a_part_loads_only_its_own(folder):
    dataset = data.from_folder(folder, size=8, check=False)
    for name in dataset.paths[::2]:
        open(name, "w").close()  # whoever loads these fails
    part = subset(dataset, range(1, 8, 2))
    assert data.to_arrays(part)["id"].tolist() == [1, 3, 5, 7]
    assert part.class_names == ["cat", "dog", "eel"]
    assert data.to_arrays(subset(part, [0, 3]))["id"].tolist() == [1, 7]
    stream = subset(data.from_array(np.zeros((5, 4, 4))).map(dict), [0, 4])
    assert int(stream.cardinality()) == 2
    assert data.to_arrays(stream)["id"].tolist() == [0, 4]


def test_from_folder_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"no folder '.*/nowhere'"):
        data.from_folder(tmp_path / "nowhere", size=8)
    with pytest.raises(ValueError, match=f"no pictures in '{tmp_path}'"):
        data.from_folder(tmp_path, size=8)
    (tmp_path / "a.jpg").write_text("text")
    with pytest.raises(ValueError, match="none of the 1 files.*a.jpg"):
        data.from_folder(tmp_path, size=8)
    with pytest.raises(ValueError, match="size"):
        data.from_folder(tmp_path, size=0)


def test_from_array_keeps_pixels_and_makes_gray_rgb():
    gray = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    arrays = data.to_arrays(data.from_array(gray, [7, 5]))
    np.testing.assert_array_equal(arrays["image"], np.stack([gray] * 3, -1))
    assert arrays["label"].tolist() == [7, 5]
    floats = data.to_arrays(data.from_array(gray[..., None].repeat(3, -1) / 2))
    assert floats["image"].dtype == np.float32
    assert sorted(floats) == ["id", "image"]


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [(np.zeros((0, 4, 4, 3)), None, "N > 0"), (np.zeros((2, 4, 4, 2)), None, "images"),
     (np.full((1, 4, 4, 3), -1.0), None, "0..255"), (np.full((1, 4, 4, 3), np.nan), None, "0..255"),
     (np.zeros((2, 4, 4, 3)), [1], "labels")],
)  # fmt: skip
def test_from_array_refuses(images, labels, words):
    with pytest.raises(ValueError, match=words):
        data.from_array(images, labels)


def test_digits_are_the_real_ones_split_without_overlap():
    train, test = (data.to_arrays(data.digits(part)) for part in ("train", "test"))
    assert (len(train["id"]), len(test["id"])) == (1437, 360)
    assert np.bincount(test["label"]).min() >= 34  # stratified
    pictures = {x.tobytes() for x in train["image"]}
    assert not pictures & {x.tobytes() for x in test["image"]}
    with pytest.raises(ValueError, match="split.*'both'"):
        data.digits("both")


def test_cifar10_from_class_folders(folder, tmp_path):
    (tmp_path / "root").mkdir()
    for name in ("cat", "dog", "eel"):
        (folder / name).rename(tmp_path / "root" / name)
    (tmp_path / "root").rename(tmp_path / "test")
    dataset = data.cifar10(tmp_path, split="test")
    arrays = data.to_arrays(dataset)
    assert arrays["image"].shape == (8, 32, 32, 3)
    assert arrays["label"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert dataset.class_names == ["cat", "dog", "eel"]
    with pytest.raises(ValueError, match="no folder"):
        data.cifar10(tmp_path, split="train")


def test_cifar10_says_what_to_do_when_it_cannot_download(monkeypatch):
    def fail():
        raise Exception("URL fetch failure")

    monkeypatch.setattr("keras.datasets.cifar10.load_data", fail)
    with pytest.raises(ConnectionError, match="URL fetch failure.*give a folder"):
        data.cifar10()
