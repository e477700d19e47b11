"""Data sets of any size in TFRecord files: a writer that resumes, a reader with random access."""

import json
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_ssl.data import schema
from keras_ssl.data.columns import random_access, subset
from keras_ssl.data.folder import height_and_width
from keras_ssl.data.records import index, read, record_files
from keras_ssl.files import complete, locked, make_folder
from keras_ssl.ops import decode
from keras_ssl.ops import images as pixels

SHARD_BYTES = 100e6  # of pixels per file, before PNG compression


def to_tfrecord(images, path, shards=None, verbose=1):
    """Writes a data set as TFRecord files, from which `from_tfrecord` reads it losslessly.

    If a run is killed, the same call resumes it: complete files are kept, and the result is the same as that
    of an uninterrupted run. Images of uint8 become PNG, which any reader of tf.train.Example can decode;
    columns of int64, float32 and strings become an Int64List, a FloatList and a BytesList, and all other
    columns become serialized tensors. The file `pictures.json` in the same folder describes the columns and
    lists the class names.

    Args:
        images: tf.data.Dataset of dicts of tensors of fixed shapes, including `image` (H, W, C), of known
            length and the same order in every iteration, as returned by the readers in `keras_ssl.data`.
        path: folder to write to; created if it does not exist.
        shards: int, number of files; by default about 100 MB of pixels in each.
        verbose: 1 shows progress, 0 does not.

    Returns:
        list of str, the files `pictures-00000-of-00016.tfrecord` and so on.

    Raises:
        ValueError: `images` is not such a dataset or contains an unreadable image, `shards` is not in
            1..number of images, or `path` is a file, contains other TFRecord files or is being written by
            another process.

    Example:
        >>> import os, tempfile, keras_ssl as kssl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = to_tfrecord(kssl.data.digits("test"), folder, shards=2, verbose=0)
        ...     copy = kssl.data.to_arrays(from_tfrecord(folder))
        >>> os.path.basename(files[1]), copy["image"].shape
        ('pictures-00001-of-00002.tfrecord', (360, 32, 32, 3))
    """
    folder, number = Path(path), int(images.cardinality())
    _check_images(images)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"path must be a folder to write to, {str(path)!r} is a file")
    manifest = schema.read_manifest(folder)
    if record_files(folder) and not manifest:
        raise ValueError(f"path {str(path)!r} holds other TFRecord files: give an empty folder")
    shards = _number_of_shards(images, shards, manifest)
    files = [str(folder / name) for name in schema.shard_names(shards)]
    make_folder(folder)
    with locked(folder / ".lock", f"path {str(path)!r}"):
        if manifest := schema.read_manifest(folder):
            _check_same_dataset(images, manifest, shards, path, files[0])
        else:
            with complete(folder / schema.MANIFEST) as draft:
                Path(draft).write_text(json.dumps(_manifest_of(images, shards), indent=1))
        for leftover in folder.glob(".new-pictures*"):  # of a run that was killed
            leftover.unlink()
        ranges = {
            file: range(shard * number // shards, (shard + 1) * number // shards)
            for shard, file in enumerate(files)
            if not Path(file).exists()
        }
        _write(images, ranges, verbose)
    return files


def _check_images(images):
    spec, number = images.element_spec, int(images.cardinality())
    if not isinstance(spec, dict) or "image" not in spec or number <= 0:
        raise ValueError(
            "images must yield dicts with `image` and have a known length of at least 1, got "
            f"{spec} and cardinality {number}"
        )
    for name, column in spec.items():
        if not isinstance(column, tf.TensorSpec) or not column.shape.is_fully_defined():
            raise ValueError(f"images must have columns of fixed shapes, {name!r} is {column}")


def _number_of_shards(images, shards, manifest):
    number = int(images.cardinality())
    if shards is None and manifest:
        shards = manifest["shards"]
    elif shards is None:
        columns = images.element_spec.values()
        size = sum(s.shape.num_elements() * max(s.dtype.size or 1, 1) for s in columns)
        shards = min(number, -int(-number * size // SHARD_BYTES))
    if not 1 <= shards <= number:
        raise ValueError(f"shards must be in 1..{number}, the number of images, got {shards}")
    return shards


def _manifest_of(images, shards):
    spec = images.element_spec.items()
    return {
        "pictures": int(images.cardinality()),
        "shards": shards,
        "columns": {name: [s.dtype.name, s.shape.as_list()] for name, s in spec},
        "class_names": getattr(images, "class_names", None),
    }


def _check_same_dataset(images, manifest, shards, path, first_file):
    """Checks that the files of an incomplete folder belong to this data set."""
    for key, value in _manifest_of(images, shards).items():
        if manifest[key] != value:
            raise ValueError(
                f"path {str(path)!r} holds another data set or another division of it, {key} "
                f"{manifest[key]} instead of {value}: give an empty folder"
            )
    if Path(first_file).exists():  # columns and sizes may agree by chance
        row = next(iter(images.take(1).map(schema.encode).as_numpy_iterator()))
        if schema.example(row) != next(tf.data.TFRecordDataset(first_file).as_numpy_iterator()):
            raise ValueError(
                f"path {str(path)!r} holds another data set, its first image differs: give an "
                "empty folder"
            )


def _write(images, ranges, verbose):
    """Writes the files {path: range of rows}, each atomically."""
    number = int(images.cardinality())
    indices = np.concatenate([*ranges.values(), np.empty(0)]).astype(np.int64)
    rows = images if len(indices) == number else subset(images, indices)
    rows = rows.map(schema.encode, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    rows = rows.as_numpy_iterator()
    bar = keras.utils.Progbar(number, verbose=verbose, unit_name="image")
    bar.update(number - len(indices))
    for file, span in ranges.items():
        with complete(file) as draft, tf.io.TFRecordWriter(draft) as writer:
            for row_index in span:
                try:
                    row = next(rows)
                except tf.errors.OpError as error:
                    raise ValueError(
                        f"images has an image that cannot be read, the one at index {row_index} "
                        f"({error.message.splitlines()[0]}): leave it out, as from_folder does with "
                        "check=True"
                    ) from None
                writer.write(schema.example(row))
                bar.add(1)


def from_tfrecord(path, size=None, image="image", label="label"):
    """Creates a dataset from a folder of TFRecord files, written by `to_tfrecord` or any other program.

    At the start only the 12 bytes before each record are read, which contain its length. So every record can
    be loaded by its index, even in many files. If such a header is damaged, reading continues at the next
    valid header; a record whose data are damaged fails when it is loaded.

    Args:
        path: folder with uncompressed files of tf.train.Example, named *.tfrecord, *.tfrecords,
            *.tfrecord-00000-of-00016 or *-00000-of-00016.
        size: int, height and width in pixels, or (height, width), to which images are resized and cropped in
            the center; None keeps their size. Without `pictures.json`, this is the size of the first readable
            image, and images of another size fail when they are loaded.
        image: str, the feature that contains an image: JPEG, PNG, BMP or GIF, such as "image/encoded".
        label: str, the feature that contains the class, one int64, such as "image/class/label"; or None.

    Returns:
        tf.data.Dataset of dicts with `image` (height, width, 3) uint8, `id` (int64, as stored, otherwise the
        index among the readable records), `label` if there is one, and every other column that
        `to_tfrecord` wrote; with random access and the attributes `files` (list of str) and `class_names`
        (list of str, or None).

    Raises:
        ValueError: there is no such folder, no TFRecord file or readable record in it, or no feature `image`
            or `label`; files of `to_tfrecord` are missing; `size` is not positive, or differs from the size
            of other columns in pixels, such as `depth`.

    Warns:
        UserWarning: which parts of which files are damaged.

    Example:
        >>> imagenet = from_tfrecord("imagenet/", 224, "image/encoded", "image/class/label")
        ...                                                             # doctest: +SKIP
    """
    if size is not None:
        height_and_width(size)
    manifest = schema.read_manifest(path)
    files = _files(path, manifest)
    rows = index(path, files)
    columns = manifest["columns"] if manifest else _columns(path, files, rows, image, label)
    for argument, key in (("image", image), ("label", label)):
        if key not in columns and key not in ("label", None):
            raise ValueError(_no_column(argument, key, path, columns))
    if label is None:
        columns = {key: column for key, column in columns.items() if key != "label"}
    stored = columns[image][1]
    height, width = stored[:2] if size is None else height_and_width(size)
    resized = [height, width] != stored[:2] or (size is not None and not manifest)
    png = schema.is_png("image", *columns[image])
    if [height, width] != stored[:2]:
        _check_resizable(path, columns, image, size)
    names = {image: "image", label: "label"}
    paths = tf.constant(files)

    def load(row):
        record = read(tf.gather(paths, row["file"]), row["offset"], row["length"])
        element = {"id": row["id"]}
        for key, value in schema.parse(record, columns).items():
            name, (dtype, shape) = names.get(key, key), columns[key]
            if name == "image" and png:
                value = _decoded(value, height, width, resized)
            elif dtype not in schema.LISTS:
                value = tf.ensure_shape(tf.io.parse_tensor(value, dtype), shape)
            element[name] = value
        return element

    dataset = random_access(rows, load)
    dataset.files, dataset.class_names = files, manifest.get("class_names")
    return dataset


def _decoded(encoded, height, width, resized):
    image = decode.decode(encoded)
    if resized:
        image = pixels.resize(image, height, width)
    fits = tf.reduce_all(tf.shape(image)[:2] == [height, width])
    check = tf.debugging.Assert(fits, ["images differ in size: give a size"])
    with tf.control_dependencies([check] if check is not None else []):
        return tf.ensure_shape(tf.identity(image), [height, width, 3])


def _files(path, manifest):
    """Returns the TFRecord files of a folder; raises ValueError if files of `to_tfrecord` are missing."""
    files = record_files(path)
    if not files:
        raise ValueError(f"path must be a folder of TFRecord files, there is none in {str(path)!r}")
    if not manifest:
        return files
    names = [Path(path) / name for name in schema.shard_names(manifest["shards"])]
    files = [str(name) for name in names if name.exists()]
    if len(files) < len(names):
        raise ValueError(
            f"path {str(path)!r} holds {len(files)} of {len(names)} files: call to_tfrecord again, which "
            f"resumes, or delete {schema.MANIFEST} to read what there is"
        )
    return files


def _check_resizable(path, columns, image, size):
    dtype, shape = columns[image]
    if not schema.is_png("image", dtype, shape):
        raise ValueError(
            f"size must be None for the images in {str(path)!r}, {dtype} of {shape}, got {size}"
        )
    for name, (_, other) in columns.items():
        if name != image and len(other) > 2 and other[-3:-1] == shape[:2]:
            raise ValueError(
                f"size must be None in {str(path)!r}, since {name!r} has the pixels of the image and is "
                f"not resized, got {size}"
            )


def _columns(path, files, rows, image, label):
    """Returns the columns of the first readable record of other files, in the format of the manifest."""
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
        f"image in {image!r}"
    )


def _no_column(argument, key, path, names):
    have = ", ".join(sorted(names)) or "none"
    return f"{argument} must name a column of the records in {str(path)!r}, got {key!r}; they have {have}"
