"""extract to a table, search, duplicates, index: as a user would, and wrong input."""

import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

import keras_ssl as kssl
from keras_ssl import serving
from keras_ssl.tables import FeatureTable
from keras_ssl.tables.identity import Identity


@pytest.fixture
def written(tmp_path):
    """Path of a table of 12 rows, of which 0 and 7 are near-duplicates."""
    vectors = np.eye(12, dtype=np.float32) + 0.1
    vectors[7] = vectors[0] * 2
    table = FeatureTable.create(tmp_path / "ready.lance", Identity("m", 1, "ab"), 12)
    table.add([
        {"id": i, "path": f"/gone/{i}.jpg", "vector": vector, "label": "ab"[i % 2]}
        for i, vector in enumerate(vectors)
    ])  # fmt: skip
    return tmp_path / "ready.lance"


def test_from_images_to_matches(command, photos, exported, tmp_path):
    (photos / "red" / "text.jpg").write_text("text")
    Image.open(photos / "red" / "3.png").save(photos / "copy.bmp")
    export = ("--model", exported)
    code, out, err = command("extract", photos, "--out", "features.lance", *export)
    assert (code, err) == (0, "")
    assert out == "features.lance: 22 new, 0 changed, 0 removed, 0 unchanged, 1 unreadable\n"
    table = FeatureTable("features.lance")
    rows = {
        row["path"]: row for row in table.columns(["path", "vector", "label", "height"]).to_pylist()
    }
    assert rows[str(photos / "red" / "0.png")]["label"] == "red"
    assert rows[str(photos / "red" / "0.png")]["height"] == 20

    # The server has the same version of the model, so there is nothing to do.
    with serving.Server(exported.parent) as server:
        served = ("--model", "rotation_digits", "--server", f"localhost:{server.port}")
        code, out, err = command("extract", photos, "--out", "features.lance", *served)
        assert (code, err) == (0, "")
        assert "0 new, 0 changed, 0 removed, 22 unchanged, 1 unreadable" in out
        code, out, err = command("extract", photos, "--out", "served.lance", *served)
        assert code == 0, err
        assert "22 new, 0 changed, 0 removed, 0 unchanged, 1 unreadable" in out
    there = FeatureTable("served.lance")
    assert there.identity == Identity("rotation_digits", 1)
    served = {row["path"]: row["vector"] for row in there.columns(["path", "vector"]).to_pylist()}
    assert served.pop(str(photos / "red" / "text.jpg")) is None
    for path, vector in served.items():
        np.testing.assert_allclose(vector, rows[path]["vector"], rtol=1e-4, atol=1e-4)

    # An image of the table without a model, and another one with it.
    code, out, _ = command(
        "search", photos / "red" / "3.png", "--table", "features.lance", "--number", 3
    )
    assert code == 0
    assert out.splitlines()[1].startswith("1.0000")
    Image.open(photos / "blue" / "5.png").save("query.bmp")
    search = ("search", "query.bmp", photos / "blue" / "6.png", "--table", "features.lance")
    code, _, err = command(*search)
    assert code == 2
    assert "model is missing: 'query.bmp' is not in" in err
    code, out, err = command(*search, *export, "--number", 2, "--picture", "found.png")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "query.bmp:"
    assert lines[2].split() == ["1.0000", str(photos / "blue" / "5.png")]
    assert lines[-1] == "wrote found.png"
    assert Image.open("found.png").size[0] > 300

    code, out, err = command(
        "duplicates", "features.lance", "--above", 0.9999, "--picture", "groups.pdf"
    )
    assert code == 0, err
    assert str(photos / "copy.bmp") in out
    assert os.path.getsize("groups.pdf") > 1000


def test_clips_of_videos(command, exported, tmp_path):
    for video in ("a", "b"):
        (tmp_path / "videos" / video).mkdir(parents=True)
        for k in range(6):
            pixels = np.full((20, 20, 3), 20 * k + 40 * (video == "b"), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "videos" / video / f"{k}.png")
    extract = ("extract", "videos", "--out", "c.lance", "--model", exported, "--frames", 3)
    code, out, err = command(*extract)
    assert code == 0, err
    assert "c.lance: 4 new" in out
    table = FeatureTable("c.lance")
    assert table.identity[3:] == (3, 1, "mean")
    code, out, _ = command("duplicates", "c.lance", "--above", "0.999")
    assert code == 0
    code, _, err = command(*extract, "--pool", "concat")
    assert code == 2
    assert "pooled by mean, not of clips of 3 frames with stride 1, pooled by concat" in err


def test_tfrecords(command, photos, exported):
    images = kssl.data.from_folder(photos, 24)
    kssl.data.to_tfrecord(images, "records", verbose=0)
    extract = ("extract", "records", "--model", exported)
    code, _, err = command(*extract)
    assert code == 2
    assert "--out must be a table, such as features.lance, for TFRecords, got 'features.npz'" in err
    code, out, err = command(*extract, "--out", "r.lance")
    assert code == 0, err
    assert f"r.lance: {len(images)} new, 0 changed" in out
    labels = FeatureTable("r.lance").columns(["label"])["label"].to_pylist()
    assert set(labels) == {"blue", "red"}
    shutil.copy(photos / "red" / "0.png", "records")
    code, _, err = command(*extract, "--out", "r.lance")
    assert code == 2
    assert "FOLDER: 'records' holds images and TFRecords: give a folder that holds one" in err


def test_reports_of_a_ready_table(command, written):
    code, out, _ = command("duplicates", written)
    assert code == 0
    assert out.splitlines() == [
        "group 1: 2 images", "cosine  path", "1.0000  /gone/0.jpg", "1.0000  /gone/7.jpg",
        "cosine above 0.98: groups: 1, copies: 1",
    ]  # fmt: skip
    code, out, _ = command("duplicates", written, "--picture", "out.png")  # of files that are gone
    assert code == 0
    assert Image.open("out.png").size[0] > 200
    code, out, _ = command("index", written, "--kind", "hnsw")
    assert (code, out) == (0, "12 rows: all are compared up to 100,000, without an index\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("search a.png --table ready.lance --number 0", "'--number': 0 is not in the range"),
        ("search b.png --table ready.lance", "IMAGES: there is no file 'b.png'"),
        (
            "search a.png --table nowhere.lance",
            "--table: 'nowhere.lance' is not there: keras-ssl extract",
        ),
        ("search a.png --table a.lance", "--table: 'a.lance' is a file, no table"),
        (
            "search a.png --table other.lance",
            "is no table of features that keras-ssl extract wrote",
        ),
        ("search a.png --table a.png", "--table must end in a name of"),
        (
            "search a.png --table empty.lance",
            "--table: 'empty.lance' is empty: extract features into it",
        ),
        (
            "search a.png --table ready.lance",
            "model is missing: 'a.png' is not in 'ready.lance', so give",
        ),
        ("search a.png --table ready.lance --server x:1", "--server needs --model"),
        ("search a.png --table ready.lance --ca x", "--ca, --certificate and --key need --server"),
        ("search a.png --table ready.lance --model x", "there is no file or folder 'x'"),
        ("search a.png --table ready.lance --picture a.txt", "--picture must end in .png"),
        ("duplicates empty.lance", "TABLE: 'empty.lance' is empty"),
        ("duplicates ready.lance --above 1.5", "'--above': 1.5 is not in the range"),
        ("index empty.lance", "TABLE: 'empty.lance' is empty"),
        ("index ready.lance --kind flat", "'flat' is not one of"),
        (
            "extract . --out b/a.txt.lance --model empty.lance",
            "there is no export in 'empty.lance'",
        ),
        ("extract . --out a+b.lance --model empty.lance", "--out must end in a name of"),
    ],
)
def test_wrong_input_is_one_sentence(command, written, tmp_path, line, message):
    (tmp_path / "a.png").write_text("text")
    (tmp_path / "a.lance").write_text("text")
    (tmp_path / "other.lance").mkdir()
    FeatureTable.create(tmp_path / "empty.lance", Identity("m", 1, "ab"), 4)
    code, out, err = command(*line.split())
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_query_that_cannot_be_read(command, photos, exported):
    assert command("extract", photos, "--out", "f.lance", "--model", exported)[0] == 0
    (photos / "text.png").write_text("text")
    code, _, err = command("search", photos / "text.png", "--table", "f.lance", "--model", exported)
    assert code == 2
    assert "text.png' cannot be read as an image: Unknown image file format" in err
    assert err.count("\n") == 1


def test_without_lancedb(command, written, photos, exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    for line in (
        ("search", photos / "red" / "0.png", "--table", written), ("duplicates", written), ("index", written),
        ("extract", photos, "--out", "new.lance", "--model", exported),
    ):  # fmt: skip
        code, _, err = command(*line)
        assert code == 2
        assert 'tables of features need LanceDB: pip install "keras-ssl[lance]"' in err
