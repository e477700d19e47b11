"""Updates a table from a folder of images: new, changed and removed files; resumes after interruptions."""

import contextlib
import hashlib
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_ssl.data.folder import image_files
from keras_ssl.data.records import FILE_NAMES
from keras_ssl.serving.client.progress import progress_bar
from keras_ssl.tables import store
from keras_ssl.tables.known import KnownRows

FRAGMENT = 1024  # rows per commit
TOUCHED = 65_536  # new time stamps per commit


class Counts(NamedTuple):
    """How many rows an update has added, replaced, removed and left unchanged, and how many lack features."""

    new: int
    changed: int
    removed: int
    unchanged: int
    unreadable: int

    def __str__(self):
        return ", ".join(f"{number:,} {name}" for name, number in self._asdict().items())


def update(path, folder, identity, encoder, progress=False):
    """Brings a table up to date with the images of a folder.

    Rows of new files are appended, rows of changed files (by SHA-256) are replaced, and rows of files that
    are no longer in the folder are removed; rows of other folders stay. A file with the same size and time
    stamp as in the table is not read, and a file with the same content is not encoded. Each commit has 1,024
    rows: after a kill, the same call continues with the first missing row. Unreadable files get rows with a
    `reason` and no vector.

    Args:
        path: str, "<name>.lance"; the table is created if it does not exist.
        folder: folder of images, as in `data.from_folder`.
        identity: Identity of the model. Its `version` may be None for a server: the first response contains
            it.
        encoder: `encode.LocalEncoder`, `encode.ServedEncoder`, or another object with a method `files`.
        progress: bool, show a progress bar.

    Returns:
        Counts.

    Raises:
        ValueError: the table belongs to another model or pooling or is being updated, there is no image in
            the folder, or none of them is readable.

    Example:
        >>> identity = of_model("saved_models/rotation_photos")         # doctest: +SKIP
        >>> encoder = LocalEncoder(kssl.load("saved_models/rotation_photos"))   # doctest: +SKIP
        >>> update("features.lance", "photos/", identity, encoder)      # doctest: +SKIP
        Counts(new=1000, changed=0, removed=0, unchanged=0, unreadable=2)
    """
    with store.locked(path):
        writer = Writer(path, folder, identity, encoder)
        paths = list(filter(has_text, map(os.path.abspath, image_files(folder))))
        writer.remove_others((name, None) for name in paths)
        with progress_bar(paths, progress) as advance:
            items = _changed(paths, folder, writer, advance)
            for row, result in encoder.files(items):
                writer.write(row, result)
                advance(1)
            return writer.close(f"{len(paths)} files in {str(folder)!r}")


def _changed(paths, folder, writer, advance):
    """Yields (row, bytes) for the files that are new or have changed; writes the rows of unreadable ones."""
    for path in paths:
        known = writer.known(path)
        if is_same(path, known):
            writer.unchanged += 1
        else:
            columns, content = read(path, known and known["hash"])
            if isinstance(content, bytes):
                yield {"path": path, "label": label_of(path, folder), **columns}, content
                continue
            if columns is not None:
                settle(writer, {"path": path, "label": label_of(path, folder), **columns}, content)
        advance(1)


def is_same(path, known):
    """Returns whether a file has the size and time stamp that are in the table."""
    if not known:
        return False
    try:
        status = os.stat(path)
    except OSError:
        return False  # `read` finds the reason
    return (known["bytes"], known["modified"]) == (status.st_size, status.st_mtime_ns)


def read(path, known):
    """Reads a file, and describes it.

    Args:
        path: str.
        known: str, the SHA-256 of the file in the table, or None.

    Returns:
        (columns, content): the columns of its row, and its bytes, or None if they have the known SHA-256; {}
        and the reason if the file cannot be read; (None, None) if it does not exist.
    """
    try:
        status, content = os.stat(path), Path(path).read_bytes()
    except FileNotFoundError:  # removed since the folder was listed
        return None, None
    except OSError as error:
        return {}, error.strerror
    digest = hashlib.sha256(content).hexdigest()
    columns = {"hash": digest, "bytes": status.st_size, "modified": status.st_mtime_ns}
    if digest == known:
        return columns, None
    height, width = image_size(content)
    return {**columns, "height": height, "width": width}, content


def settle(writer, row, result):
    """Records the result for a file.

    Args:
        writer: Writer.
        row: dict with `path`, `label` and the columns of `read`.
        result: (D,) float32 array, the reason why there is none, or None if the content is in the table.
    """
    known = writer.known(row["path"])
    if result is None:
        writer.touch(known["id"], row["bytes"], row["modified"])
    elif known and "hash" not in row:
        # Files that could be read before may be readable again: a network disk may be away for a moment.
        writer.unchanged += 1
    else:
        writer.write(row, result)


def has_text(path):
    """Returns whether a path can be stored as UTF-8; warns if not."""
    try:
        path.encode()
    except UnicodeEncodeError:
        warnings.warn(f"{path!r} is skipped, since its name is not UTF-8: rename it", stacklevel=2)
        return False
    return True


def is_record(path):
    """Returns whether the path of a row names a record: a TFRecord file, "#", and the record's place."""
    file, _, place = os.path.basename(path).rpartition("#")
    return place.isdecimal() and bool(FILE_NAMES.fullmatch(file))


def label_of(path, folder):
    """Returns the name of the first subfolder that a file is in, or None if it is in `folder` itself."""
    inside = os.path.relpath(path, os.path.abspath(folder)).split(os.sep)
    return inside[0] if len(inside) > 1 else None


def image_size(content):
    """Returns (height, width) from the header of an image file, or (None, None)."""
    import io

    from PIL import Image

    with contextlib.suppress(Exception):  # PIL raises many kinds for damaged files
        width, height = Image.open(io.BytesIO(content)).size
        return height, width
    return None, None


def _is_hidden(path):
    """Returns whether a file may exist in a folder that cannot be read."""
    try:
        os.stat(path)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


class Writer:
    """Collects rows, and commits them to a table in groups of 1,024; creates the table with the first vector.

    Attributes:
        unchanged: int, counted by the caller.
    """

    def __init__(self, path, folder, identity, encoder):
        self._path, self._identity, self._encoder = path, identity, encoder
        self._table = store.FeatureTable(path) if store.exists(path) else None
        self._known, self._next, self.unchanged = None, 0, 0
        if self._table:
            if identity.sha256 is None and identity.version is None:  # any version on the server
                self._identity = identity._replace(version=self._table.identity.version)
                encoder.pin(self._table.identity.version)
            self._table.check(self._identity, "give another --out, or delete the table")
            self._known = KnownRows(self._table, os.path.abspath(folder))
            self._next = self._known.next_id
        self._new, self._changed, self._touched = [], [], []
        self._counts = {"new": 0, "changed": 0, "removed": 0}

    def known(self, path, time=None):
        """Returns the columns of a file or clip in the table, as `KnownRows.get`."""
        return self._known and self._known.get(path, time)

    def remove_others(self, keys, of_kind=lambda path: not is_record(path)):
        """Removes the rows in the folder that are `of_kind` and whose (path, time) is not in `keys`."""
        gone = self._known.others(keys) if self._known else ()
        names = self._table.rows(gone, ["path"]) if len(gone) else ()
        gone = [row["id"] for row in names if of_kind(row["path"]) and not _is_hidden(row["path"])]
        if gone:
            self._known.forget(gone)
            self._table.remove(gone)
        self._counts["removed"] = len(gone)

    def touch(self, row_id, size, modified, **more):
        """Records the new time stamp of a file with the same content, and `more` columns."""
        self.unchanged += 1
        self._touched.append({"id": row_id, "bytes": size, "modified": modified, **more})
        if len(self._touched) >= TOUCHED:
            self._commit_touched()

    def _commit_touched(self):
        self._table.amend(self._touched)
        self._touched = []

    def write(self, row, result):
        """Adds or replaces the row of a file or clip.

        Args:
            row: dict of columns, at least `path`.
            result: (D,) float32 array, or the reason why there is none.
        """
        if isinstance(result, str):
            row["reason"] = result
        elif not np.isfinite(result).all():
            row["reason"] = "the features are not finite"
        else:
            row["vector"] = result
        known = self.known(row["path"], row.get("time"))
        if known:
            row["id"] = known["id"]
            self._changed.append(row)
        else:
            row["id"], self._next = self._next, self._next + 1
            self._new.append(row)
        if len(self._new) + len(self._changed) >= FRAGMENT:
            self._commit()

    def _commit(self):
        rows = self._new + self._changed
        if not self._table and not self._create(rows):
            return
        for row in rows:
            row["model"] = self._table.identity.label
        self._table.add(self._new)
        self._table.replace(self._changed)
        self._counts["new"] += len(self._new)
        self._counts["changed"] += len(self._changed)
        self._new, self._changed = [], []

    def _create(self, rows):
        """Creates the table, unless no row has a vector."""
        vector = next((row["vector"] for row in rows if "vector" in row), None)
        if vector is None:
            return False
        identity = self._identity
        if identity.sha256 is None:  # on a server, whose response contained its version
            identity = identity._replace(version=self._encoder.version)
        self._table = store.FeatureTable.create(self._path, identity, len(vector))
        return True

    def close(self, what):
        """Commits the remaining rows, and returns the Counts.

        Raises:
            ValueError: there is no table, since none of `what` is readable.
        """
        if self._new or self._changed:
            self._commit()
        if self._table is None:
            first = self._new[0]
            raise ValueError(
                f"none of {what} is a readable image (first: {first['path']!r}, {first['reason']})"
            )
        self._commit_touched()
        self._table.optimize()
        return Counts(
            **self._counts, unchanged=self.unchanged, unreadable=self._table.count(store.UNREADABLE)
        )
