"""Updates of a table from a folder: new, changed, deleted and unreadable files, kills, clips."""

import collections
import os
import shutil
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest

import keras_ssl as kssl
from keras_ssl.tables import FeatureTable, store, update
from keras_ssl.tables.clips import update_clips
from keras_ssl.tables.identity import Identity

# Encodes 25 files, of which the table gets 20, and is killed.
KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from conftest import ThumbnailEncoder
from keras_ssl.tables import update
from keras_ssl.tables.identity import Identity

class Killed(ThumbnailEncoder):
    def files(self, items):
        for item in super().files(items):
            if len(self.encoded) == 26:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item

update.FRAGMENT = 10
update.update("features.lance", "photos", Identity("rotation_photos", 1, "ab12"), Killed())
"""


@pytest.fixture
def photos(tmp_path, smooth_image, monkeypatch):
    """Folder of 8 images, five of them in subfolders, and a damaged one."""
    monkeypatch.chdir(tmp_path)
    for i in range(8):
        folder = tmp_path / "photos" / ("", "cats", "dogs/old")[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        smooth_image(i, 20 + i, 30).save(folder / f"{i}.png")
    (tmp_path / "photos" / "bad.jpg").write_text("text")
    return tmp_path / "photos"


def rows(
    path="features.lance", columns=("id", "path", "vector", "reason", "label", "height", "width")
):
    found = FeatureTable(path).columns(columns).to_pylist()
    return {row["path"].rpartition("/")[2]: row for row in found}


def test_rows_of_a_new_table(photos, identity, encoder, monkeypatch):
    monkeypatch.setattr(update, "FRAGMENT", 3)
    counts = update.update("features.lance", "photos", identity, encoder)
    assert counts == (9, 0, 0, 0, 1)
    assert str(counts) == "9 new, 0 changed, 0 removed, 0 unchanged, 1 unreadable"
    found = rows()
    assert sorted(row["id"] for row in found.values()) == list(range(9))
    assert found["bad.jpg"]["vector"] is None
    assert found["bad.jpg"]["reason"] == "no image"
    assert found["5.png"]["path"] == str(photos / "dogs" / "old" / "5.png")  # absolute
    assert [found[f"{i}.png"]["label"] for i in range(3)] == [None, "cats", "dogs"]
    assert (found["5.png"]["height"], found["5.png"]["width"]) == (25, 30)
    ((_, vector),) = encoder.files([({"path": ""}, (photos / "cats" / "4.png").read_bytes())])
    np.testing.assert_array_equal(found["4.png"]["vector"], vector)
    (models,) = {row["model"] for row in rows(columns=["path", "model"]).values()}
    assert models == "rotation_photos version 1"
    assert sorted(os.listdir()) == ["features.lance", "photos"]


def test_only_what_is_new_or_changed_is_encoded(photos, identity, encoder, smooth_image, tmp_path):
    def again():
        encoder.encoded.clear()
        counts = update.update("features.lance", photos, identity, encoder)
        return sorted(encoder.encoded), tuple(counts)

    again()
    before = rows()
    assert again() == ([], (0, 0, 0, 9, 1))

    (photos / "0.png").touch()  # another time stamp, the same content
    assert again() == ([], (0, 0, 0, 9, 1))
    with pytest.MonkeyPatch.context() as patch:  # which is read once
        patch.delattr(update.Path, "read_bytes")
        assert again() == ([], (0, 0, 0, 9, 1))
    assert rows() == before

    smooth_image(70, 44, 30).save(photos / "cats" / "1.png")  # changed
    smooth_image(71).save(photos / "bad.jpg")  # mended
    smooth_image(72).save(photos / "new.png")
    (photos / "dogs" / "old" / "2.png").unlink()
    (photos / "3.png").write_text("damaged")
    expected = (["1.png", "3.png", "bad.jpg", "new.png"], (1, 3, 1, 5, 1))
    assert again() == expected
    after = rows()
    assert after.keys() == before.keys() - {"2.png"} | {"new.png"}
    assert len({row["id"] for row in after.values()}) == 9
    for name, row in after.items():
        same = name not in ("1.png", "3.png", "bad.jpg", "new.png")
        assert name == "new.png" or row["id"] == before[name]["id"]
        assert name == "new.png" or (row["vector"] == before[name]["vector"]) == same, name
    assert (after["1.png"]["height"], after["bad.jpg"]["reason"], after["3.png"]["reason"]) == (
        44, None, "no image"
    )  # fmt: skip
    assert again() == ([], (0, 0, 0, 9, 1))

    # A second folder is added, and takes nothing away from the first.
    shutil.copytree(photos / "cats", tmp_path / "photos2")
    counts = update.update("features.lance", "photos2", identity, encoder)
    assert counts == (3, 0, 0, 0, 1)
    assert FeatureTable("features.lance").count() == 11


def test_what_cannot_be_read_for_the_moment_keeps_its_row(photos, identity, encoder, monkeypatch):
    update.update("features.lance", "photos", identity, encoder)
    before = rows()

    for name in ("1.png", "2.png"):
        path = next(photos.rglob(name))
        os.utime(path, ns=(1, 1))  # it is read again
    read = update.Path.read_bytes

    def away(path):
        if path.name == "1.png":
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr(update.Path, "read_bytes", away)
    counts = update.update("features.lance", "photos", identity, encoder)
    assert (counts.new, counts.changed, counts.removed, counts.unchanged) == (0, 0, 0, 9)
    assert rows() == before


def test_rows_of_folders_that_cannot_be_read_stay(photos, identity, encoder, monkeypatch):
    update.update("features.lance", "photos", identity, encoder)
    shutil.move(photos / "cats", photos / "moved")
    stat = os.stat

    def denied(path, *arguments, **more):
        if "cats" in str(path):
            raise PermissionError(13, "Permission denied")
        return stat(path, *arguments, **more)

    monkeypatch.setattr(os, "stat", denied)
    counts = update.update("features.lance", "photos", identity, encoder)
    assert (counts.new, counts.removed) == (3, 0)
    monkeypatch.undo()
    monkeypatch.chdir(photos.parent)
    assert update.update("features.lance", "photos", identity, encoder).removed == 3


def test_names_that_are_not_utf8(photos, identity, encoder, smooth_image):
    smooth_image(9, 20, 30).save(os.fsencode(photos) + b"/caf\xe9.png", format="png")
    with pytest.warns(
        UserWarning, match=r"caf\\udce9.png' is skipped, since its name is not UTF-8"
    ):
        counts = update.update("features.lance", "photos", identity, encoder)
    assert counts.new == 9


def test_a_killed_update_continues(photos, identity, encoder, smooth_image, monkeypatch):
    for i in range(100, 130):
        smooth_image(i, 8, 9).save(photos / f"{i}.png")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run(
        [sys.executable, "-c", KILLED, os.path.dirname(__file__)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert child.returncode == -signal.SIGKILL, child.stderr
    committed = rows()
    assert len(committed) == 20
    counts = update.update("features.lance", "photos", identity, encoder)
    assert counts == (19, 0, 0, 20, 1)
    assert not set(encoder.encoded) & set(committed)
    table = FeatureTable("features.lance")
    paths = collections.Counter(table.columns(["path"])["path"].to_pylist())
    assert set(paths.values()) == {1}
    assert len(paths) == 39
    assert sorted(table.columns(["id"])["id"].to_pylist()) == list(range(39))


@pytest.mark.parametrize("method", ["add", "replace", "remove", "create"])
def test_an_error_at_any_commit(photos, identity, encoder, smooth_image, monkeypatch, method):
    """Each commit fails in turn, before or after it: afterwards the same call completes the table."""
    if method != "create":
        update.update("features.lance", photos, identity, encoder)
    smooth_image(70).save(photos / "cats" / "1.png")
    smooth_image(72).save(photos / "new.png")
    (photos / "0.png").unlink()
    original = getattr(FeatureTable, method)
    for first in (True, False):

        def failing(*arguments, first=first):
            if not first:
                original(*arguments)
            raise OSError("no space left")

        with monkeypatch.context() as patch:
            patch.setattr(FeatureTable, method, failing)
            with pytest.raises(OSError, match="no space left"):
                update.update("features.lance", photos, identity, encoder)
        if not first:
            break
    update.update("features.lance", photos, identity, encoder)
    paths = FeatureTable("features.lance").columns(["path"])["path"].to_pylist()
    assert sorted(p.rpartition("/")[2] for p in paths) == [
        *(f"{i}.png" for i in range(1, 8)), "bad.jpg", "new.png"
    ]  # fmt: skip


def test_a_table_of_another_model_is_not_touched(photos, identity, encoder):
    update.update("features.lance", photos, identity, encoder)
    version = FeatureTable("features.lance").lance.version
    for other in (
        identity._replace(sha256="cd34"), Identity("simclr_photos", 1, "cd34"), Identity("simclr_photos", 1),
        identity.with_clips(4, 1, "mean"),
    ):  # fmt: skip
        with pytest.raises(
            ValueError, match=r"^'features.lance' holds features of .*, not of .*: give an"
        ):
            update.update("features.lance", photos, other, encoder)
    assert FeatureTable("features.lance").lance.version == version


def test_the_version_of_a_server_is_that_of_the_table(photos, encoder):
    pinned = []
    encoder.pin = pinned.append
    encoder.version = 5  # of the first response
    update.update("features.lance", photos, Identity("m"), encoder)
    assert FeatureTable("features.lance").identity == Identity("m", 5)
    assert pinned == []
    encoder.version = None
    update.update("features.lance", photos, Identity("m"), encoder)
    assert pinned == [5]
    with pytest.raises(ValueError, match="model m version 5, not of m version 6"):
        update.update("features.lance", photos, Identity("m", 6), encoder)


def test_no_readable_image(photos, identity, encoder, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.png").write_text("text")
    with pytest.raises(
        ValueError, match=r"none of 1 files in 'texts' is a readable image \(first: .*a.png"
    ):
        update.update("features.lance", "texts", identity, encoder)
    assert not store.exists("features.lance")
    with pytest.raises(ValueError, match="no folder 'nowhere'"):
        update.update("features.lance", "nowhere", identity, encoder)


def test_features_that_are_not_finite(photos, identity, encoder):
    files = encoder.files

    def with_nan(items):
        for row, vector in files(items):
            yield row, vector * np.nan if row["path"].endswith("4.png") else vector

    encoder.files = with_nan
    update.update("features.lance", photos, identity, encoder)
    assert rows()["4.png"]["reason"] == "the features are not finite"


@pytest.fixture
def videos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos" / "x").mkdir(parents=True)
    for name in ("a.avi", "x/b.avi"):
        write_video(tmp_path / "videos" / name, 12)
    (tmp_path / "videos" / "cut.avi").write_bytes(b"RIFF")
    return tmp_path / "videos"


def write_video(path, frames):
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 25, (48, 40)
    )
    ramp = np.add.outer(np.arange(40), 3 * np.arange(48))[..., None]
    for k in range(frames):
        writer.write((ramp + 4 * k + [0, 20, 40]).astype(np.uint8))
    writer.release()


def test_clips(videos, identity, encoder):
    def again(pool="mean"):
        encoder.encoded.clear()
        with pytest.warns(UserWarning, match="skipped"):
            clips = kssl.data.from_videos("videos", 3, 1, 16, step=3)
        counts = update_clips(
            "clips.lance", "videos", clips, identity.with_clips(3, 1, pool), encoder
        )
        return len(encoder.encoded), tuple(counts)

    assert again() == (8, (9, 0, 0, 0, 1))
    table = FeatureTable("clips.lance")
    assert table.dimensions == 5
    columns = ["path", "time", "label", "height", "width", "reason"]
    found = sorted(table.columns(columns).to_pylist(), key=lambda row: (row["path"], row["time"]))
    assert [round(row["time"], 2) for row in found[:4]] == [0.04, 0.16, 0.28, 0.4]
    assert [row["label"] for row in found] == [None] * 5 + ["x"] * 4
    assert (found[0]["height"], found[0]["width"]) == (40, 48)
    assert found[4]["path"] == str(videos / "cut.avi")
    assert "no clip" in found[4]["reason"]
    assert again() == (0, (0, 0, 0, 9, 1))
    with pytest.raises(ValueError, match="pooled by mean, not of clips"):
        again("concat")

    write_video(videos / "a.avi", 6)  # shorter: two of its four clips go
    (videos / "cut.avi").unlink()
    clips = kssl.data.from_videos("videos", 3, 1, 16, step=3)
    counts = update_clips(
        "clips.lance", "videos", clips, identity.with_clips(3, 1, "mean"), encoder
    )
    assert counts == (2, 0, 5, 4, 0)
    assert FeatureTable("clips.lance").count("true") == 6


def test_pooling_of_clips(videos, identity, encoder):
    for pool in ("mean", "concat"):
        with pytest.warns(UserWarning, match="skipped"):
            clips = kssl.data.from_videos("videos", 3, 1, 16, step=3)
        path = f"{pool}.lance"
        update_clips(path, "videos", clips, identity.with_clips(3, 1, pool), encoder)
        first = next(iter(clips))["frames"].numpy().reshape(3, -1)[:, :5].astype(np.float32)
        expected = first.mean(axis=0) if pool == "mean" else first.ravel()
        _, vectors = FeatureTable(path).vectors()
        assert min(np.abs(vectors - expected).max(axis=1)) == 0
