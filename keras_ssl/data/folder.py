"""Reader for a folder of image files."""

import heapq
import os
import warnings
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_ssl import files
from keras_ssl.arguments import is_integer
from keras_ssl.data.columns import random_access
from keras_ssl.ops import decode, images

SAMPLE_FILES = 100  # decoded with `check=False`, to detect a folder without images


def from_folder(path, size, check=True):
    """Creates a dataset from the images in a folder and its subfolders.

    Every file is decoded once at the start, in parallel; unreadable files are skipped. With `check=False`,
    the files are only listed and a hundred of them are decoded: training on a million images starts at once,
    and skips unreadable images on the way. During training, files are read, decoded and resized in parallel.
    Images are resized so that the shorter side fits, and cropped in the center.

    Args:
        path: folder with JPEG, PNG, BMP and GIF files, recognized by their suffix in any letter case.
            If all of them are in subfolders, the first subfolder is the class; labels number the
            classes in alphabetical order.
        size: int, height and width in pixels, or (height, width).
        check: bool, decode every file at the start.

    Returns:
        tf.data.Dataset of dicts with `image` (height, width, 3) uint8, `id` (int64, index in the sorted
        list of readable files; without `check`, of all files) and `label` if there are classes; with
        random access and the attributes `paths` (list of str, indexed by id) and `class_names` (list of
        str, or None).

    Raises:
        ValueError: there is no such folder, no readable image in it, or `size` is not one or two
            positive integers.

    Warns:
        UserWarning: how many files are unreadable, and which; which names are not regular files, are folders
            without read permission, or lead to a folder a second time.

    Example:
        >>> photos = from_folder("photos/", size=96)                    # doctest: +SKIP
    """
    height, width = height_and_width(size)
    folder, found = Path(path), image_files(path)
    decoded = found if check else found[:: -(-len(found) // SAMPLE_FILES)]
    readable = _readable(decoded)
    bad = [name for name, good in zip(decoded, readable, strict=True) if not good]
    paths = sorted(set(found) - set(bad)) if check else found
    if len(bad) == len(decoded):
        raise ValueError(
            f"none of the {len(decoded)} files in {str(path)!r} is a readable image: they are no "
            f"JPEG, PNG, BMP or GIF, or are damaged (first: {bad[0]!r})"
        )
    if check and bad:
        names = files.listed([os.path.relpath(name, folder) for name in bad])
        warnings.warn(
            f"skipped {len(bad)} unreadable of {len(found)} files in {str(path)!r}: {names}",
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

    dataset = random_access(columns, load)
    dataset.paths, dataset.class_names = paths, class_names
    return dataset


def height_and_width(size):
    """Returns (height, width) of a `size` argument, an int or a pair, and validates it."""
    pair = tuple(size) if np.ndim(size) else (size, size)
    if len(pair) != 2 or not all(is_integer(pixels, minimum=1) for pixels in pair):
        raise ValueError(
            f"size must be at least 1 pixel, an integer or (height, width), got {size!r}"
        )
    return pair


def image_files(path):
    """Lists the image files in a folder and its subfolders, by their suffix, sorted.

    Links to files and to folders are followed; each folder is read once, under one name.

    Args:
        path: folder.

    Returns:
        list of str.

    Raises:
        ValueError: there is no such folder, or no image file in it.

    Warns:
        UserWarning: which names were skipped: names that are not regular files, folders without read
            permission, or links to folders that were read already.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"path must be a folder of images, there is no folder {str(path)!r}")
    found, skipped = walk(folder, decode.SUFFIXES)
    if skipped:
        warnings.warn(
            f"skipped {len(skipped)} names in {str(path)!r}, which are no regular files (FIFOs, broken "
            "links), folders without permission to read them, or other names of folders that were read: "
            f"{files.listed([os.path.relpath(name, folder) for name in skipped])}",
            stacklevel=2,
        )
    if not found:
        raise ValueError(
            f"no images in {str(path)!r}: expected files ending in {', '.join(decode.SUFFIXES)}"
        )
    return found


def walk(folder, suffixes):
    """Lists the files with these suffixes in a folder, following links, and the skipped names; both sorted.

    `os.walk` follows a link to a parent folder until the path is too long, and reading a FIFO waits
    forever.
    """
    found, skipped, visited = [], [], set()
    folders, links = [os.fspath(folder)], []
    while folders or links:
        # Links come last, so that a folder is listed under its own name even if a link leads to it, too.
        parent = folders.pop() if folders else heapq.heappop(links)
        try:
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in visited:
                skipped.append(parent)
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(parent) as entries:
                for entry in entries:
                    # Not entry.is_dir() for a link, since it raises an error if the link leads to itself.
                    if entry.is_symlink() and os.path.isdir(entry.path):
                        heapq.heappush(links, entry.path)
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.name.lower().endswith(suffixes):
                        regular = entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path)
                        (found if regular else skipped).append(entry.path)
        except PermissionError:
            skipped.append(parent)
    return sorted(found), sorted(skipped)


def _readable(paths):
    """Decodes files and returns for each whether that succeeded, as a list of bool."""

    def shape_of(path, index):
        # The shape is returned, too, since tf.data removes a decoding whose result is not used.
        return index, tf.shape(decode.decode(tf.io.read_file(path)))

    good = [False] * len(paths)
    rows = tf.data.Dataset.from_tensor_slices((paths, tf.range(len(paths))))
    for index, _ in rows.map(shape_of, tf.data.AUTOTUNE).ignore_errors().as_numpy_iterator():
        good[index] = True
    return good
