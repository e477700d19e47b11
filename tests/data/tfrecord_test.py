"""TFRecord files: lossless, resumed after a kill, damaged, and foreign ones."""

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_ssl as kssl
from keras_ssl.data import from_tfrecord, to_arrays, to_tfrecord
from keras_ssl.data.named import load_dataset
from keras_ssl.data.records import scan


@pytest.fixture(scope="module")
def images(noise):
    rows = kssl.data.from_array(noise[:11, :9, :7], range(50, 61))
    rows.class_names = ["ann", "bob"]
    return rows


@pytest.fixture
def written(images, tmp_path):
    return [Path(file) for file in to_tfrecord(images, tmp_path / "out", 3, verbose=0)]


def readable(dataset):
    """Ids of the records that can be loaded."""
    return [row["id"] for row in dataset.ignore_errors().as_numpy_iterator()]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def test_every_column_is_stored_without_loss(tmp_path):
    rng = np.random.default_rng(0)
    columns = {
        "image": rng.integers(0, 256, (7, 5, 6, 3), np.uint8),
        "id": np.array([9, 2, 30, 4, 55, 6, 7]),
        "label": np.arange(7) * 2**40,
        "descriptor": rng.normal(size=(7, 128)).astype(np.float32),
        "name": np.array([[b"a", b""], [b"\xff\x00", b"b"]] * 3 + [[b"c", b"d"]]),
        "frames": rng.integers(0, 256, (7, 2, 3, 3, 3), np.uint8),
        "depth": rng.normal(size=(7, 4, 3)),
    }
    for kind in ("uint8", "float32"):
        columns["image"] = columns["image"].astype(kind) / (1 if kind == "uint8" else 2)
        columns["image"] = columns["image"].astype(kind)
        images = tf.data.Dataset.from_tensor_slices(columns)
        images.class_names = ["x", "ü"]
        files = to_tfrecord(images, tmp_path / kind, shards=3, verbose=0)
        assert [Path(file).name for file in files] == [
            f"pictures-0000{i}-of-00003.tfrecord" for i in range(3)
        ]
        assert [len(scan(file)[0]) for file in files] == [2, 2, 3]
        copy = from_tfrecord(tmp_path / kind)
        assert copy.class_names == ["x", "ü"]
        assert copy.files == files
        assert copy.element_spec == images.element_spec
        found = to_arrays(copy)
        for name, column in columns.items():
            assert found[name].dtype == column.dtype or name == "name"
            np.testing.assert_array_equal(found[name], column)
    with pytest.raises(ValueError, match=r"size must be None .* float32 of \[5, 6, 3\], got 4"):
        from_tfrecord(tmp_path / "float32", size=4)
    # The float images are half the uint8 ones.
    expected = kssl.images.resize(tf.cast(found["image"][0] * 2, tf.uint8), 3, 4)
    first = next(iter(from_tfrecord(tmp_path / "uint8", size=(3, 4))))["image"]
    np.testing.assert_array_equal(first, expected)
    assert "label" not in from_tfrecord(tmp_path / "uint8", label=None).element_spec


def test_frames_and_depth_are_stored_without_loss(noise, tmp_path):
    frames = np.stack([noise[:6], noise[6:12], noise[12:18]], axis=1)
    depth = noise[:6, ..., :1].astype(np.float32) / 7
    depth[:, :9] = np.nan
    depth[2] = -np.inf
    images = kssl.data.from_array(frames[:, 1], frames=frames, depth=depth)
    to_tfrecord(images, tmp_path, shards=2, verbose=0)
    copy = from_tfrecord(tmp_path)
    assert copy.element_spec == images.element_spec
    found = to_arrays(copy)
    for name, column in (("frames", frames), ("depth", depth), ("image", frames[:, 1])):
        assert found[name].tobytes() == column.tobytes()
    with pytest.raises(ValueError, match="size must be None .* 'frames' has the pixels .* got 16"):
        from_tfrecord(tmp_path, size=16)
    assert from_tfrecord(tmp_path, size=32).element_spec == images.element_spec


def test_records_are_loaded_by_index(images, written):
    dataset = from_tfrecord(written[0].parent)
    rows = {name: tf.gather(column, [10, 0, 7]) for name, column in dataset.columns.items()}
    loaded = tf.data.Dataset.from_tensor_slices(rows).map(dataset.load_row, tf.data.AUTOTUNE)
    assert to_arrays(loaded)["id"].tolist() == [10, 0, 7]
    np.testing.assert_array_equal(
        to_arrays(loaded)["image"], to_arrays(images)["image"][[10, 0, 7]]
    )


def test_only_damaged_records_are_lost(written):
    folder = written[0].parent
    offsets, lengths, _ = scan(written[1])
    good = bytearray(written[1].read_bytes())

    for place in (offsets[1] + 2, offsets[1] + 9):  # a header: its length, its checksum
        bad = bytearray(good)
        bad[place] ^= 16
        written[1].write_bytes(bad)
        with pytest.warns(UserWarning, match="skipped 1 damaged parts") as warned:
            dataset = from_tfrecord(folder)
        assert len(warned) == 1
        assert f"{written[1].name} ({lengths[1] + 16} bytes at {offsets[1]})" in str(
            warned[0].message
        )
        assert readable(dataset) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]

    bad = bytearray(good)
    bad[offsets[2] + 12 + lengths[2] // 2] ^= 1  # the data, detected by their checksum
    written[1].write_bytes(bad)
    dataset = from_tfrecord(folder)
    assert int(dataset.cardinality()) == 11
    assert readable(dataset) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]

    written[1].write_bytes(good[:-30])
    with pytest.warns(UserWarning, match=written[1].name):
        assert readable(from_tfrecord(folder)) == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10]


RUN = """
    import os, signal, sys
    import numpy as np
    import keras_ssl as kssl

    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    images = kssl.data.from_array(pixels, range(40))
    if sys.argv[2] == "kill":
        from keras_ssl.data import schema
        original, calls = schema.example, []
        def example(row):
            calls.append(row)
            if len(calls) == 25:  # in the middle of the third of four files
                os.kill(os.getpid(), signal.SIGKILL)
            return original(row)
        schema.example = example
    kssl.data.to_tfrecord(images, sys.argv[1], shards=4, verbose=0)
"""


def test_a_killed_writer_resumes(tmp_path):
    images = kssl.data.from_array(
        np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8), range(40)
    )
    to_tfrecord(images, tmp_path / "whole", 4, verbose=0)
    killed = tmp_path / "killed"
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(RUN), killed, "kill"])
    assert run.returncode == -signal.SIGKILL
    names = set(contents(killed))
    assert {name for name in names if name.endswith(".tfrecord")} == {
        "pictures-00000-of-00004.tfrecord", "pictures-00001-of-00004.tfrecord",
        ".new-pictures-00002-of-00004.tfrecord",
    }  # fmt: skip
    with pytest.raises(ValueError, match="2 of 4 files: call to_tfrecord again"):
        from_tfrecord(killed)
    before = (killed / "pictures-00001-of-00004.tfrecord").stat().st_mtime_ns
    to_tfrecord(images, killed, verbose=0)  # resumes with its number of files
    assert (killed / "pictures-00001-of-00004.tfrecord").stat().st_mtime_ns == before
    assert contents(killed) == contents(tmp_path / "whole")
    (killed / "pictures-00001-of-00004.tfrecord").unlink()
    stream = images.map(lambda row: row)  # no random access: the rows of existing files are skipped
    to_tfrecord(stream, killed, verbose=0)
    assert contents(killed) == contents(tmp_path / "whole")


def test_shows_progress(images, tmp_path, capfd):
    to_tfrecord(images, tmp_path / "out")
    assert "11/11" in capfd.readouterr().out


def test_invalid_datasets_and_folders(images, written, tmp_path):
    folder, before = written[0].parent, contents(written[0].parent)
    other = kssl.data.from_array(255 - to_arrays(images)["image"], range(50, 61))
    other.class_names = images.class_names
    for wrong, shards, words in (
        (images, 4, "shards 3 instead of 4: give an empty folder"),
        (images.take(10), 3, "pictures 11 instead of 10"),
        (other, 3, "its first image differs"),
        (images, 12, r"shards must be in 1..11"),
        (images.repeat(), 3, "known length"),
        (images.batch(2), 3, r"fixed shapes, 'image' is"),
        (images.map(lambda row: {"id": row["id"]}), 3, "with `image`"),
    ):
        with pytest.raises(ValueError, match=words):
            to_tfrecord(wrong, folder, shards, verbose=0)
    assert contents(folder) == before
    (folder / "pictures.json").unlink()
    with pytest.raises(ValueError, match="holds other TFRecord files"):
        to_tfrecord(images, folder, verbose=0)
    with pytest.raises(ValueError, match="is a file"):
        to_tfrecord(images, written[0], verbose=0)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "photos/a.png")
    (tmp_path / "photos/b.png").write_bytes(b"no image")
    unchecked = kssl.data.from_folder(tmp_path / "photos", 8, check=False)
    with pytest.raises(ValueError, match="the one at index 1 .*check=True"):
        to_tfrecord(unchecked, tmp_path / "new", verbose=0)
    assert set(contents(tmp_path / "new")) == {"pictures.json"}  # to resume


def foreign(path, rows):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in rows:
            example = tf.train.Example()
            for name, value in row.items():
                kind = "bytes_list" if isinstance(value, bytes) else "int64_list"
                getattr(example.features.feature[name], kind).value.append(value)
            writer.write(example.SerializeToString())


def test_foreign_files(tmp_path, noise):
    jpegs = [tf.io.encode_jpeg(noise[i, : 20 + i]).numpy() for i in (0, 0, 3)]
    rows = [
        {"image/encoded": jpeg, "image/class/label": 7 + i, "image/filename": b"x" * i}
        for i, jpeg in enumerate(jpegs)
    ]
    foreign(tmp_path / "train-00000-of-00002", rows[:2])
    foreign(tmp_path / "train-00001-of-00002", rows[2:])
    (tmp_path / "notes.txt").write_text("no records")
    dataset = from_tfrecord(tmp_path, 16, "image/encoded", "image/class/label")
    found = to_arrays(dataset)
    assert sorted(found) == ["id", "image", "label"]
    assert (found["id"].tolist(), found["label"].tolist()) == ([0, 1, 2], [7, 8, 9])
    for image, jpeg in zip(found["image"], jpegs, strict=True):
        np.testing.assert_array_equal(
            image, kssl.images.resize(kssl.ops.decode.decode(jpeg), 16, 16)
        )
    dataset = from_tfrecord(tmp_path, None, "image/encoded")
    assert dataset.element_spec["image"].shape == (20, 32, 3)
    assert readable(dataset) == [0, 1]
    with pytest.raises(tf.errors.InvalidArgumentError, match="differ in size: give a size"):
        to_arrays(dataset)
    for arguments, words in (
        ({}, "image must name .* got 'image'; they have image/class/label, image/encoded"),
        ({"image": "image/filename"}, "none of the 3 records"),
        ({"image": "image/encoded", "label": "class"}, "label must name .* got 'class'"),
        ({"image": "image/encoded", "label": "image/filename"}, "one int64, 'image/filename'"),
        ({"image": "image/encoded", "size": 0}, "size must be at least 1 pixel"),
    ):
        with pytest.raises(ValueError, match=words):
            from_tfrecord(tmp_path, **arguments)


def test_folders_that_cannot_be_read(written, tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match="there is none in"):
            from_tfrecord(path)
    folder = written[0].parent
    with pytest.raises(ValueError, match="label must name .* they have id, image, label"):
        from_tfrecord(folder, label="class")
    (folder / "pictures.json").write_text(json.dumps(["no such file"]))
    with pytest.raises(ValueError, match="not what to_tfrecord wrote"):
        from_tfrecord(folder)
    (tmp_path / "zip").mkdir()
    with tf.io.TFRecordWriter(str(tmp_path / "zip/a.tfrecord"), "GZIP") as writer:
        writer.write(b"x" * 100)
    with pytest.raises(ValueError, match="none of the 1 TFRecord files .* compressed"):
        from_tfrecord(tmp_path / "zip")


def test_named_reads_records_and_splits_them(images, written):
    train, test = load_dataset(str(written[0].parent), (9, 7), split=True)
    assert to_arrays(test)["id"].tolist() == [4, 9]
    assert to_arrays(train)["id"].tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 10]
    assert len(test.columns["offset"]) == 2  # the others are not even read
    assert train.class_names == images.class_names
