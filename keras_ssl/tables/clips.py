"""Updates a table from the clips of a folder of videos."""

import os
from pathlib import Path

import tensorflow as tf

from keras_ssl import files
from keras_ssl.data import video_files
from keras_ssl.serving.client.progress import progress_bar
from keras_ssl.tables import store
from keras_ssl.tables.update import Writer, image_size, label_of

CONTENT = ("hash", "bytes", "modified", "height", "width")


def update_clips(path, folder, clips, identity, encoder, progress=False):
    """Brings a table up to date with the clips of a folder of videos, a row for each clip.

    It works like `update`, except that the rows of a video whose content has changed are removed and computed
    again. A video without a clip gets a row with a `reason` and without a vector.

    Args:
        path, folder, encoder, progress: as in `update`.
        clips: tf.data.Dataset that `keras_ssl.data.from_videos` read from `folder`, in the encoder's size.
        identity: Identity of the model with the clips' `frames`, `stride` and `pool`.

    Returns:
        Counts.

    Raises:
        ValueError: as `update`.

    Example:
        >>> clips = kssl.data.from_videos("videos/", 4, 2, size=64, step=8)     # doctest: +SKIP
        >>> identity = of_model("saved_models/x").with_clips(4, 2, "mean")      # doctest: +SKIP
        >>> update_clips("clips.lance", "videos/", clips, identity, encoder)    # doctest: +SKIP
    """
    with store.locked(path):
        writer = Writer(path, folder, identity, encoder)
        columns = {name: column.numpy() for name, column in clips.columns.items()}
        times = columns["time"].tolist()
        keys = [
            (os.path.abspath(name), time) for name, time in zip(clips.paths, times, strict=True)
        ]
        videos = {os.path.abspath(video.path): video for video in video_files.find(folder)[0]}
        first = dict(reversed(keys))  # time of the first clip of each video
        found = {
            name: _content(video, writer.known(name, first.get(name)))
            for name, video in videos.items()
        }
        empty = {(name, None) for name in videos.keys() - first.keys()}
        same = {
            key for key in {*keys, *empty}
            if (known := writer.known(*key)) and known["hash"] == found[key[0]]["hash"]
        }  # fmt: skip
        writer.remove_others(same)
        for key in same:
            known, now = writer.known(*key), found[key[0]]
            if (known["bytes"], known["modified"]) == (now["bytes"], now["modified"]):
                writer.unchanged += 1
            else:
                writer.touch(known["id"], now["bytes"], now["modified"])
        for name, _ in sorted(empty - same):
            row = {"path": name, "label": label_of(name, folder), **found[name]}
            writer.write(row, "no clip of these frames in it, or it is damaged")
        todo = [i for i, key in enumerate(keys) if key not in same]
        with progress_bar(todo, progress) as advance:
            for row, features in encoder.clips(_items(clips, todo, keys, folder, found)):
                pooled = (
                    features.reshape(-1) if identity.pool == "concat" else features.mean(axis=0)
                )
                writer.write(row, pooled)
                advance(1)
        return writer.close(f"{len(videos)} videos in {str(folder)!r}")


def _items(clips, todo, keys, folder, found):
    """Yields (row, (T, H, W, 3) uint8) of the clips with the numbers `todo`."""
    if not todo:
        return
    rest = {name: tf.gather(column, todo) for name, column in clips.columns.items()}
    loaded = tf.data.Dataset.from_tensor_slices(rest).map(clips.load_row, tf.data.AUTOTUNE)
    for i, clip in zip(todo, loaded.prefetch(2).as_numpy_iterator(), strict=True):
        name, time = keys[i]
        row = {"path": name, "time": time, "label": label_of(name, folder), **found[name]}
        yield row, clip["frames"] if "frames" in clip else clip["image"][None]


def _content(video, known):
    """Returns the columns `CONTENT` of a video, from one of its rows if the video has not changed."""
    status = [os.stat(name) for name in video.files]
    size, modified = sum(s.st_size for s in status), max(s.st_mtime_ns for s in status)
    if known and (known["bytes"], known["modified"]) == (size, modified):
        return {name: known[name] for name in CONTENT}
    height, width = _frame_size(video)
    return {
        "hash": files.sha256(*video.files), "bytes": size, "modified": modified,
        "height": height, "width": width,
    }  # fmt: skip


def _frame_size(video):
    if video.numbers:
        return image_size(Path(video.files[0]).read_bytes())
    import cv2

    capture = cv2.VideoCapture(video.path)
    height, width = capture.get(cv2.CAP_PROP_FRAME_HEIGHT), capture.get(cv2.CAP_PROP_FRAME_WIDTH)
    capture.release()
    return (int(height) or None), (int(width) or None)
