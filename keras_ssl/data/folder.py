"""Reader for a folder of picture files."""

import os
import warnings
from pathlib import Path

import tensorflow as tf

from keras_ssl.data.columns import addressable
from keras_ssl.ops import decode, images

SOME = 100  # files that are decoded where not all are, to notice a folder of something else


def from_folder(path, size, check=True):
    """Dataset from the pictures in a folder and the folders below it.

    Every file is decoded once at the start, in parallel, to find the unreadable ones; they are
    skipped. With `check=False` the files are only listed (a hundred are looked at): a training on a
    million starts at once, and skips what it cannot read. From then on files are read, decoded and
    resized in parallel as they are needed. Pictures are resized so that the shorter side fits, and
    cropped in the middle.

    Args:
        path: folder with JPEG, PNG, BMP and GIF files, by their suffix and in any letter case.
            Where all of them lie in folders below it, the first of these is the class: the labels
            number the classes in alphabetical order.
        size: int, height and width in pixels, or (height, width).
        check: bool, decode every file at the start.

    Returns:
        tf.data.Dataset of dicts with `image` (height, width, 3) uint8, `id` (int64, place in the
        sorted list of readable files; without `check`, of all files) and `label` where there are
        classes; with the attributes `paths` (list of str, indexed by id) and `class_names` (list of
        str, or None).

    Raises:
        ValueError: no such folder, no readable picture in it, or a `size` that is not positive.

    Warns:
        UserWarning: how many files are unreadable, and which.

    Example:
        >>> photos = from_folder("photos/", size=96)                    # doctest: +SKIP
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size!r}")
    folder, found = Path(path), pictures_in(path)
    looked_at = found if check else found[:: -(-len(found) // SOME)]
    readable = _readable(looked_at)
    bad = [name for name, good in zip(looked_at, readable, strict=True) if not good]
    paths = sorted(set(found) - set(bad)) if check else found
    if len(bad) == len(looked_at):
        raise ValueError(
            f"none of the {len(looked_at)} files in {str(path)!r} is a readable picture: they are no "
            f"JPEG, PNG, BMP or GIF, or are damaged (first: {bad[0]!r})"
        )
    if check and bad:
        names = ", ".join(os.path.relpath(name, folder) for name in bad[:10])
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        warnings.warn(
            f"skipped {len(bad)} unreadable of {len(found)} files in {str(path)!r}: {names}{more}",
            stacklevel=2,
        )

    columns = {"path": paths, "id": tf.range(len(paths), dtype=tf.int64)}
    start = len(os.path.join(folder, ""))
    classes = [name[start:].split(os.sep, 1)[0] for name in paths if os.sep in name[start:]]
    class_names = sorted(set(classes)) if len(classes) == len(paths) else None
    if class_names:
        number = {name: i for i, name in enumerate(class_names)}
        columns["label"] = tf.constant([number[name] for name in classes], tf.int64)

    def load(row):
        image = images.resize(decode.decode(tf.io.read_file(row["path"])), height, width)
        return {"image": image, **{name: row[name] for name in row if name != "path"}}

    dataset = addressable(columns, load)
    dataset.paths, dataset.class_names = paths, class_names
    return dataset


def pictures_in(path):
    """The picture files in a folder and the folders below it, by their suffix, sorted.

    Args:
        path: folder.

    Returns:
        list of str.

    Raises:
        ValueError: no such folder, or no picture file in it.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"path must be a folder of pictures, there is no folder {str(path)!r}")
    found = sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(decode.SUFFIXES)
    )
    if not found:
        raise ValueError(
            f"no pictures in {str(path)!r}: expected files ending in {', '.join(decode.SUFFIXES)}"
        )
    return found


def _readable(paths):
    """One bool per file: can it be decoded?"""

    def shape_of(path, index):
        # The shape goes out too: tf.data drops a decoding whose result nobody wants.
        return index, tf.shape(decode.decode(tf.io.read_file(path)))

    good = [False] * len(paths)
    files = tf.data.Dataset.from_tensor_slices((paths, tf.range(len(paths))))
    for index, _ in files.map(shape_of, tf.data.AUTOTUNE).ignore_errors().as_numpy_iterator():
        good[index] = True
    return good
