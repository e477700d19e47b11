"""Extracts the features of clips of videos through a server into one .npz, and resumes."""

import hashlib
import itertools
import os

import click
import numpy as np
import tensorflow as tf

from keras_ssl import files
from keras_ssl.serving.client import extraction
from keras_ssl.serving.client.partial_file import CHUNK, PartialFile
from keras_ssl.serving.client.progress import progress_bar
from keras_ssl.serving.client.protocol import pinned


def extract_clips(client, clips, out, pool="mean", progress=False):
    """Extracts the features of the frames of clips into an .npz, and resumes after an interruption.

    The frames are sent as pixels, so they must have the size that `client.input_size()` returns. The partial
    file has the features of single frames; everything else is the same as in `extract`.

    Args:
        client: FeatureClient.
        clips: tf.data.Dataset as `keras_ssl.data.from_videos` returns it.
        out: path of the .npz to write, with `id` (N,) int64, `path` (N,) str, `time` (N,) float32 in seconds
            and `features` (N, D) float32, or (N, T * D). It is written completely or not at all.
        pool: "mean" averages the features of the T frames of a clip, "concat" concatenates them.
        progress: bool, as in `extract`.

    Returns:
        (N, D) or (N, T * D), the shape of the features.

    Raises:
        ValueError: `pool` is unknown, the partial file belongs to another extraction or is in use by one, or
            the server rejects a request.
        ConnectionError, TimeoutError, RuntimeError: as `FeatureClient.features`.

    Example:
        >>> client = FeatureClient("localhost:8500", "rotation_photos")         # doctest: +SKIP
        >>> clips = from_videos("videos/", 4, 1, client.input_size(), step=4)   # doctest: +SKIP
        >>> extract_clips(client, clips, "features.npz")                        # doctest: +SKIP
        (22500, 512)
    """
    if pool not in ("mean", "concat"):
        raise ValueError(f"pool must be 'mean' or 'concat', got {pool!r}")
    frames = clips.element_spec["frames"].shape[0] if "frames" in clips.element_spec else 1
    with files.locked(f"{out}.part.lock", f"out {str(out)!r}"):
        rows = [path for path in clips.paths for _ in range(frames)]
        first = clips.columns["first"].numpy()
        detail = [frames, clips.span, hashlib.sha256(first.tobytes()).hexdigest()]
        partial = PartialFile(f"{out}.part", client, rows, detail)
        with extraction.resumable(partial, len(rows)):
            _fill(client, clips, frames, partial, len(rows), progress)
        shape = _write(partial, clips, frames, pool, out)
        os.remove(partial.path)
    return shape


def _fill(client, clips, frames, partial, number, progress):
    """Requests the features of the remaining frames, and appends them."""
    if partial.version is None:
        (response,) = client._responses(None, itertools.islice(_images(clips, 0, 1), 1))
        extraction.create(client, partial, response)
        partial.append(response.outputs["features"])
    elif progress and partial.rows < number:
        click.echo(f"resuming at image {partial.rows + 1} of {number}", err=True)
    client = pinned(client, partial.version)
    with progress_bar(range(partial.rows, number), progress) as advance:
        for response in client._responses(None, _images(clips, partial.rows, frames)):
            partial.append(extraction.checked_features(response, partial))
            advance(response.count)


def _images(clips, start, frames):
    """Yields the frames of all clips, starting with frame number `start` of all frames."""
    rest = {name: column[start // frames :] for name, column in clips.columns.items()}
    rest = tf.data.Dataset.from_tensor_slices(rest).map(clips.load_row, tf.data.AUTOTUNE)
    images = (
        image for clip in rest.as_numpy_iterator() for image in clip.get("frames", [clip["image"]])
    )
    return itertools.islice(images, start % frames, None)


def _write(partial, clips, frames, pool, out):
    """Writes the .npz in chunks, and returns the shape of the features."""
    number = len(clips.paths)
    starts, times = range(0, number, CHUNK), clips.columns["time"].numpy()
    dimensions = partial.dimensions * (frames if pool == "concat" else 1)
    arrays = {
        "id": (np.int64, (), (np.arange(i, min(i + CHUNK, number)) for i in starts)),
        "path": (
            f"<U{max(map(len, clips.paths))}",
            (),
            (clips.paths[i : i + CHUNK] for i in starts),
        ),
        "time": ("<f4", (), (times[i : i + CHUNK] for i in starts)),
        "features": ("<f4", (dimensions,), _pooled(partial.features(), frames, pool)),
    }
    extraction.write_arrays(out, number, arrays)
    return number, dimensions


def _pooled(chunks, frames, pool):
    """Yields the features of clips from chunks of frame features; a chunk may end in the middle of a clip."""
    rest = None
    for chunk in chunks:
        rest = chunk if rest is None else np.concatenate([rest, chunk])
        whole = len(rest) // frames
        clips, rest = rest[: whole * frames], rest[whole * frames :]
        clips = (
            clips.reshape(whole, frames, -1) if whole else clips.reshape(0, frames, chunk.shape[1])
        )
        yield (
            clips.mean(axis=1) if pool == "mean" else clips.reshape(whole, frames * chunk.shape[1])
        )
