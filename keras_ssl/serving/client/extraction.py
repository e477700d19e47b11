"""Features of many files by a server, in one file: after a kill it goes on where it stopped."""

import contextlib
import copy
import hashlib
import json
import os
import warnings
import zipfile

import click
import numpy as np

from keras_ssl.serving.client.feature_client import progress_bar

CHUNK = 4096  # rows in memory at a time when the .npz is written


def extract(client, paths, out, progress=False):
    """Writes the features of picture files to an .npz, each file once and in order.

    Rows go to a draft, `<out>.part`, as they arrive. After a kill, or an error because the server
    went away, the same call goes on behind the last whole row of the draft. Nothing of the size of
    the data is held in memory.

    All rows come from one version of the model: the first answer's, which is asked for by its number
    from then on, also after a restart, whatever is newer by then. A file that the server cannot read
    as a picture is left out, with a warning at the end. The draft knows the model, the version or
    label that the client asks for, and the files' names, sizes and times of change; the address may
    differ, as a server may move.

    Args:
        client: FeatureClient.
        paths: list of str, the files.
        out: path of the .npz to write, whole or not at all, with `id` (N,) int64, `path` (N,) str
            and `features` (N, D) float32.
        progress: bool, say where it continues and show a bar, on stderr.

    Returns:
        (N, D), the shape of the features.

    Raises:
        ValueError: no paths, none of them a picture, a draft that belongs to something else, or the
            server refuses (unknown model, or it no longer has the draft's version).
        OSError: a file that cannot be opened; ConnectionError and TimeoutError as the client.
        RuntimeError: as the client.

    Warns:
        UserWarning: how many files are no readable pictures, and which.

    Example:
        >>> client = FeatureClient("localhost:8500", "rotation_photos")         # doctest: +SKIP
        >>> extract(client, sorted(map(str, Path("photos").rglob("*.jpg"))), "features.npz")
        ...                                                             # doctest: +SKIP
        (1000000, 512)
    """
    if not paths:
        raise ValueError("paths must hold at least one file, got none")
    draft = _Draft(f"{out}.part", client, paths)
    try:
        if draft.version is not None:
            if progress and draft.rows < len(paths):
                click.echo(f"continues at image {draft.rows + 1} of {len(paths)}", err=True)
        else:
            _begin(client, paths, draft)
        pinned = copy.copy(client)  # on the same connection
        pinned.version, pinned.label = draft.version, None
        _fill(pinned, paths, draft, progress)
        shape = _write(draft, paths, out)
    except (ConnectionError, TimeoutError, RuntimeError) as error:
        if draft.rows:
            error.args = (
                f"{error}; {draft.rows} of {len(paths)} images are in {draft.path}, and the same "
                "command continues there",
            )
        raise
    os.remove(draft.path)
    return shape


def _begin(client, paths, draft):
    """Opens the draft with the first picture, whose answer tells the version and the size."""
    for number, path in enumerate(paths):
        answer = _one(client, path)
        if answer is not None:
            if answer.version is None:
                raise RuntimeError(
                    f"server {client.address!r} does not say which version of {client.model!r} "
                    "answers: features of two versions could get mixed"
                )
            draft.begin(answer.version, answer.outputs["features"].shape[1])
            draft.add_unreadable(number)
            draft.add(answer.outputs["features"])
            return
    raise ValueError(
        f"none of the {len(paths)} files is a picture that the server can read (first: {paths[0]!r})"
    )


def _fill(client, paths, draft, progress):
    with progress_bar(range(draft.rows, len(paths)), progress) as came:
        while draft.rows < len(paths):
            try:
                for answer in client._answers("encoded", paths[draft.rows :]):
                    draft.add(_of_version(answer, draft))
                    came(answer.number)
            except ValueError as error:
                if getattr(error, "code", None) == "NOT_FOUND":
                    raise ValueError(
                        f"{error}; the {draft.rows} rows in {draft.path} are of version "
                        f"{draft.version}: serve it, or delete that file to begin anew"
                    ) from None
                if getattr(error, "code", None) != "INVALID_ARGUMENT":
                    raise
                # One unreadable picture makes the server refuse all of its request: which is it?
                for path in paths[draft.rows : draft.rows + client.batch_size]:
                    answer = _one(client, path)
                    if answer is None:
                        draft.add_unreadable(1)
                    else:
                        draft.add(_of_version(answer, draft))
                    came(1)


def _one(client, path):
    """The answer for one picture, or None where the server cannot read it."""
    try:
        (answer,) = client._answers("encoded", [path])
        return answer
    except ValueError as error:
        if getattr(error, "code", None) != "INVALID_ARGUMENT":
            raise
        return None


def _of_version(answer, draft):
    """The features of an answer, when they are of the draft's version and size."""
    features = answer.outputs["features"]
    if answer.version != draft.version or features.shape[1:] != (draft.size,):
        raise RuntimeError(
            f"asked for version {draft.version} with {draft.size} features, the server answered "
            f"with version {answer.version} and {features.shape[1:]}"
        )
    return features


class _Draft:
    """Rows on disk, behind a line of JSON that says what they are of.

    Each row is written at its own place, over what may be left there of a torn one.
    """

    def __init__(self, path, client, paths):
        self.path, self.rows, self.version = path, 0, None
        digest = hashlib.sha256()
        for name in paths:
            found = os.stat(name)
            line = f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n"
            digest.update(line.encode(errors="surrogateescape"))
        self._subject = {
            "draft of": "keras-ssl extract", "model": client.model, "label": client.label,
            "files": digest.hexdigest(),
        }  # fmt: skip
        if not os.path.exists(path) or not os.path.getsize(path):
            return
        with open(path, "rb") as file:
            head = file.readline(10_000)
        try:
            found = json.loads(head)
            other = [key for key, value in self._subject.items() if found[key] != value]
            version, size = found["version"], found["size"]
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{path!r} is no draft of this command, which would write there: delete that file "
                "or choose another out"
            ) from None
        if client.version not in (None, version):
            other.append("version")
        if other:
            raise ValueError(
                f"{path!r} belongs to another extraction ({' and '.join(other)} differ): delete that "
                "file to begin anew, or choose another out"
            )
        self._lay_out(version, size, len(head))
        self.rows = min((os.path.getsize(path) - len(head)) // self.row.itemsize, len(paths))

    def _lay_out(self, version, size, start):
        self.version, self.size, self._start = version, size, start
        self.row = np.dtype([("readable", "?"), ("features", "<f4", (size,))])

    def begin(self, version, size):
        """Makes the file, for rows of `size` features."""
        head = json.dumps({**self._subject, "version": version, "size": size}).encode() + b"\n"
        self._lay_out(version, size, len(head))
        with open(self.path, "wb") as file:
            file.write(head)

    def add(self, features):
        """Appends the features of the next pictures, (N, D)."""
        rows = np.ones(len(features), self.row)
        rows["features"] = features
        self._append(rows)

    def add_unreadable(self, number):
        """Appends rows for pictures that the server cannot read."""
        self._append(np.zeros(number, self.row))

    def _append(self, rows):
        with open(self.path, "r+b") as file:
            file.seek(self._start + self.rows * self.row.itemsize)
            rows.tofile(file)
        self.rows += len(rows)

    def chunks(self):
        """All rows, some thousands at a time: `readable` and `features`."""
        with open(self.path, "rb") as file:
            file.seek(self._start)
            for i in range(0, self.rows, CHUNK):
                yield np.fromfile(file, self.row, min(CHUNK, self.rows - i))


def _write(draft, paths, out):
    """The .npz, in chunks; returns the shape of the features."""
    readable = np.empty(draft.rows, bool)
    for i, chunk in enumerate(draft.chunks()):
        readable[i * CHUNK : (i + 1) * CHUNK] = chunk["readable"]
    kept = np.flatnonzero(readable)
    longest = max(len(paths[i]) for i in kept)
    ends = range(CHUNK, len(kept), CHUNK)
    arrays = {
        "id": (np.int64, (), np.split(np.arange(len(kept)), ends)),
        "path": (f"<U{longest}", (), ([paths[i] for i in part] for part in np.split(kept, ends))),
        "features": (
            "<f4", (draft.size,), (chunk["features"][chunk["readable"]] for chunk in draft.chunks()),
        ),
    }  # fmt: skip
    new = f"{out}.new"
    try:
        with open(new, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for name, (dtype, shape, parts) in arrays.items():
                    head = {"descr": np.dtype(dtype).str, "fortran_order": False}
                    head["shape"] = (len(kept), *shape)
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array_header_1_0(member, head)
                        for part in parts:
                            member.write(np.asarray(part, dtype).tobytes())
            file.flush()
            os.fsync(file.fileno())  # the draft is deleted next
        os.replace(new, out)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(new)
        raise
    bad = [paths[i] for i in np.flatnonzero(~readable)]
    if bad:
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        warnings.warn(
            f"skipped {len(bad)} of {len(paths)} files, which the server cannot read as pictures: "
            f"{', '.join(bad[:10])}{more}",
            stacklevel=3,
        )
    return len(kept), draft.size
