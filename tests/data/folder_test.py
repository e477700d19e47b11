"""Reading folders of image files, also of damaged ones."""

import os
import re
import socket

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


def test_links_to_files_and_folders_are_followed(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (folder / "cat").rename(outside / "animals")
    (folder / "cat").symlink_to(outside / "animals")
    (folder / "dog/link.JPG").symlink_to(outside / "animals/a.JPG")
    dataset = data.from_folder(folder, size=8)
    names = [path.removeprefix(f"{folder}/") for path in dataset.paths]
    assert names == [
        "cat/a.JPG", "cat/deep/er/b.jpeg", "cat/gray.png", "dog/alpha.png", "dog/link.JPG",
        "dog/one.png", "dog/p.gif", "eel/16.png", "eel/x.bmp",
    ]  # fmt: skip
    arrays = data.to_arrays(dataset)
    np.testing.assert_array_equal(arrays["image"][0], arrays["image"][4])


def test_a_folder_is_read_once_however_many_links_lead_to_it(folder):
    files = data.folder.image_files(folder)
    (folder / "cat/deep/loop").symlink_to(folder)
    (folder / "dog/up").symlink_to("../dog")
    (folder / "alias").symlink_to(
        "cat"
    )  # sorts before the folder, which keeps its name nevertheless
    (folder / "self").symlink_to("self")
    with pytest.warns(UserWarning, match="skipped 3 names") as record:
        assert data.folder.image_files(folder) == files
    assert len(record) == 1
    assert "alias, cat/deep/loop, dog/up" in str(record[0].message)


def test_links_of_two_folders_to_each_other_end(folder):
    (folder / "cat/dogs").symlink_to(folder / "dog")
    (folder / "dog/cats").symlink_to(folder / "cat")
    with pytest.warns(UserWarning, match="skipped 2 names .*: cat/dogs, dog/cats"):
        assert len(data.folder.image_files(folder)) == 8


def test_names_of_images_that_are_no_files_are_skipped(folder, monkeypatch):
    files = data.folder.image_files(folder)
    os.mkfifo(folder / "cat/fifo.jpg")
    (folder / "cat/linked.jpg").symlink_to("fifo.jpg")
    (folder / "dog/device.png").symlink_to(os.devnull)
    (folder / "dog/broken.png").symlink_to("nowhere.png")
    (folder / "dog/self.png").symlink_to("self.png")
    monkeypatch.chdir(folder)  # the path of a socket has at most 107 characters
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("dog/socket.gif")
        with pytest.warns(UserWarning, match="skipped 6 names") as record:
            dataset = data.from_folder(folder, size=8)
    assert dataset.paths == files
    assert len(record) == 1
    for name in (
        "cat/fifo.jpg", "cat/linked.jpg", "dog/broken.png", "dog/device.png", "dog/self.png",
        "dog/socket.gif",
    ):  # fmt: skip
        assert name in str(record[0].message)


@pytest.mark.parametrize("function", ["scandir", "stat"])
def test_folders_that_may_not_be_read_are_named(folder, monkeypatch, function):
    """Neither their listing, nor, where the folder above them may not be searched, their status."""
    original, denied = getattr(os, function), str(folder / "cat" / "deep")

    def refuse(path, *args, **kwargs):
        if os.fspath(path) == denied:  # chmod has no effect for root
            raise PermissionError(13, "Permission denied", denied)
        return original(path, *args, **kwargs)

    monkeypatch.setattr(os, function, refuse)
    with pytest.warns(UserWarning, match="skipped 1 names .* without permission .*: cat/deep$"):
        dataset = data.from_folder(folder, size=8)
    assert len(dataset.paths) == 7
