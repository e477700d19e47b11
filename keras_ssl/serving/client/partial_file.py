"""The rows of an unfinished extraction on disk, which survive kills and power failures."""

import hashlib
import json
import os
import zlib

import numpy as np

from keras_ssl import files

CHUNK = 4096  # rows in memory at once
READABLE, UNREADABLE = 1, 2  # a file has 0 where nothing was written


class PartialFile:
    """Rows on disk after a JSON header that identifies the extraction they belong to.

    Every row is written at its own offset, which overwrites the remains of an interrupted write. After a
    power failure a file may have its full length but contain zeros. So a row counts only if its checksum is
    right, and zeros count neither as features nor as an unreadable image.

    Args:
        path: str. If there is such a file, it is continued.
        client: FeatureClient.
        paths: list of str, the files to extract, one for each row.
        detail: list of further JSON values that identify the extraction.

    Raises:
        ValueError: the file at `path` belongs to another extraction.

    Attributes:
        rows: int, the number of complete rows.
        version: int, the model's version, or None if there is no file yet.
        dimensions: int, features per row.
    """

    def __init__(self, path, client, paths, detail=()):
        self.path, self.rows, self.version = path, 0, None
        self._identity = {
            "draft of": "keras-ssl extract", "format": 2, "model": client.model, "label": client.label,
            "files": _digest(paths),
        }  # fmt: skip
        if detail:
            self._identity["clips"] = list(detail)
        if os.path.exists(path) and os.path.getsize(path):
            self._open(client, paths)

    def _open(self, client, paths):
        with open(self.path, "rb") as file:
            header = file.readline(10_000)
        try:
            found = json.loads(header)
            different = [key for key, value in self._identity.items() if found[key] != value]
            version, dimensions = found["version"], found["size"]
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{self.path!r} would be the partial file of this extraction, but it contains "
                "something else: delete it or choose another out"
            ) from None
        if client.version not in (None, version):
            different.append("version")
        if different:
            raise ValueError(
                f"{self.path!r} belongs to another extraction (different {' and '.join(different)}): "
                "delete it to start again, or choose another out"
            )
        self._set_layout(version, dimensions, len(header))
        self.rows = self._valid(len(paths))

    def _valid(self, most):
        """Counts the rows before the first one that is damaged or missing."""
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            for start in range(0, most, CHUNK):
                rows = np.fromfile(file, self._row, min(CHUNK, most - start))
                damaged = np.flatnonzero(rows["checksum"] != _checksums(rows))
                if len(damaged) or len(rows) < CHUNK:
                    return start + int(damaged[0] if len(damaged) else len(rows))
        return most

    def _set_layout(self, version, dimensions, offset):
        self.version, self.dimensions, self._offset = version, dimensions, offset
        self._row = np.dtype(
            [("checksum", "<u4"), ("status", "u1"), ("features", "<f4", (dimensions,))]
        )

    def create(self, version, dimensions):
        """Creates the file for rows of `dimensions` features."""
        identity = {**self._identity, "version": version, "size": dimensions}
        header = json.dumps(identity).encode() + b"\n"
        self._set_layout(version, dimensions, len(header))
        with files.complete(self.path) as draft, open(draft, "wb") as file:
            file.write(header)

    def append(self, features):
        """Appends (N, D) features of the next images."""
        rows = np.zeros(len(features), self._row)
        rows["status"], rows["features"] = READABLE, features
        self._append(rows)

    def append_unreadable(self, count):
        """Appends rows for images that the server cannot read."""
        rows = np.zeros(count, self._row)
        rows["status"] = UNREADABLE
        self._append(rows)

    def _append(self, rows):
        rows["checksum"] = _checksums(rows)
        with open(self.path, "r+b") as file:
            file.seek(self._offset + self.rows * self._row.itemsize)
            rows.tofile(file)
        self.rows += len(rows)

    def readable(self):
        """Returns (N,) bool, whether the server could read each image."""
        return np.concatenate([chunk["status"] == READABLE for chunk in self._chunks()])

    def features(self):
        """Yields the features of the readable images in chunks."""
        for chunk in self._chunks():
            yield chunk["features"][chunk["status"] == READABLE]

    def _chunks(self):
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            for i in range(0, self.rows, CHUNK):
                yield np.fromfile(file, self._row, min(CHUNK, self.rows - i))


def _checksums(rows):
    """Computes the CRC-32 of the bytes after the checksum in each row, as a list of int."""
    start = rows.dtype["checksum"].itemsize
    rows = rows.view(np.uint8).reshape(len(rows), rows.dtype.itemsize)
    return [zlib.crc32(row[start:]) for row in rows]


def _digest(paths):
    """Computes a digest of the names, sizes and modification times of files."""
    digest = hashlib.sha256()
    for path in paths:
        stat = os.stat(path)
        line = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()
