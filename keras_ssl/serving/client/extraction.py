"""Extracts the features of many image files through a server into one .npz, and resumes."""

import contextlib
import os
import warnings
import zipfile

import click
import numpy as np

from keras_ssl import files
from keras_ssl.serving.client.partial_file import CHUNK, PartialFile
from keras_ssl.serving.client.progress import progress_bar
from keras_ssl.serving.client.protocol import pinned


def extract(client, paths, out, progress=False):
    """Extracts the features of image files into an .npz, and resumes after an interruption.

    Rows are appended to a partial file, `<out>.part`, as they arrive. If the process is killed, the power
    fails or the server becomes unavailable, the same call resumes after the last complete row of the partial
    file. Memory use does not grow with the size of the features.

    All rows come from the same version of the model: the version of the first response is requested by its
    number from then on, even after a resume, and even if a newer version has become available. Files that the
    server cannot read as images are left out, and reported in one warning at the end. The partial file
    records the model, the version or label that the client requests, and the names, sizes and modification
    times of the files; the server's address may change.

    Args:
        client: FeatureClient.
        paths: list of str, the files.
        out: path of the .npz to write, with `id` (N,) int64, `path` (N,) str and `features` (N, D)
            float32. It is written completely or not at all.
        progress: bool, report on stderr where extraction resumes, and show a progress bar.

    Returns:
        (N, D), the shape of the features.

    Raises:
        ValueError: `paths` is empty, no file is an image, the partial file belongs to another
            extraction or is in use by one, or the server rejects a request (unknown model, or it no longer
            serves the version of the partial file).
        OSError: a file cannot be opened.
        ConnectionError, TimeoutError, RuntimeError: as `FeatureClient.features`.

    Warns:
        UserWarning: how many files are not readable images, and which.

    Example:
        >>> client = FeatureClient("localhost:8500", "rotation_photos")         # doctest: +SKIP
        >>> extract(client, sorted(map(str, Path("photos").rglob("*.jpg"))), "features.npz")
        ...                                                             # doctest: +SKIP
        (1000000, 512)
    """
    if not paths:
        raise ValueError("paths must contain at least one file, got none")
    with files.locked(f"{out}.part.lock", f"out {str(out)!r}"):
        return _extract(client, paths, out, progress)


def _extract(client, paths, out, progress):
    partial = PartialFile(f"{out}.part", client, paths)
    with resumable(partial, len(paths)):
        if partial.version is None:
            _start(client, paths, partial)
        elif progress and partial.rows < len(paths):
            click.echo(f"resuming at image {partial.rows + 1} of {len(paths)}", err=True)
        _fill(pinned(client, partial.version), paths, partial, progress)
    readable = partial.readable()
    if not readable.any():  # including those from before it resumed
        os.remove(partial.path)
        raise _no_image(paths)
    _write(partial, [paths[i] for i in np.flatnonzero(readable)], out)
    unreadable = [paths[i] for i in np.flatnonzero(~readable)]
    if unreadable:
        warnings.warn(
            f"skipped {len(unreadable)} of {len(paths)} files, which the server cannot read as "
            f"images: {files.listed(unreadable)}",
            stacklevel=2,
        )
    os.remove(partial.path)
    return len(paths) - len(unreadable), partial.dimensions


@contextlib.contextmanager
def resumable(partial, number):
    """Adds to an error that interrupts extraction how many of `number` images are in the partial file."""
    try:
        yield
    except (ConnectionError, TimeoutError, RuntimeError) as error:
        if partial.rows:
            error.args = (
                f"{error}; {partial.rows} of {number} images are in {partial.path!r}, run the "
                "same command again to resume",
            )
        raise


def create(client, partial, response):
    """Creates the partial file for the version and the dimensions of a response."""
    if response.version is None:
        raise RuntimeError(
            f"server {client.address!r} does not report which version of {client.model!r} "
            "computed a response, so the features of two versions could be mixed"
        )
    partial.create(response.version, response.outputs["features"].shape[1])


def _start(client, paths, partial):
    """Creates the partial file with the first readable image, whose response has the version."""
    for count, path in enumerate(paths):
        response = _request_one(client, path)
        if response is None:
            continue
        create(client, partial, response)
        partial.append_unreadable(count)
        partial.append(response.outputs["features"])
        return
    raise _no_image(paths)


def _no_image(paths):
    return ValueError(
        f"none of the {len(paths)} files is an image that the server can read (first: {paths[0]!r})"
    )


def _fill(client, paths, partial, progress):
    """Requests the remaining images and appends their features."""
    with progress_bar(range(partial.rows, len(paths)), progress) as advance:
        while partial.rows < len(paths):
            try:
                for response in client._responses("encoded", paths[partial.rows :]):
                    partial.append(checked_features(response, partial))
                    advance(response.count)
            except ValueError as error:
                if _status(error) == "NOT_FOUND":
                    raise ValueError(
                        f"{error}; the {partial.rows} rows in {partial.path!r} were computed by "
                        f"version {partial.version}: serve it, or delete that file to start again"
                    ) from None
                if _status(error) != "INVALID_ARGUMENT":
                    raise
                # The server rejects the whole request because of one unreadable image: find it.
                for path in paths[partial.rows : partial.rows + client.batch_size]:
                    response = _request_one(client, path)
                    if response is None:
                        partial.append_unreadable(1)
                    else:
                        partial.append(checked_features(response, partial))
                    advance(1)


def _request_one(client, path):
    """Returns the response for one image, or None if the server cannot read it."""
    try:
        (response,) = client._responses("encoded", [path])
        return response
    except ValueError as error:
        if _status(error) != "INVALID_ARGUMENT":
            raise
        return None


def _status(error):
    """Returns the name of the gRPC status that caused an exception, or None."""
    return getattr(error, "code", None)


def checked_features(response, partial):
    """Returns a response's features if they have the version and dimensions of the partial file."""
    features = response.outputs["features"]
    if response.version != partial.version or features.shape[1:] != (partial.dimensions,):
        raise RuntimeError(
            f"requested version {partial.version} with {partial.dimensions} features, but the server "
            f"responded with version {response.version} and features of shape {features.shape[1:]}"
        )
    return features


def _write(partial, paths, out):
    """Writes the .npz in chunks; `paths` has the paths of the readable images."""
    number = len(paths)
    starts = range(0, number, CHUNK)
    arrays = {
        "id": (np.int64, (), (np.arange(i, min(i + CHUNK, number)) for i in starts)),
        "path": (f"<U{max(map(len, paths))}", (), (paths[i : i + CHUNK] for i in starts)),
        "features": ("<f4", (partial.dimensions,), partial.features()),
    }
    write_arrays(out, number, arrays)


def write_arrays(out, number, arrays):
    """Writes an .npz of arrays of `number` rows: a dict of name: (dtype, shape of a row, chunks of rows)."""
    with files.complete(out) as draft, zipfile.ZipFile(draft, "w") as archive:
        for name, (dtype, shape, chunks) in arrays.items():
            header = {
                "descr": np.dtype(dtype).str, "fortran_order": False, "shape": (number, *shape),
            }  # fmt: skip
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for chunk in chunks:
                    member.write(np.asarray(chunk, dtype).tobytes())
