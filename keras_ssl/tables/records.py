"""Updates a table from a folder of TFRecord files, a row for each record."""

import hashlib
import os

import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_ssl.data import records, schema
from keras_ssl.serving.client.progress import progress_bar
from keras_ssl.tables import store
from keras_ssl.tables.update import Writer, has_text, image_size, is_record


def update_records(path, folder, identity, encoder, progress=False):
    """Brings a table up to date with a folder of TFRecords, written by `data.to_tfrecord` or other programs.

    It works like `update`, but the path of a row consists of the path of the file, "#", and the byte at which
    its record begins. The records of a file that has not been written since the last update are not read.

    Args:
        path, encoder, progress: as in `update`.
        folder: folder of TFRecord files of tf.train.Example, with the encoded image in `image` and optionally
            its class in `label`, as in `data.from_tfrecord`.
        identity: Identity of the model.

    Returns:
        Counts.

    Raises:
        ValueError: as `update`.

    Warns:
        UserWarning: which parts of which files are damaged.

    Example:
        >>> kssl.data.to_tfrecord(images, "records/")                   # doctest: +SKIP
        >>> update_records("features.lance", "records/", identity, encoder)     # doctest: +SKIP
        Counts(new=1000, changed=0, removed=0, unchanged=0, unreadable=0)
    """
    start = os.path.abspath(folder)
    with store.locked(path):
        writer = Writer(path, folder, identity, encoder)
        names = list(filter(has_text, map(os.path.abspath, records.record_files(folder))))
        index = records.index(folder, names)
        keys = (
            (f"{names[i]}#{k}", None) for i, k in zip(index["file"], index["offset"], strict=True)
        )
        writer.remove_others(keys, lambda path: is_record(path) and os.path.dirname(path) == start)
        class_names, number = schema.read_manifest(folder).get("class_names"), len(index["id"])
        with progress_bar(range(number), progress) as advance:
            for row, result in encoder.files(_changed(index, names, class_names, writer, advance)):
                writer.write(row, result)
                advance(1)
        return writer.close(f"{number} records in {str(folder)!r}")


def _changed(index, names, class_names, writer, advance):
    """Yields (row, bytes of the image) for the records that are new or have changed."""
    for file, offset, length in zip(*(index[k] for k in ("file", "offset", "length")), strict=True):
        name, offset, length = names[file], int(offset), int(length)
        row = {"path": f"{name}#{offset}"}
        known = writer.known(row["path"])
        try:
            modified = os.stat(name).st_mtime_ns
            if known and (known["bytes"], known["modified"]) == (length, modified):
                writer.unchanged += 1
                advance(1)
                continue
            record = records.read(name, offset, length).numpy()
        except tf.errors.DataLossError:
            record = b""
        except (OSError, tf.errors.OpError) as error:
            # Records that could be read before may be readable again: a network disk may be away for a
            # moment.
            if known:
                writer.unchanged += 1
            else:
                writer.write(row, str(error).partition("\n")[0])
            advance(1)
            continue
        content, label = _image(record)
        row |= {"bytes": length, "modified": modified}
        if label is not None:
            known_name = class_names and 0 <= label < len(class_names)
            row["label"] = class_names[label] if known_name else str(label)
        if content is None:
            writer.write(row, "a damaged record, or none with one image in 'image'")
            advance(1)
            continue
        row["hash"] = hashlib.sha256(content).hexdigest()
        if known and known["hash"] == row["hash"]:
            writer.touch(known["id"], length, modified, label=row.get("label"))
            advance(1)
            continue
        row["height"], row["width"] = image_size(content)
        yield row, content


def _image(record):
    """Returns the bytes of the image in a record, or None, and its class, an int or None."""
    try:
        features = tf.train.Example.FromString(record).features.feature
    except DecodeError:
        return None, None
    image, label = features["image"].bytes_list.value, features["label"].int64_list.value
    return (image[0] if len(image) == 1 else None), (label[0] if len(label) == 1 else None)
