"""Nearest neighbors of images in a table of features, by cosine."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_ssl.arguments import check_integer
from keras_ssl.tables import index
from keras_ssl.tables.identity import Identity, of_model
from keras_ssl.tables.store import READ, SHOWN, FeatureTable

EXACT_BYTES = 2**30  # of vectors in memory


class Match(NamedTuple):
    """A row of a table that is similar to a query."""

    id: int
    path: str
    time: float | None  # of a clip, in seconds
    label: str | None
    cosine: float


def search(table, images, number=10, model=None):
    """Finds the rows of a table that are most similar to images, by the cosine of the features.

    Up to 100,000 rows, all vectors are compared in memory. Above that, LanceDB compares all vectors on the
    disk, or only those that its index proposes if there is one (`keras-ssl index`).

    Args:
        table: str, path of a table that `keras-ssl extract` wrote; or a `tables.FeatureTable`, which keeps
            the vectors in memory for the next search.
        images: (N, D) array of floats, features of the table's model; or a list of paths or bytes of image
            files. The features of files whose content is in the table are read from the table.
        number: int, matches per image.
        model: path of the export or .keras file for `images` that are not in the table, or a FeatureClient.

    Returns:
        list of N lists of `tables.Match`, the most similar first.

    Raises:
        ValueError: the table is empty, `images` is neither of these, a file cannot be read, `number` is below
            1, or `model` is missing or not the model of the table.
        ImportError: LanceDB is not installed.

    Example:
        >>> matches = kssl.search(                                      # doctest: +SKIP
        ...     "features.lance", ["a.jpg"], 3, model="saved_models/rotation_photos")
        >>> [(match.path, round(match.cosine, 2)) for match in matches[0]]  # doctest: +SKIP
        [('/photos/a.jpg', 1.0), ('/photos/b.jpg', 0.91), ('/photos/f.jpg', 0.87)]
    """
    check_integer("number", number, 1)
    if not isinstance(table, FeatureTable):
        table = FeatureTable(table)
    table.refresh()
    if isinstance(images, str | bytes | Path):
        raise ValueError(
            "images must be a list of paths or an array, got a single one: wrap it in a list"
        )
    if isinstance(images, list | tuple) and images and isinstance(images[0], str | bytes | Path):
        images = features_of(table, images, model)
    return nearest(table, checked(table, images), number)


def checked(table, vectors):
    try:
        vectors = np.asarray(vectors, np.float32)
    except (TypeError, ValueError):
        vectors = np.empty(0)
    if vectors.ndim != 2 or vectors.shape[1] != table.dimensions or not len(vectors):
        raise ValueError(
            f"images must be paths or an (N, {table.dimensions}) array of features, got shape {vectors.shape}"
        )
    if not (np.isfinite(vectors).all() and vectors.any(axis=1).all()):
        raise ValueError(
            "images must be features that are finite and not all 0: they have no cosine"
        )
    return vectors


def nearest(table, vectors, number):
    """Searches like `search`, in a FeatureTable, with checked (N, D) float32 features."""
    if table.kept and table.kept.version == table.lance.version:
        return _exact(table, vectors, number)
    rows = table.count()
    if not rows:
        raise ValueError(f"table: {table.path!r} is empty: extract features into it first")
    if rows <= index.EXACT_ROWS and rows * table.dimensions * 4 <= EXACT_BYTES:
        return _exact(table, vectors, number)
    return [
        [_match(row, row["cosine"]) for row in index.query(table, vector, number, SHOWN)]
        for vector in vectors
    ]


def _exact(table, vectors, number):
    kept = in_memory(table)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    number = min(number, len(kept.ids))
    found = []
    for cosines in _blocks(vectors, kept.unit):
        best = np.argpartition(-cosines, number - 1)[:number]
        best = best[np.lexsort((kept.ids[best], -cosines[best]))]
        rows = kept.shown.take(best).to_pylist()
        found.append([_match(row, cosines[i]) for row, i in zip(rows, best, strict=True)])
    return found


def _blocks(vectors, matrix):
    """Yields the (R,) cosines of each vector with all rows of a matrix, computed for 64 vectors at once."""
    for start in range(0, len(vectors), 64):
        yield from vectors[start : start + 64] @ matrix.T


class Kept(NamedTuple):
    """The data of a table that search keeps in memory."""

    version: int  # of the table
    ids: np.ndarray  # (R,) int64, ascending
    unit: np.ndarray  # (R, D) float32, features of length 1
    shown: object  # pyarrow.Table with the columns of a Match


def in_memory(table):
    """Returns the Kept of a FeatureTable, read once for each version of the table."""
    version = table.lance.version
    if table.kept is None or table.kept.version != version:
        ids, unit = table.vectors()
        unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-30)
        table.kept = Kept(version, ids, unit, table.columns(SHOWN, READ).sort_by("id"))
    return table.kept


def _match(row, cosine):
    return Match(row["id"], row["path"], row["time"], row["label"], float(cosine))


def features_of(table, images, model=None):
    """Returns the (N, D) features of image files: from the table by content, or else from `model`.

    Args:
        table: FeatureTable.
        images: list of paths, or of the bytes of files.
        model: as in `search`.

    Returns:
        (N, D) float32 array.

    Raises:
        ValueError: as `search`.
    """
    if table.identity.pool == "concat":
        raise ValueError(
            f"images: {table.path!r} holds features of {table.identity.frames} concatenated frames, which an "
            "image does not have: give features of clips"
        )
    contents = [_content(image) for image in images]
    found = {content: _stored(table, content) for content in contents}
    if missing := [content for content, vector in found.items() if vector is None]:
        first = _name_of(images[contents.index(missing[0])])
        if model is None:
            raise ValueError(
                f"model is missing: {first} is not in {table.path!r}, so give the export that computed the "
                f"table ({table.identity.label})"
            )
        for content, result in encoder_of(table, model).files(
            (content, content) for content in missing
        ):
            if isinstance(result, str):
                name = _name_of(images[contents.index(content)])
                raise ValueError(f"images: {name} cannot be read as an image: {result}")
            found[content] = result
    return np.array([found[content] for content in contents], np.float32)


def is_stored(table, image):
    """Returns whether the table has the features of an image file, by its content."""
    return _stored(table, _content(image)) is not None


def _content(image):
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise ValueError(f"images: {_name_of(image)} cannot be read: {error.strerror}") from None


def _name_of(image):
    return "the file" if isinstance(image, bytes) else repr(str(image))


def _stored(table, content):
    """Returns the features of a file with these bytes from the table, or None if it is not in the table."""
    digest = hashlib.sha256(content).hexdigest()
    rows = table.columns(["vector"], f"hash = '{digest}' AND time IS NULL AND {READ}").to_pylist()
    return rows[0]["vector"] if rows else None


def encoder_of(table, model):
    """Returns the encoder of a path or FeatureClient, after checking that it is the table's model.

    Args:
        table: FeatureTable.
        model: path, FeatureClient, or an earlier result of this function.

    Returns:
        `encode.LocalEncoder` or `encode.ServedEncoder`.

    Raises:
        ValueError: it is another model.
    """
    if hasattr(model, "files"):
        return model
    from keras_ssl.saved_model import load
    from keras_ssl.tables import encode

    pooling, hint = table.identity[3:], "give the model that computed it"
    if not isinstance(model, str | os.PathLike):  # a FeatureClient
        table.check(Identity(model.model, table.identity.version, None, *pooling), hint)
        encoder = encode.ServedEncoder(model)
        encoder.pin(table.identity.version)
        return encoder
    table.check(Identity(*of_model(model)[:3], *pooling), hint)
    if Path(model).is_file():
        import keras

        loaded = keras.models.load_model(model)
        return encode.LocalEncoder(getattr(loaded, "encoder", loaded))
    return encode.LocalEncoder(load(model))
