"""Small images of the rows of a table, read from their files without TensorFlow."""

import contextlib
import glob
import io
import os
import re
import struct

import numpy as np

SIDE = 160  # pixels of the longer side


def thumbnail(path, time=None, side=SIDE):
    """Reads an image file, or the frame of a video, and downsamples it.

    Args:
        path: str; for a record in a TFRecord file, the path of the file, "#", and the byte at which the
            record begins.
        time: float, seconds from the start of a video; None for images.
        side: int, pixels of the longer side.

    Returns:
        PIL.Image.Image in RGB, or None if the file is gone, has changed its format or is damaged.

    Example:
        >>> thumbnail("photos/a.jpg").size                              # doctest: +SKIP
        (160, 120)
    """
    from PIL import Image

    with contextlib.suppress(Exception):  # PIL raises many kinds of errors for damaged files
        if time is not None:
            image = Image.fromarray(_frame(path, time))
        else:
            # No other formats that Pillow supports: for some, it runs other programs.
            source = path if os.path.exists(path) else _record(path)
            image = Image.open(source, formats=("JPEG", "PNG", "GIF", "BMP"))
        image.draft("RGB", (2 * side, 2 * side))  # decodes a large JPEG at a fraction of its size
        image = image.convert("RGB")
        image.thumbnail((side, side))
        return image
    return None


def jpeg(image):
    """Returns the bytes of a PIL image as JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def _record(path):
    """Returns the column `image` of a tf.train.Example in a TFRecord file, as a file."""
    path, _, offset = path.rpartition("#")
    with open(path, "rb") as file:
        file.seek(int(offset))
        length, _ = struct.unpack("<QI", file.read(12))
        example = file.read(length)
    # Example, Features, entries of the map (key and Feature), BytesList, value.
    for features in _messages(example):
        for entry in _messages(features):
            name, feature = _messages(entry)
            if name == b"image":
                return io.BytesIO(_messages(_messages(feature)[0])[0])
    raise ValueError("no image in the record")


def _messages(message):
    """Returns the fields of a protobuf message whose fields all have a length: a list of bytes."""
    found, position = [], 0
    while position < len(message):
        length, shift, position = 0, 0, position + 1
        while True:
            length |= (message[position] & 127) << shift
            shift, position = shift + 7, position + 1
            if message[position - 1] < 128:
                break
        found.append(message[position : position + length])
        position += length
    return found


def _frame(path, time):
    """Returns the frame of a video at a time, or the numbered image with this number, as (H, W, 3) RGB."""
    import cv2

    if os.path.isfile(path):
        capture = cv2.VideoCapture(path)
        capture.set(cv2.CAP_PROP_POS_MSEC, 1000 * time)
        _, frame = capture.read()
        capture.release()
    else:
        start = os.path.join(path, "") if os.path.isdir(path) else path
        names = glob.glob(f"{glob.escape(start)}*")
        numbered = {re.search(r"(\d+)\.\w+$", name): name for name in names}
        frame = cv2.imread(
            next(name for found, name in numbered.items() if found and int(found[1]) == time)
        )
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def draw(rows, path):
    """Writes a grid of the images of matches.

    Args:
        rows: list of lists of `tables.Match`.
        path: str, of the .png or another format of matplotlib.
    """
    from keras_ssl import files, plotting

    blank = np.full((SIDE, SIDE, 3), 235, np.uint8)
    captioned = []
    for row in rows:
        captioned.append([])
        for match in row:
            image = thumbnail(match.path, match.time)
            name = os.path.basename(match.path)
            caption = f"{name if len(name) <= 18 else name[:15] + '...'}\n{match.cosine:.3f}"
            captioned[-1].append((blank if image is None else np.asarray(image), caption))
    with files.complete(path) as draft:
        plotting.grid(captioned).savefig(draft)
