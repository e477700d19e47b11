"""Updates of a table from TFRecord files: keys, labels, changed files, damaged and foreign records."""

import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_ssl as kssl
from keras_ssl.data import records
from keras_ssl.tables import FeatureTable, thumbnails, update
from keras_ssl.tables.records import update_records


@pytest.fixture
def images():
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (7, 20, 30, 3), np.uint8)


@pytest.fixture
def folder(images, tmp_path):
    """Seven images in two files, of the classes a and b."""
    data = kssl.data.from_array(images, np.arange(7) % 2)
    data.class_names = ["a", "b"]
    kssl.data.to_tfrecord(data, tmp_path / "records", shards=2, verbose=0)
    return tmp_path / "records"


def rows(table):
    return (
        FeatureTable(table)
        .columns(["id", "path", "label", "vector", "reason", "height"])
        .to_pylist()
    )


def test_rows_of_records(folder, images, identity, encoder, tmp_path):
    table = tmp_path / "x.lance"
    assert update_records(table, folder, identity, encoder) == (7, 0, 0, 0, 0)
    found = sorted(rows(table), key=lambda row: row["id"])
    assert [row["label"] for row in found] == [*"abababa"]
    assert {row["height"] for row in found} == {20}
    assert {row["path"].rpartition("#")[0] for row in found} == set(
        map(str, folder.glob("*.tfrecord"))
    )
    for row, image in zip(found, images, strict=True):
        # The vector is that of the image, and so is the thumbnail, which needs no TensorFlow.
        content = tf.io.encode_png(image).numpy()
        ((_, vector),) = encoder.files([({"path": ""}, content)])
        np.testing.assert_array_equal(row["vector"], vector)
        np.testing.assert_array_equal(thumbnails.thumbnail(row["path"]), image)

    encoder.encoded.clear()
    for file in folder.glob("*.tfrecord"):
        os.utime(file, ns=(1, 1))  # read again, but not encoded
    assert update_records(table, folder, identity, encoder) == (0, 0, 0, 7, 0)
    assert update_records(table, folder, identity, encoder) == (0, 0, 0, 7, 0)
    assert encoder.encoded == []


def test_changed_and_damaged_records(folder, identity, encoder, tmp_path):
    table = tmp_path / "x.lance"
    update_records(table, folder, identity, encoder)
    first, second = sorted(folder.glob("*.tfrecord"))
    content = bytearray(first.read_bytes())
    content[60] ^= 1  # in the data of the first record, whose checksum is wrong now
    first.write_bytes(content)
    second.unlink()
    (folder / "pictures.json").unlink()
    os.utime(first, ns=(1, 1))
    number = sum(str(first) in row["path"] for row in rows(table))
    counts = update_records(table, folder, identity, encoder)
    assert counts == (0, 1, 7 - number, number - 1, 1)
    reasons = [row["reason"] for row in rows(table) if row["vector"] is None]
    assert reasons == ["a damaged record, or none with one image in 'image'"]
    assert update_records(table, folder, identity, encoder) == (0, 0, 0, number, 1)


def test_other_labels_are_taken_over(images, identity, encoder, tmp_path):
    """Also those that are no class: -1 is one without a label in many data sets."""
    table, folder = tmp_path / "x.lance", tmp_path / "records"
    for labels in ([0, 1, 1, 0, 0, 1, 1], [1, 0, 1, 1, 0, 5, 0]):
        shutil.rmtree(folder, ignore_errors=True)
        data = kssl.data.from_array(images, np.array(labels))
        data.class_names = ["a", "b"]
        kssl.data.to_tfrecord(data, folder, shards=1, verbose=0)
        encoder.encoded.clear()
        update_records(table, folder, identity, encoder)
    assert encoder.encoded == []
    found = sorted(rows(table), key=lambda row: int(row["path"].rpartition("#")[2]))
    assert [row["label"] for row in found] == ["b", "a", "b", "b", "a", "5", "a"]


def test_what_cannot_be_read_for_the_moment(folder, identity, encoder, tmp_path, monkeypatch):
    table = tmp_path / "x.lance"
    update_records(table, folder, identity, encoder)
    before = rows(table)
    for file in folder.glob("*.tfrecord"):
        os.utime(file, ns=(1, 1))

    def away(*_):
        raise tf.errors.UnknownError(None, None, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(records, "read", away)
        assert update_records(table, folder, identity, encoder) == (0, 0, 0, 7, 0)
        with pytest.raises(ValueError, match="Input/output error"):
            update_records(tmp_path / "y.lance", folder, identity, encoder)
    assert rows(table) == before


def test_images_and_records_side_by_side_keep_their_rows(folder, images, identity, encoder):
    """A folder with images above one of records, and records above records."""
    above, table = folder.parent, folder.parent / "x.lance"
    update_records(table, folder, identity, encoder)
    Image.fromarray(images[0]).save(above / "a.png")
    assert update.update(table, above, identity, encoder) == (1, 0, 0, 0, 0)
    shutil.copy(folder / "pictures-00000-of-00002.tfrecord", above / "b.tfrecord")
    counts = update_records(table, above, identity, encoder)
    assert counts.new > 0
    assert counts.removed == 0
    assert FeatureTable(table).count() == 8 + counts.new


def test_thumbnails_of_records_with_other_columns(images, tmp_path):
    """Columns before the image, some with what other formats begin with."""
    png, other = (tf.io.encode_png(image).numpy() for image in images[:2])
    columns = {"caption": b"a BMW in Rome", "depth": other, "image": png, "zebra": other}
    features = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for name, value in columns.items()
    }
    features["boxes"] = tf.train.Feature(float_list=tf.train.FloatList(value=[0.5, 1e6]))
    features["label"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[3, 300]))
    example = tf.train.Example(features=tf.train.Features(feature=features))
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        writer.write(b"x" * 7)
        writer.write(example.SerializeToString(deterministic=True))
    found = thumbnails.thumbnail(f"{tmp_path}/a.tfrecord#23")
    np.testing.assert_array_equal(found, images[0])


def test_records_without_images(identity, encoder, tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        writer.write(tf.train.Example().SerializeToString())
        writer.write(b"\xff\xff\xff")
    with pytest.raises(
        ValueError,
        match=r"none of 2 records in '.*' is a readable image \(first: '.*/a.tfrecord#0'",
    ):
        update_records(tmp_path / "x.lance", tmp_path, identity, encoder)
    assert not (tmp_path / "x.lance").exists()
    assert thumbnails.thumbnail(f"{tmp_path}/a.tfrecord#0") is None
    assert thumbnails.thumbnail(f"{tmp_path}/none.tfrecord#0") is None
