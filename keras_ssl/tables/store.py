"""Tables of features in embedded LanceDB, on the disk or in object storage, with a row per image or clip."""

import contextlib
import datetime
import os
import re
from pathlib import Path

import numpy as np

from keras_ssl import files
from keras_ssl.tables.identity import Identity

SUFFIX = ".lance"
METADATA = b"keras_ssl"
KEEP_VERSIONS = datetime.timedelta(days=1)  # of a table: how long an update can be undone
SHOWN = ["id", "path", "time", "label"]
# A row has a vector or a reason. A condition on the vector would read that whole column, which takes 20 s for
# ten million rows.
READ, UNREADABLE = "reason IS NULL", "reason IS NOT NULL"


def lancedb():
    """Imports LanceDB, which takes a second and a half.

    Raises:
        ImportError: LanceDB is not installed.
    """
    os.environ.setdefault(
        "LANCEDB_LOG", "error"
    )  # it warns of every cell of an index that has no vector
    try:
        import lancedb
    except ImportError:
        raise ImportError(
            'tables of features need LanceDB: pip install "keras-ssl[lance]", or pip install lancedb'
        ) from None
    return lancedb


def check_path(argument, path):
    """Raises ValueError unless the name of a table is one that LanceDB accepts."""
    name = os.path.basename(str(path).rstrip("/"))
    if not re.fullmatch(r"[\w.-]+\.lance", name, re.ASCII):
        raise ValueError(
            f"{argument} must end in a name of letters, digits, '_', '-' and '.' with the suffix "
            f"{SUFFIX}, such as features.lance, got {str(path)!r}"
        )


def check_exists(argument, path):
    """Raises ValueError unless there is a folder that may be a table; does not need LanceDB."""
    check_path(argument, path)
    if not is_remote(path) and not Path(path).is_dir():
        is_file = Path(path).exists()
        raise ValueError(
            f"{argument}: {str(path)!r} is {'a file, no table' if is_file else 'not there'}: "
            f"keras-ssl extract FOLDER --model EXPORT --out {path} writes a table"
        )


def is_remote(path):
    """Returns whether a path is the URL of an object store."""
    return "://" in str(path)


class FeatureTable:
    """A table of features of one model.

    A row has `id` int64, `path` str (absolute), `time` float32 in seconds (for a clip, else null), `label`
    str (the first subfolder, or null), `vector` (D,) float32, `reason` str (why an unreadable file has no
    vector), `hash` (SHA-256 of the file), `bytes` and `modified` (size and time stamp of the file), `height`
    and `width` in pixels, and `model` (name and version). Every change is one commit.

    Args:
        path: str or pathlib.Path, "<name>.lance", or the URL of a table in an object store that LanceDB
            supports.

    Attributes:
        path: str.
        identity: Identity, model and pooling of the features.
        dimensions: int D.
        lance: the lancedb.Table, for everything else.

    Raises:
        ValueError: there is no such table, or it is not a table of features.
        ImportError: LanceDB is not installed.

    Example:
        >>> FeatureTable("features.lance").count()                      # doctest: +SKIP
        1000000
    """

    def __init__(self, path):
        check_exists("table", path)
        self.path = str(path)
        connection = _connect(path)
        try:
            self.lance = connection.open_table(_name(path))
            self._read_schema()
        except Exception as error:  # LanceDB's exceptions are not documented
            if "[lance]" in str(error):
                raise
            raise ValueError(
                f"table: {self.path!r} is no table of features that keras-ssl extract wrote, or cannot be "
                f"read: give another ({str(error).partition(chr(10))[0][:200]})"
            ) from None
        self.kept, self._counts = None, {}  # data that search keeps in memory; numbers of rows

    @classmethod
    def create(cls, path, identity, dimensions):
        """Creates an empty table."""
        schema = _schema(dimensions, identity)
        if not is_remote(path):
            files.make_folder(Path(path).absolute().parent)
        _connect(path).create_table(_name(path), schema=schema)
        return cls(path)

    def _read_schema(self):
        self.schema = self.lance.schema
        self.identity = Identity.from_json(self.schema.metadata[METADATA].decode())
        self.dimensions = self.schema.field("vector").type.list_size

    def check(self, identity, hint):
        """Raises ValueError, ending with `hint`, unless the features have this model and pooling."""
        if different := self.identity.difference(identity):
            raise ValueError(f"{self.path!r} holds features {different}: {hint}")

    def refresh(self):
        """Switches to the newest version of the table, which another process may have written."""
        self.lance.checkout_latest()

    def count(self, where=READ):
        """Counts the rows with features, or the rows that match another SQL condition."""
        version = self.lance.version
        known, number = self._counts.get(where, (None, 0))
        if known != version:  # counting takes 10 ms
            number = self.lance.count_rows(where)
            self._counts[where] = version, number
        return number

    def columns(self, names, where=None):
        """Reads columns of all rows, or of the rows that match an SQL condition, as a pyarrow.Table."""
        query = self.lance.search().select(list(names))
        return (query.where(where) if where else query).to_arrow()

    def batches(self, names, size=4096):
        """Yields the columns of the rows with features as pyarrow.RecordBatch of at most `size` rows."""
        return self.lance.search().select(list(names)).where(READ).to_batches(size)

    def vectors(self):
        """Reads all features into memory.

        Returns:
            (ids, vectors): (N,) int64 and (N, D) float32 arrays, in the order of the ids.

        Raises:
            ValueError: the table has no features.
        """
        number = self.count()
        if not number:
            raise ValueError(f"table: {self.path!r} is empty: extract features into it first")
        ids, vectors = np.empty(number, np.int64), np.empty((number, self.dimensions), np.float32)
        start = 0
        for batch in self.batches(["id", "vector"]):
            stop = start + batch.num_rows
            ids[start:stop] = batch["id"].to_numpy()
            vectors[start:stop] = batch["vector"].flatten().to_numpy().reshape(-1, self.dimensions)
            start = stop
        order = np.argsort(ids)
        if not np.array_equal(order, np.arange(number)):  # which would copy the vectors
            ids, vectors = ids[order], vectors[order]
        return ids, vectors

    def rows(self, ids, names=SHOWN):
        """Reads columns of rows by their ids.

        Args:
            ids: sequence of int.
            names: list of str, columns.

        Returns:
            list of dict, in the order of `ids`.

        Raises:
            ValueError: there is no row with one of the ids.
        """
        ids = [int(i) for i in ids]
        found = {}
        for start in range(0, len(ids), 1000):
            listed = ", ".join(map(str, ids[start : start + 1000]))
            for row in self.columns({"id", *names}, f"id IN ({listed})").to_pylist():
                found[row["id"]] = row
        if missing := set(ids) - found.keys():
            raise ValueError(f"id: {self.path!r} has no row {min(missing)}")
        return [found[i] for i in ids]

    def add(self, rows):
        """Appends rows, a list of dicts, in one commit."""
        if rows:
            self.lance.add(_to_arrow(rows, self.schema), on_bad_vectors="null")

    def replace(self, rows):
        """Replaces the rows with the same ids, in one commit."""
        self._merge(rows, self.schema)

    def amend(self, rows):
        """Changes the columns in the dicts for the rows with the same ids, in one commit."""
        if rows:
            import pyarrow as pa

            self._merge(rows, pa.schema([self.schema.field(name) for name in rows[0]]))

    def _merge(self, rows, schema):
        if rows:
            merge = self.lance.merge_insert("id").when_matched_update_all()
            # LanceDB treats null vectors as bad ones.
            merge.execute(_to_arrow(rows, schema), on_bad_vectors="null")

    def remove(self, ids):
        """Removes rows by their ids."""
        ids = [int(i) for i in ids]
        for start in range(0, len(ids), 10_000):
            listed = ", ".join(map(str, ids[start : start + 10_000]))
            self.lance.delete(f"id IN ({listed})")

    def optimize(self):
        """Merges small fragments, adds new rows to the index, and removes versions older than a day."""
        self.lance.optimize(cleanup_older_than=KEEP_VERSIONS)


@contextlib.contextmanager
def locked(path):
    """Holds a lock against other updates of a table; raises ValueError if one is running."""
    if is_remote(path):
        yield
        return
    files.make_folder(Path(path).absolute().parent)
    with files.locked(f"{path}.lock", f"table {str(path)!r}"):
        yield


def exists(path):
    """Returns whether a table exists at a path.

    Raises:
        ValueError: the path is something else than a table of features.
    """
    if is_remote(path):
        return _name(path) in _connect(path).table_names(limit=100_000)
    # A process that is killed while it creates the table leaves an empty folder.
    return Path(path).exists() and not (Path(path).is_dir() and not _has_version(path))


def _has_version(path):
    # Other files that LanceDB writes first.
    drafts = {"_versions", "_transactions", "data"}
    return bool(set(os.listdir(path)) - drafts) or any(Path(path, "_versions").glob("*.manifest"))


def _connect(path):
    folder = str(path).rstrip("/").rpartition("/")[0] if is_remote(path) else None
    return lancedb().connect(folder or str(Path(path).absolute().parent))


def _name(path):
    return os.path.basename(str(path).rstrip("/")).removesuffix(SUFFIX)


def _schema(dimensions, identity):
    import pyarrow as pa

    columns = {
        "id": pa.int64(), "path": pa.string(), "time": pa.float32(), "label": pa.string(),
        "vector": pa.list_(pa.float32(), dimensions), "reason": pa.string(), "hash": pa.string(),
        "bytes": pa.int64(), "modified": pa.int64(), "height": pa.int32(), "width": pa.int32(),
        "model": pa.string(),
    }  # fmt: skip
    return pa.schema(columns.items(), metadata={METADATA: identity.to_json()})


def _to_arrow(rows, schema):
    import pyarrow as pa

    arrays = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if field.name == "vector":
            missing = np.array([value is None for value in values])
            flat = np.zeros((len(values), field.type.list_size), np.float32)
            flat[~missing] = [value for value in values if value is not None] or 0
            array = pa.FixedSizeListArray.from_arrays(
                pa.array(flat.ravel()), field.type.list_size, mask=pa.array(missing)
            )
        else:
            array = pa.array(values, field.type)
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=schema)
