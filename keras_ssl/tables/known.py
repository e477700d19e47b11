"""What an update needs to know about the rows of a table, in 96 bytes per row: for many millions of rows."""

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
        next_id: int, the smallest id above those of all rows of the whole table.
    """

    def __init__(self, table, folder):
        start = os.path.join(folder, "").replace("'", "''")
        inside = f"starts_with(path, '{start}')"
        rows, number = np.zeros(table.count(inside), ROW), 0
        for batch in table.lance.search().select(COLUMNS).where(inside).to_batches(65_536):
            _fill(rows[number : number + batch.num_rows], batch)
            number += batch.num_rows
        self._set(rows)
        ids = table.lance.search().select(["id"]).to_batches(65_536)
        last = max((int(batch["id"].to_numpy().max(initial=-1)) for batch in ids), default=-1)
        self.next_id = last + 1

    def _set(self, rows):
        self._rows, self._order = rows, np.argsort(rows["key"], kind="stable")
        self._keys = rows["key"][self._order]

    def get(self, path, time=None):
        """Returns a dict of the columns of a row except path and time, or None if there is no such row."""
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
        first, last = np.searchsorted(self._keys, key), np.searchsorted(self._keys, key, "right")
        return next((i for i in self._order[first:last] if self._rows["rest"][i] == rest), None)


def _digest(path, time):
    return hashlib.blake2b(f"{path}\0{time}".encode(), digest_size=16).digest()


def _fill(rows, batch):
    """Writes the rows of a pyarrow.RecordBatch to an array of `ROW`."""
    for name in ("id", "bytes", "modified", "height", "width"):
        rows[name] = batch[name].fill_null(NULL).to_numpy()
    keys = map(_digest, batch["path"].to_pylist(), batch["time"].to_pylist())
    rows["key"], rows["rest"] = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2).T
    hashes = (bytes.fromhex(text or "00" * 32) for text in batch["hash"].to_pylist())
    rows["hash"] = np.frombuffer(b"".join(hashes), "V32")
