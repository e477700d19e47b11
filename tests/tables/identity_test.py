"""Which features may be in one table."""

import shutil

import pytest

from keras_ssl.tables.identity import Identity, of_model


def test_a_model_is_its_weights_wherever_they_are(exported, task, tmp_path):
    first = of_model(exported)
    assert first[:2] == ("rotation_digits", 1)
    assert of_model(exported / "1") == first
    shutil.copytree(exported / "1", tmp_path / "renamed" / "7")
    moved = of_model(tmp_path / "renamed")
    assert moved[:2] == ("renamed", 7)
    assert first.difference(moved) is None
    with open(next((tmp_path / "renamed" / "7" / "variables").glob("*data*")), "r+b") as file:
        file.seek(40)
        file.write(b"\1\2\3\4")
    assert first.difference(of_model(tmp_path / "renamed")) == (
        "of the model rotation_digits version 1, not of renamed version 7"
    )
    task.save(tmp_path / "task.keras")
    assert of_model(tmp_path / "task.keras")[:2] == ("task.keras", None)


def test_a_server_knows_name_and_version_only():
    here, there = Identity("m", 2, "ab"), Identity("m", 2)
    assert here.difference(there) is None
    assert there.difference(here) is None
    assert here.difference(Identity("m", 3)) == "of the model m version 2, not of m version 3"
    assert here.difference(Identity("n", 2)) == "of the model m version 2, not of n version 2"
    assert here.difference(here._replace(sha256="cd")).endswith("m version 2 with other weights")


def test_pooling_is_a_part_of_it():
    images = Identity("m", 2, "ab")
    mean, concat = images.with_clips(4, 2, "mean"), images.with_clips(4, 2, "concat")
    assert mean.difference(concat) == (
        "of clips of 4 frames with stride 2, pooled by mean, not of clips of 4 frames with stride 2, "
        "pooled by concat"
    )
    assert images.difference(mean).startswith("of images, not of clips")
    assert mean.difference(images.with_clips(4, 1, "mean")) is not None
    # Of a single frame there is nothing to pool.
    assert images.with_clips(1, 3, "mean") == images.with_clips(1, 3, "concat")


def test_it_survives_the_metadata_of_a_table():
    identity = Identity("mödel", 2, "ab", 4, 2, "mean")
    assert Identity.from_json(identity.to_json()) == identity


def test_folders_that_are_no_export(tmp_path):
    with pytest.raises(ValueError, match=r"there is no export in .*give a folder"):
        of_model(tmp_path)
