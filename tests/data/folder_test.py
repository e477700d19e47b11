"""Reading folders of image files, also of damaged ones."""

import re

import numpy as np
import pytest
import tensorflow as tf

from keras_ssl import data


def test_every_format_in_the_order_of_the_paths(folder):
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
    assert len(np.unique(arrays["image"][4].reshape(-1, 3), axis=0)) == 1  # the 1x1 image


@pytest.mark.parametrize("size", [0, (8, 0), (8, 8, 3), (8,), 8.5, (8, 8.0), "8", None, True])
def test_invalid_sizes(folder, size):
    words = f"size must be at least 1 pixel, an integer or (height, width), got {size!r}"
    with pytest.raises(ValueError, match=re.escape(words)):
        data.from_folder(folder, size)


@pytest.mark.parametrize("size", [np.int64(8), (np.int32(8), 8), [8, 8]])
def test_sizes_of_numpy(folder, size):
    assert data.from_folder(folder, size).element_spec["image"].shape == (8, 8, 3)


def test_images_outside_subfolders_have_no_classes(folder):
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


def test_without_check_unreadable_files_fail_on_loading(folder):
    (folder / "dog/a.jpg").write_text("hello")
    dataset = data.from_folder(folder, size=8, check=False)
    assert int(dataset.cardinality()) == len(dataset.paths) == 9
    bad = dataset.paths.index(str(folder / "dog/a.jpg"))
    loaded = data.to_arrays(dataset.ignore_errors())
    assert loaded["id"].tolist() == [i for i in range(9) if i != bad]
    assert dataset.columns["label"].numpy().tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    with pytest.raises(tf.errors.InvalidArgumentError):
        dataset.load_row({name: column[bad] for name, column in dataset.columns.items()})


def test_invalid_folders(tmp_path):
    with pytest.raises(ValueError, match=r"no folder '.*/nowhere'"):
        data.from_folder(tmp_path / "nowhere", size=8)
    with pytest.raises(ValueError, match=f"no images in '{tmp_path}'"):
        data.from_folder(tmp_path, size=8)
    (tmp_path / "a.jpg").write_text("text")
    with pytest.raises(ValueError, match="none of the 1 files.*a.jpg"):
        data.from_folder(tmp_path, size=8)
