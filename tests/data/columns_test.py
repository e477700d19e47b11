"""Random access: parts of a dataset load only their own rows."""

import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl import data
from keras_ssl.data.columns import fingerprint


def test_a_subset_loads_only_its_own_rows(folder):
    dataset = data.from_folder(folder, size=8, check=False)
    for name in dataset.paths[::2]:
        open(name, "w").close()  # loading these fails
    part = data.subset(dataset, range(1, 8, 2))
    assert data.to_arrays(part)["id"].tolist() == [1, 3, 5, 7]
    assert part.class_names == ["cat", "dog", "eel"]
    assert data.to_arrays(data.subset(part, [0, 3]))["id"].tolist() == [1, 7]
    stream = data.subset(data.from_array(np.zeros((5, 4, 4))).map(dict), [0, 4])
    assert int(stream.cardinality()) == 2
    assert data.to_arrays(stream)["id"].tolist() == [0, 4]


@pytest.fixture(params=[True, False], ids=["random access", "stream"])
def five(request):
    rows = data.from_array(np.zeros((5, 4, 4)))
    return rows if request.param else rows.map(dict)


@pytest.mark.parametrize(
    ("rows", "ids"),
    [([1, 3], [1, 3]), ([False, True, False, True, False], [1, 3]), (range(2), [0, 1]),
     (np.array([0, 4], np.uint8), [0, 4])],
)  # fmt: skip
def test_subset_by_indices_and_by_a_mask(five, rows, ids):
    assert data.to_arrays(data.subset(five, rows))["id"].tolist() == ids


def test_an_empty_subset_has_no_rows(five):
    assert int(data.subset(five, []).cardinality()) == 0
    assert int(data.subset(five, np.zeros(5, bool)).cardinality()) == 0


@pytest.mark.parametrize("rows", [[-1], [5], [0.5], 3, [[0, 1]], [True, False], ["a"]])
def test_subset_refuses(five, rows):
    with pytest.raises(ValueError, match=r"rows must be indices in 0\.\.4, or 5 bools, .* got"):
        data.subset(five, rows)


def test_a_stream_is_read_in_its_order():
    rows = data.from_array(np.zeros((5, 4, 4)))
    assert data.to_arrays(data.subset(rows, [3, 1, 1]))["id"].tolist() == [3, 1, 1]
    for wrong in ([3, 1], [1, 1]):
        with pytest.raises(ValueError, match="rows must increase in a dataset without random"):
            data.subset(rows.map(dict), wrong)


def test_fingerprint_of_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (250, 4, 4, 3), np.uint8)
    found = fingerprint(kssl.data.from_array(pixels))
    assert fingerprint(kssl.data.from_array(pixels, labels=np.arange(250))) == found
    for other in (255 - pixels, pixels[::-1], pixels.astype(np.float32)):
        assert fingerprint(kssl.data.from_array(other)) != found
    assert fingerprint(kssl.data.from_array(pixels).take(250)) is None


def test_fingerprint_of_files(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for i in range(3):
            png = tf.io.encode_png(np.full((4, 4, 3), i, np.uint8)).numpy()
            (tmp_path / folder / f"{i}.png").write_bytes(png)
    a, b = (kssl.data.from_folder(tmp_path / folder, 4) for folder in "ab")
    assert fingerprint(a) == fingerprint(b)  # the folder may be moved
    (tmp_path / "b" / "1.png").write_bytes(png + b"0")
    assert fingerprint(a) != fingerprint(b)
    (tmp_path / "b" / "1.png").unlink()
    fingerprint(b)
    (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "1b.png")
    assert fingerprint(kssl.data.from_folder(tmp_path / "a", 4)) != fingerprint(a)
