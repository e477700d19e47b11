"""Data sets of any size in TFRecord files: a writer that resumes, a reader that can ask for any record."""

import contextlib
import json
import os
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_ssl.data.arrays import subset
from keras_ssl.data.columns import addressable
from keras_ssl.data.records import index, read, record_files
from keras_ssl.ops import decode
from keras_ssl.ops import images as pixels

SHARD_BYTES = 100e6  # of pixels; PNG makes them somewhat smaller
MANIFEST = "pictures.json"
LISTS = {"int64": "int64_list", "float32": "float_list", "string": "bytes_list"}


def to_tfrecord(images, path, shards=None, verbose=1):
    """Writes a data set as TFRecord files, which `from_tfrecord` reads bit for bit.

    A killed run is continued by the same call: finished files stay, and the result is that of a run that
    was never stopped. Pictures of uint8 become PNG, so that any reader of tf.train.Example takes them;
    columns of int64, float32 and strings its lists; everything else serialized tensors. A small
    `pictures.json` beside the files tells which is which, and the names of the classes.

    Args:
        images: tf.data.Dataset of dicts of tensors of fixed shapes, among them `image` (H, W, C), of known
            length and the same order at every reading, as the readers in `keras_ssl.data` make it.
        path: folder to write to; made if there is none.
        shards: int, number of files; about 100 MB of pixels each by default.
        verbose: 1 shows progress, 0 does not.

    Returns:
        list of str, the files `pictures-00000-of-00016.tfrecord` and so on.

    Raises:
        ValueError: `images` is no such dataset or holds a picture that cannot be read, `shards` is not in
            1..number of pictures, or `path` is a file or holds other TFRecord files.

    Example:
        >>> import tempfile, keras_ssl as kssl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = to_tfrecord(kssl.data.digits("test"), folder, shards=2, verbose=0)
        ...     copy = kssl.data.to_arrays(from_tfrecord(folder))
        >>> os.path.basename(files[1]), copy["image"].shape
        ('pictures-00001-of-00002.tfrecord', (360, 32, 32, 3))
    """
    folder, spec, number = Path(path), images.element_spec, int(images.cardinality())
    if not isinstance(spec, dict) or "image" not in spec or number <= 0:
        raise ValueError(
            "images must yield dicts with `image` and have a known length of at least 1, got "
            f"{spec} and cardinality {number}"
        )
    for name, column in spec.items():
        if not isinstance(column, tf.TensorSpec) or not column.shape.is_fully_defined():
            raise ValueError(f"images must have columns of fixed shapes, {name!r} is {column}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"path must be a folder to write to, {str(path)!r} is a file")
    manifest, found = _manifest(folder), record_files(folder)
    if found and not manifest:
        raise ValueError(f"path {str(path)!r} holds other TFRecord files: give an empty folder")
    if shards is None:
        size = sum(s.shape.num_elements() * max(s.dtype.size or 1, 1) for s in spec.values())
        shards = (
            manifest["shards"] if manifest else min(number, -int(-number * size // SHARD_BYTES))
        )
    if not 1 <= shards <= number:
        raise ValueError(f"shards must be in 1..{number}, the number of pictures, got {shards}")
    wanted = {
        "pictures": number,
        "shards": shards,
        "columns": {k: [s.dtype.name, s.shape.as_list()] for k, s in spec.items()},
        "class_names": getattr(images, "class_names", None),
    }
    for key in wanted if manifest else ():
        if manifest.get(key) != wanted[key]:
            raise ValueError(
                f"path {str(path)!r} holds another data set or another division of it, {key} "
                f"{manifest.get(key)} instead of {wanted[key]}: give an empty folder"
            )

    def encode(element):
        return {name: _encode(name, value) for name, value in element.items()}

    files = [str(folder / name) for name in _shard_names(shards)]
    missing = [shard for shard in range(shards) if not os.path.exists(files[shard])]
    if 0 not in missing:  # a data set of the same size may be another one all the same
        first = next(iter(images.take(1).map(encode).as_numpy_iterator()))
        if _example(first) != next(tf.data.TFRecordDataset(files[0]).as_numpy_iterator()):
            raise ValueError(
                f"path {str(path)!r} holds another data set, its first picture differs: give an "
                "empty folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".pictures*.part"):
        leftover.unlink()
    if not manifest:
        with _whole(folder / MANIFEST) as draft:
            Path(draft).write_text(json.dumps(wanted, indent=1))
    spans = [range(s * number // shards, (s + 1) * number // shards) for s in missing]
    places = np.concatenate([*spans, np.empty(0)]).astype(np.int64)
    rows = images if len(places) == number else subset(images, places)
    rows = rows.map(encode, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
    bar = keras.utils.Progbar(number, verbose=verbose, unit_name="picture")
    bar.update(number - len(places))
    for shard, span in zip(missing, spans, strict=True):
        with _whole(files[shard]) as draft, tf.io.TFRecordWriter(draft) as writer:
            for place in span:
                try:
                    row = next(rows)
                except tf.errors.OpError as error:
                    raise ValueError(
                        f"images has a picture that cannot be read, the one at place {place} "
                        f"({error.message.splitlines()[0]}): leave it out, as from_folder does with "
                        "check=True"
                    ) from None
                writer.write(_example(row))
                bar.add(1)
    return files


def from_tfrecord(path, size=None, image="image", label="label"):
    """Dataset from a folder of TFRecord files, of `to_tfrecord` or of others.

    The files are not read at the start: only the 12 bytes before each record, which tell its length. So
    every record can be asked for by its place, whatever the number of files. Where such a header is damaged
    the next good one is looked for; a record whose data are damaged fails when it is loaded.

    Args:
        path: folder with files named *.tfrecord, *.tfrecords, *.tfrecord-00000-of-00016 or
            *-00000-of-00016, not compressed, of tf.train.Example.
        size: int, height and width in pixels, or (height, width), to which pictures are resized and cropped
            in the middle; None for the size that they have (of the first readable one, if
            `to_tfrecord` did not write them; others fail when they are loaded).
        image: str, the feature that holds a picture: JPEG, PNG, BMP or GIF, such as "image/encoded".
        label: str, the feature that holds the class, one int64, such as "image/class/label"; None for none.

    Returns:
        tf.data.Dataset of dicts with `image` (height, width, 3) uint8, `id` (int64, as stored, else the place
        among the readable records), `label` if there is one, and every column that `to_tfrecord` wrote; with
        the attributes `files` (list of str) and `class_names` (list of str, or None).

    Raises:
        ValueError: no such folder, no TFRecord file or readable record in it, files of `to_tfrecord` missing,
            no feature `image` or `label`, or a `size` that is not positive.

    Warns:
        UserWarning: how much of which files is damaged.

    Example:
        >>> imagenet = from_tfrecord("imagenet/", 224, "image/encoded", "image/class/label")
        ...                                                             # doctest: +SKIP
    """
    files, manifest = record_files(path), _manifest(path)
    if not files:
        raise ValueError(f"path must be a folder of TFRecord files, there is none in {str(path)!r}")
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        if height < 1 or width < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size!r}")
    if manifest:
        names = _shard_names(manifest["shards"])
        files = [str(Path(path) / name) for name in names if (Path(path) / name).exists()]
        if len(files) < len(names):
            raise ValueError(
                f"path {str(path)!r} holds {len(files)} of {len(names)} files: call to_tfrecord again, it "
                f"continues, or delete {MANIFEST} to read what there is"
            )
    rows = index(path, files)
    stored = manifest["columns"] if manifest else _columns(path, files, rows, image, label)
    for argument, key in (("image", image), ("label", label)):
        if key not in stored and key not in ("label", None):
            raise ValueError(_no_column(argument, key, path, stored))
    if label is None:
        stored = {key: column for key, column in stored.items() if key != "label"}
    shape = stored[image][1]
    if size is None:
        height, width = shape[:2]
    is_png = _is_png("image", *stored[image])
    if not is_png and [height, width] != shape[:2]:
        raise ValueError(
            f"size must be None for the pictures in {str(path)!r}, {stored[image][0]} of {shape}, got {size}"
        )
    resized = [height, width] != shape[:2] or (size is not None and not manifest)
    names = {image: "image", label: "label"}
    features = {k: tf.io.FixedLenFeature(*_feature(*c)) for k, c in stored.items()}
    paths = tf.constant(files)

    def load(row):
        record = read(tf.gather(paths, row["file"]), row["offset"], row["length"])
        element = {"id": row["id"]}
        for key, value in tf.io.parse_single_example(record, features).items():
            name = names.get(key, key)
            if name == "image" and is_png:
                value = decode.decode(value)
                if resized:
                    value = pixels.resize(value, height, width)
                fits = tf.reduce_all(tf.shape(value)[:2] == [height, width])
                check = tf.debugging.Assert(fits, ["pictures differ in size: give a size"])
                with tf.control_dependencies([check] if check is not None else []):
                    value = tf.ensure_shape(tf.identity(value), [height, width, 3])
            elif stored[key][0] not in LISTS:
                value = tf.ensure_shape(tf.io.parse_tensor(value, stored[key][0]), stored[key][1])
            element[name] = value
        return element

    dataset = addressable(rows, load)
    dataset.files, dataset.class_names = files, manifest.get("class_names")
    return dataset


def _columns(path, files, rows, image, label):
    """What the first readable record of others' files has, as `to_tfrecord` would have noted it."""
    for file, offset, length, _ in zip(*rows.values(), strict=True):
        try:
            record = read(files[file], offset, length).numpy()
            features = tf.train.Example.FromString(record).features.feature
            if image not in features:
                raise ValueError(_no_column("image", image, path, features))
            shape = decode.decode(features[image].bytes_list.value[0]).shape.as_list()
        except (tf.errors.OpError, DecodeError, IndexError):
            continue
        columns = {image: ["uint8", shape]}
        for argument, key in (("label", label), ("id", "id")):
            if key in features and len(features[key].int64_list.value) == 1:
                columns[key] = ["int64", []]
            elif key in features and argument == "label":
                raise ValueError(
                    f"label must name a column with one int64, {key!r} is none in {str(path)!r}: name "
                    "another, or None"
                )
            elif key not in ("label", "id", None):
                raise ValueError(_no_column(argument, key, path, features))
        return columns
    raise ValueError(
        f"none of the {len(rows['id'])} records in {str(path)!r} is a tf.train.Example with a readable "
        f"picture in {image!r}"
    )


def _no_column(argument, key, path, names):
    have = ", ".join(sorted(names)) or "none"
    return f"{argument} must name a column of the records in {str(path)!r}, got {key!r}; they have {have}"


def _manifest(folder):
    """What `to_tfrecord` noted about a folder, or {}."""
    file = Path(folder) / MANIFEST
    if not file.is_file():
        return {}
    try:
        manifest = json.loads(file.read_text())
        return {k: manifest[k] for k in ("pictures", "shards", "columns", "class_names")}
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"{str(file)!r} is not what to_tfrecord wrote: delete it to read the pictures alone"
        ) from None


def _shard_names(shards):
    return [f"pictures-{shard:05}-of-{shards:05}.tfrecord" for shard in range(shards)]


@contextlib.contextmanager
def _whole(path):
    """A hidden name to write to, which becomes `path` when all is on the disk, or disappears."""
    folder, name = os.path.split(path)
    draft = os.path.join(folder, f".{name}.part")
    try:
        yield draft
        _sync(draft)
        os.replace(draft, path)
        _sync(folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)


def _sync(path):
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _is_png(name, dtype, shape):
    return name == "image" and dtype == "uint8" and len(shape) == 3 and shape[-1] == 3


def _encode(name, value):
    """A column of an element as the flat list that a tf.train.Example takes."""
    if _is_png(name, value.dtype.name, value.shape):
        value = tf.io.encode_png(value)
    elif value.dtype.name not in LISTS:
        value = tf.io.serialize_tensor(value)
    return tf.reshape(value, [-1])


def _example(row):
    """The bytes of a tf.train.Example, always the same for the same row."""
    example = tf.train.Example()
    for name, value in row.items():
        kind = LISTS.get(value.dtype.name, "bytes_list")
        getattr(example.features.feature[name], kind).value.extend(value.tolist())
    return example.SerializeToString(deterministic=True)


def _feature(dtype, shape):
    """(shape, dtype) of a column in a tf.train.Example."""
    return (shape, dtype) if dtype in LISTS else ((), "string")
