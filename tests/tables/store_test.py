"""Tables on the disk: rows in and out, and paths that are no table."""

import subprocess
import sys

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from keras_ssl.tables import FeatureTable, search, store

VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3) + 1


def test_rows_that_are_added_replaced_and_removed(write_table, identity):
    table = write_table(VECTORS, label=["a", None, "b", "b"], time=[0.5, None, 1.25, 2])
    table = FeatureTable(table.path)  # as another process reads it
    assert (table.identity, table.dimensions, table.count(), table.count("true")) == (
        identity,
        3,
        4,
        5,
    )
    ids, vectors = table.vectors()
    assert ids.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(vectors, VECTORS)
    assert table.rows([2, 0]) == [
        {"id": 2, "path": "/photos/2.jpg", "time": 1.25, "label": "b"},
        {"id": 0, "path": "/photos/0.jpg", "time": 0.5, "label": "a"},
    ]
    table.replace([
        {"id": 1, "path": "/photos/1.jpg", "vector": -VECTORS[1]},
        {"id": 4, "path": "/photos/damaged.jpg", "vector": VECTORS[0]},
        {"id": 0, "path": "/photos/0.jpg", "reason": "no image"},
    ])  # fmt: skip
    table.remove([2, 77])
    ids, vectors = table.vectors()
    assert ids.tolist() == [1, 3, 4]
    np.testing.assert_array_equal(vectors, [-VECTORS[1], VECTORS[3], VECTORS[0]])
    unreadable = table.columns(["id", "reason"], "vector IS NULL").to_pylist()
    assert unreadable == [{"id": 0, "reason": "no image"}]
    before = table.lance.version
    table.optimize()
    assert table.lance.version > before
    np.testing.assert_array_equal(table.vectors()[1], vectors)


def test_ids_that_are_not_there(write_table):
    with pytest.raises(ValueError, match=r"id: '.*features.lance' has no row 9"):
        write_table(VECTORS).rows([1, 9])


@pytest.mark.parametrize("name", ["features", "a b.lance", "ü.lance", ".lance"])
def test_names_that_lancedb_does_not_accept(name):
    with pytest.raises(ValueError, match=r"^--out must end in a name of .* such as features.lance"):
        store.check_path("--out", name)
    store.check_path("--out", "s3://bucket/a-b_c.1.lance")


def test_paths_that_are_no_table(tmp_path):
    (tmp_path / "file.lance").write_text("text")
    (tmp_path / "folder.lance").mkdir()
    (tmp_path / "folder.lance" / "a.txt").write_text("text")
    lancedb.connect(tmp_path).create_table("other", pa.table({"x": [1]}))
    for name, message in (
        (
            "missing.lance",
            r"not there: keras-ssl extract FOLDER --model EXPORT --out .*missing.lance",
        ),
        ("file.lance", "is a file, no table: keras-ssl extract"),
        (
            "folder.lance",
            "is no table of features that keras-ssl extract wrote, or cannot be read: give another",
        ),
        (
            "other.lance",
            "is no table of features that keras-ssl extract wrote, or cannot be read: give another",
        ),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            FeatureTable(tmp_path / name)
        assert "\n" not in str(raised.value)
    assert store.exists(tmp_path / "folder.lance")  # and is not overwritten
    assert not store.exists(tmp_path / "missing.lance")


def test_a_url(tmp_path, identity):
    """As of an object store, here of the local disk."""
    url = f"file://{tmp_path}/features.lance"
    assert not store.exists(url)
    with store.locked(url):
        FeatureTable.create(url, identity, 3).add([{"id": 4, "path": "/a", "vector": VECTORS[0]}])
    assert store.exists(url)
    assert FeatureTable(url).rows([4], ["path"]) == [{"path": "/a", "id": 4}]
    assert FeatureTable(tmp_path / "features.lance").count() == 1
    with pytest.raises(ValueError, match="is no table of features"):
        FeatureTable(f"file://{tmp_path}/other.lance")


@pytest.mark.parametrize("left", [[], ["_transactions"], ["data", "_transactions", "_versions"]])
def test_a_folder_left_by_a_kill_becomes_a_table(tmp_path, identity, left):
    for name in ("", *left):
        (tmp_path / "features.lance" / name).mkdir()
    assert not store.exists(tmp_path / "features.lance")
    table = FeatureTable.create(tmp_path / "features.lance", identity, 2)
    with pytest.raises(
        ValueError, match=r"features.lance' is empty: extract features into it first"
    ):
        table.vectors()


def test_two_updates_at_a_time(tmp_path):
    with (
        store.locked(tmp_path / "features.lance"),
        pytest.raises(ValueError, match=r"table '.*features.lance' is used by another run"),
        store.locked(tmp_path / "features.lance"),
    ):
        pass


def test_without_lancedb(tmp_path, monkeypatch):
    (tmp_path / "features.lance").mkdir()
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(ImportError, match=r'pip install "keras-ssl\[lance\]"'):
        search(tmp_path / "features.lance", VECTORS)


def test_tables_need_no_tensorflow(write_table):
    """Search by vectors, duplicates and index of a table, in a process like the command's."""
    table = write_table(VECTORS)
    program = f"""
import sys
sys.argv[0] = "keras-ssl"
from keras_ssl.tables import duplicates, search
search({table.path!r}, [[1, 2, 3]], 2)
duplicates({table.path!r})
assert "tensorflow" not in sys.modules and "keras" not in sys.modules
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
