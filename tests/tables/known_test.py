"""What an update knows of the rows of a folder: found by path and time, in little memory."""

import numpy as np
import pytest

from keras_ssl.tables import known
from keras_ssl.tables.known import KnownRows
from keras_ssl.tables.store import FeatureTable

FOLDER = "/photos/it's 100%"


@pytest.fixture(scope="module")
def rows():
    """200 rows: images, clips, a file that could never be read, and rows of other folders."""
    found = [
        {
            "path": f"{FOLDER}/{i // 3}.mp4" if i % 3 else f"{FOLDER}/ü{i}.jpg",
            "time": np.float32(i / 30).item() if i % 3 else None,
            "hash": f"{i + 1:064x}" if i != 9 else None, "bytes": 2**40 + i if i != 9 else None,
            "modified": i * 10**16 if i != 9 else None, "height": i + 1, "width": None,
        }
        for i in range(197)
    ]  # fmt: skip
    others = ["/photos/it's 100%.jpg", "/photos/it's 1000/1.jpg", "/photos"]
    found += [{"path": path, "hash": "ab" * 32} for path in others]
    order = np.random.default_rng(0).permutation(len(found))
    return [
        {**row, "id": int(i) * 7, "vector": np.zeros(2)}
        for i, row in zip(order, found, strict=True)
    ]


@pytest.fixture
def table(rows, tmp_path, identity):
    table = FeatureTable.create(tmp_path / "features.lance", identity, 2)
    table.add(rows)
    return table


def test_rows_are_found_by_path_and_time(table, rows):
    found = KnownRows(table, FOLDER)
    for row in rows:
        expected = {
            name: row.get(name) for name in ("id", "hash", "bytes", "modified", "height", "width")
        }
        inside = row["path"].startswith(f"{FOLDER}/")
        assert found.get(row["path"], row.get("time")) == (expected if inside else None)
    assert found.get(f"{FOLDER}/ü0.jpg", 0.0) is None
    assert found.get(f"{FOLDER}/0.mp4") is None
    assert found.next_id == 199 * 7 + 1


def test_rows_of_files_that_are_gone(table, rows):
    found = KnownRows(table, FOLDER)
    inside = [row for row in rows if row["path"].startswith(f"{FOLDER}/")]
    there = [(row["path"], row["time"]) for row in inside[5:]]
    gone = found.others([*there, ("/new.jpg", None)])
    assert sorted(gone) == sorted(row["id"] for row in inside[:5])
    found.forget(gone)
    assert found.get(*(inside[0][name] for name in ("path", "time"))) is None
    assert found.get(*there[0])["id"] == inside[5]["id"]
    assert len(found.others(there)) == 0
    assert found.next_id == 199 * 7 + 1


def test_digests_with_the_same_first_half(table, rows, monkeypatch):
    monkeypatch.setattr(known, "_digest", lambda path, time: b"12345678" + digest(path, time)[8:])
    found = KnownRows(table, FOLDER)
    for row in rows[:20]:
        assert (found.get(row["path"], row.get("time")) or row)["id"] == row["id"]
    assert found.get(f"{FOLDER}/none.jpg") is None


digest = known._digest


def test_another_folder(table):
    assert KnownRows(table, "/elsewhere").others([]).size == 0
