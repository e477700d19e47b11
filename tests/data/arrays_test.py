"""Arrays to datasets and back; digits and CIFAR-10."""

import warnings

import numpy as np
import pytest

from keras_ssl import data


def test_pixels_are_kept_and_grayscale_becomes_rgb():
    gray = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    arrays = data.to_arrays(data.from_array(gray, [7, 5]))
    np.testing.assert_array_equal(arrays["image"], np.stack([gray] * 3, -1))
    assert arrays["label"].tolist() == [7, 5]
    floats = data.to_arrays(data.from_array(gray[..., None].repeat(3, -1) / 2))
    assert floats["image"].dtype == np.float32
    assert sorted(floats) == ["id", "image"]


def test_further_columns_are_kept_without_loss(noise):
    rng = np.random.default_rng(0)
    depth = rng.normal(size=(5, 32, 32, 1))
    depth[:, ::3] = np.nan
    columns = {
        "frames": rng.integers(0, 256, (5, 4, 32, 32, 3), np.uint8),
        "depth": depth,
        "motion": rng.normal(size=(5, 3, 6)).astype(np.float32),
    }
    dataset = data.from_array(noise[:5], range(5), **columns)
    found = data.to_arrays(dataset)
    assert list(found) == ["image", "id", "label", "frames", "depth", "motion"]
    assert found["depth"].dtype == np.float32
    np.testing.assert_array_equal(found["depth"], depth.astype(np.float32))
    for name in ("frames", "motion"):
        assert found[name].dtype == columns[name].dtype
        np.testing.assert_array_equal(found[name], columns[name])
    part = data.to_arrays(data.subset(dataset, [1, 4]))
    np.testing.assert_array_equal(part["frames"], columns["frames"][[1, 4]])


def test_invalid_further_columns(noise):
    with pytest.raises(
        ValueError, match=r"depth must have 5 rows, one per image, got shape \(4, 2\)"
    ):
        data.from_array(noise[:5], depth=np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"motion must have 5 rows.* got shape \(\)"):
        data.from_array(noise[:5], motion=1.0)
    with pytest.raises(ValueError, match="id is a column of its own"):
        data.from_array(noise[:5], id=range(5))


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [(np.zeros((0, 4, 4, 3)), None, "N > 0"), (np.zeros((2, 4, 4, 2)), None, "images"),
     (np.full((1, 4, 4, 3), -1.0), None, "0..255"), (np.full((1, 4, 4, 3), np.nan), None, "0..255"),
     (np.zeros((2, 4, 4, 3)), [1], "labels"),
     (np.zeros((2, 4, 4, 3)), [1, np.nan], "labels must be integers, got nan: leave out"),
     (np.zeros((2, 4, 4, 3)), [1, np.inf], "labels must be integers, got inf: leave out"),
     (np.zeros((2, 4, 4, 3)), [1, 0.5], "labels must be integers, got 0.5: leave out"),
     (np.zeros((2, 4, 4, 3)), ["cat", "dog"], "labels must be integers, got dtype <U3: number")],
)  # fmt: skip
def test_invalid_arrays(images, labels, words):
    with pytest.raises(ValueError, match=words):
        data.from_array(images, labels)


def test_warns_of_images_in_0_to_1(noise):
    with pytest.warns(UserWarning, match=r"0\.\.255, and have a maximum of 1\.0: .* by 255"):
        data.from_array(noise[:2] / noise[:2].max())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.from_array(np.zeros((2, 4, 4, 3)), [1.0, 2.0])  # black, and integers stored as floats


def test_digits_are_split_without_overlap():
    train, test = (data.to_arrays(data.digits(part)) for part in ("train", "test"))
    assert (len(train["id"]), len(test["id"])) == (1437, 360)
    assert np.bincount(test["label"]).min() >= 34  # stratified
    train_images = {x.tobytes() for x in train["image"]}
    assert not train_images & {x.tobytes() for x in test["image"]}
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


def test_cifar10_downloaded(monkeypatch):
    pixels = np.arange(3 * 32 * 32 * 3, dtype=np.uint8).reshape(3, 32, 32, 3)
    parts = [(pixels[:k], np.arange(k)[:, None]) for k in (3, 2)]
    monkeypatch.setattr("keras.datasets.cifar10.load_data", lambda: parts)
    dataset = data.cifar10(split="test")
    np.testing.assert_array_equal(data.to_arrays(dataset)["image"], pixels[:2])
    assert dataset.class_names[9] == "truck"


def test_cifar10_without_a_network(monkeypatch):
    def fail():
        raise Exception("URL fetch failure")

    monkeypatch.setattr("keras.datasets.cifar10.load_data", fail)
    with pytest.raises(ConnectionError, match="URL fetch failure.*give a folder"):
        data.cifar10()
