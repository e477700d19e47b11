"""What an update needs to know of the rows that a table has: 80 bytes each, for tables of many millions."""

import hashlib
import os

import numpy as np

COLUMNS = ["id", "path", "time", "hash", "bytes", "modified", "height", "width"]
ROW = np.dtype([
    ("key", "<u8"), ("rest", "<u8"),  # 128 bits of the digest of path and time
    ("id", "i8"), ("bytes", "i8"), ("modified", "i8"), ("hash", "V32"), ("height", "i4"), ("width", "i4"),
])  # fmt: skip
NULL = -1


class KnownRows:
    """The rows of the files in a folder, found by path and time.

    Args:
        table: FeatureTable.
        folder: absolute path.

    Attributes:
        next_id: int, the smallest that no row of the whole table has yet.
    """

    def __init__(self, table, folder):
        start = os.path.join(folder, "").replace("'", "''")
        query = table.lance.search().select(COLUMNS).where(f"starts_with(path, '{start}')")
        parts = [_rows(batch) for batch in query.to_batches(65_536)]
        rows = np.concatenate([np.zeros(0, ROW), *parts])
        self._set(rows[np.argsort(rows["key"], kind="stable")])
        ids = table.lance.search().select(["id"]).to_batches(65_536)
        self.next_id = (
            max((int(batch["id"].to_numpy().max(initial=-1)) for batch in ids), default=-1) + 1
        )

    def _set(self, rows):
        self._rows, self._keys = rows, np.ascontiguousarray(rows["key"])

    def get(self, path, time=None):
        """Returns the columns of a row but for path and time, a dict, or None if there is no such row."""
        place = self._place(path, time)
        if place is None:
            return None
        row = self._rows[place]
        known = {name: int(row[name]) for name in ("id", "bytes", "modified", "height", "width")}
        digest = row["hash"].tobytes()
        return {
            **{name: None if value == NULL else value for name, value in known.items()},
            "hash": digest.hex() if any(digest) else None,
        }

    def others(self, keys):
        """Returns the ids of the rows whose (path, time) is not among `keys`, an iterable."""
        gone = np.ones(len(self._rows), bool)
        for path, time in keys:
            place = self._place(path, time)
            if place is not None:
                gone[place] = False
        return self._rows["id"][gone]

    def forget(self, ids):
        """Leaves out the rows with these ids from now on."""
        self._set(self._rows[~np.isin(self._rows["id"], ids)])

    def _place(self, path, time):
        key, rest = np.frombuffer(_digest(path, time), "<u8")
        place = np.searchsorted(self._keys, key)
        while place < len(self._keys) and self._keys[place] == key:
            if self._rows["rest"][place] == rest:
                return place
            place += 1
        return None


def _digest(path, time):
    return hashlib.blake2b(f"{path}\0{time}".encode(), digest_size=16).digest()


def _rows(batch):
    """Returns the rows of a pyarrow.RecordBatch as an array of `ROW`."""
    rows = np.zeros(batch.num_rows, ROW)
    for name in ("id", "bytes", "modified", "height", "width"):
        rows[name] = batch[name].fill_null(NULL).to_numpy()
    keys = map(_digest, batch["path"].to_pylist(), batch["time"].to_pylist())
    rows["key"], rows["rest"] = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2).T
    hashes = (bytes.fromhex(text or "00" * 32) for text in batch["hash"].to_pylist())
    rows["hash"] = np.frombuffer(b"".join(hashes), "V32")
    return rows
