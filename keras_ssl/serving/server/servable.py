"""Loads a SavedModel into a graph Session, as TensorFlow Serving does, without Python objects."""

import errno
import json
import logging
import threading
from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.apis import prediction_log_pb2

from keras_ssl import files
from keras_ssl.serving.server.errors import first_line
from keras_ssl.serving.server.file_costs import decodes_images
from keras_ssl.serving.server.requests import DEFAULT_SIGNATURE, declared_inputs, inputs_of

log = logging.getLogger("keras_ssl.serving")
CHECKSUMS = "checksums.json"  # in assets.extra, written by keras_ssl.export
WARMUP = "tf_serving_warmup_requests"
MAX_WARMUP_RECORDS = 1000  # as in TensorFlow Serving
# Errors that may not occur again when the same files are read later: a network disk that is away, or no file
# descriptor left. TensorFlow reports EIO as UNKNOWN, ESTALE as ABORTED, EMFILE as RESOURCE_EXHAUSTED.
TRANSIENT = (
    tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError,
    tf.errors.ResourceExhaustedError, tf.errors.UnknownError,
)  # fmt: skip
DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)  # OSErrors if files are missing
MAX_SELECTIONS = 16  # of outputs, per signature: TensorFlow compiles an executor for each


class Servable:
    """One version of a model, loaded as TensorFlow Serving loads it.

    Args:
        path: version directory of a SavedModel, such as "saved_models/rotation_cifar10/1".
        config: tf.compat.v1.ConfigProto of the Session, for example its numbers of threads.

    Attributes:
        signatures: dict of tensorflow SignatureDef protos by name.
        inputs: dict from the name of a signature to a dict of its inputs (InputSpec by name).
        decodes_images: bool, whether the graph has an operation that decodes image files.

    Raises:
        ValueError: `path` has no SavedModel that can be loaded, or its files differ from those that
            keras_ssl.export wrote.
        OSError: the files cannot be read now, but possibly later.

    Example:
        >>> import numpy as np
        >>> servable = Servable("saved_models/rotation_cifar10/1")
        >>> servable.run({"images": np.zeros((1, 32, 32, 3), "uint8")})["features"].shape
        (1, 128)
    """

    def __init__(self, path, config=None):
        self.path = Path(path)
        check_files(self.path)
        graph = tf.Graph()
        self.session = tf.compat.v1.Session(graph=graph, config=config)
        logger = tf.get_logger()
        level = logger.level
        logger.setLevel("ERROR")  # the Python loader logs that it is deprecated
        try:
            with graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(
                    self.session, [tf.saved_model.SERVING], str(path)
                )
            self.signatures = dict(meta_graph.signature_def)
            self.inputs = {name: _inputs(name, s) for name, s in self.signatures.items()}
            self.decodes_images = decodes_images(meta_graph.graph_def)
        # A damaged graph can raise any error.
        except Exception as error:
            self.session.close()
            raise _unusable(
                f"path {str(path)!r} has no SavedModel that can be loaded", error
            ) from None
        finally:
            logger.setLevel(level)
        self._callables, self._lock = {}, threading.Lock()

    def run(self, inputs, signature=DEFAULT_SIGNATURE, outputs=()):
        """Runs a signature.

        Args:
            inputs: dict of arrays by the signature's input names.
            signature: str, name of the signature.
            outputs: sequence of str, names of the outputs to compute; all by default.

        Returns:
            dict of arrays by output name.

        Raises:
            KeyError: unknown signature, input or output.
            tf.errors.InvalidArgumentError: an array of the wrong type or shape.
        """
        selected = tuple(sorted(outputs or self.signatures[signature].outputs))
        names = tuple(sorted(inputs))
        fetched, function = self._callable(signature, names, selected)
        values = dict(zip(fetched, function(*(inputs[name] for name in names)), strict=True))
        return {name: values[name] for name in selected}

    def sliceable(self, signature, outputs=()):
        """Returns whether a signature may be run on slices of its rows.

        This requires that inputs and outputs declare any number of rows, and that no output declares a
        further unknown size, as similarities between all rows do.

        Args:
            signature, outputs: as in `run`.
        """
        definition = self.signatures[signature]
        shapes = [
            [dim.size for dim in definition.outputs[name].tensor_shape.dim]
            for name in outputs or definition.outputs
        ]
        return all(
            spec.sizes and spec.sizes[0] == -1 for spec in self.inputs[signature].values()
        ) and all(sizes[:1] == [-1] and -1 not in sizes[1:] for sizes in shapes)

    def _callable(self, signature, names, selected):
        """Returns (names of the outputs, function from arrays to their values).

        It computes all outputs once `MAX_SELECTIONS` selections of a signature have been compiled.
        """
        definition = self.signatures[signature]
        with self._lock:  # two threads must not extend the graph at the same time
            compiled = self._callables.setdefault(signature, {})
            if (names, selected) not in compiled and len(compiled) >= MAX_SELECTIONS:
                selected = tuple(sorted(definition.outputs))
            key = (names, selected)
            if key not in compiled:
                options = config_pb2.CallableOptions(
                    feed=[definition.inputs[name].name for name in names],
                    fetch=[definition.outputs[name].name for name in selected],
                )
                # `Session.run` takes 0.2 ms more, and compares shapes with those of the placeholders, unlike
                # the C++ Session of TensorFlow Serving.
                compiled[key] = self.session._make_callable_from_options(options)
        return selected, compiled[key]

    def warm_up(self):
        """Replays the requests in `assets.extra`, as TensorFlow Serving does before it serves.

        Requests other than Predict, which TensorFlow Serving would replay, are skipped.

        Raises:
            ValueError: the records are damaged, or a request fails.
            OSError: the records cannot be read now, but possibly later.
        """
        records = self.path / "assets.extra" / WARMUP
        if not records.is_file():
            return
        skipped = 0
        try:
            dataset = tf.data.TFRecordDataset(str(records))
            for i, record in enumerate(dataset.as_numpy_iterator()):
                if i == MAX_WARMUP_RECORDS:
                    raise ValueError(f"it has more than {MAX_WARMUP_RECORDS} records")
                entry = prediction_log_pb2.PredictionLog.FromString(record)
                if entry.WhichOneof("log_type") != "predict_log":
                    skipped += 1
                    continue
                request = entry.predict_log.request
                name = request.model_spec.signature_name or DEFAULT_SIGNATURE
                inputs = inputs_of(request, self.inputs[name])
                self.run(inputs, name, tuple(request.output_filter))
        except Exception as error:  # of protobuf, of TensorFlow, or a StatusError
            raise _unusable(f"warm-up of {str(self.path)!r} failed", error) from None
        if skipped:
            log.info("warm-up of %s: %d records are not of Predict: skipped", self.path, skipped)

    def close(self):
        """Closes the session and frees its variables."""
        self._callables.clear()  # they must be released before their session
        self.session.close()


def checksums(path):
    """Computes the SHA-256 of every file of a version except card.json, which may be edited.

    Args:
        path: version directory that has no checksums yet.

    Returns:
        dict from the file's name relative to `path` to its checksum, both str.
    """
    path = Path(path)
    return {
        str(file.relative_to(path)): files.sha256(file)
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "card.json"
    }


def check_files(path):
    """Verifies the checksums that the export of a version wrote, if there are any.

    TensorFlow detects damaged weights but not a damaged graph, which loads and computes nonsense.

    Args:
        path: version directory.

    Raises:
        ValueError: a file is missing or differs from the exported one.
    """
    file = Path(path) / "assets.extra" / CHECKSUMS
    if not file.is_file():
        return
    try:
        expected = json.loads(file.read_text())
        for name, digest in expected.items():
            if files.sha256(Path(path) / name) != digest:
                raise ValueError(f"{name} differs from what was exported")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise _unusable(f"path {str(path)!r} is damaged or copied only in part", error) from None


def _inputs(name, signature):
    """Returns the InputSpec of each input of a signature."""
    try:
        return declared_inputs(signature)
    except KeyError:
        raise ValueError(
            f"signature {name!r} has an input of a type that NumPy does not have"
        ) from None


def _unusable(what, error):
    """Converts an error to an OSError if another attempt may succeed, otherwise to a ValueError."""
    transient = isinstance(error, TRANSIENT) or (
        # TensorFlow also raises OSErrors without a number, for files that it cannot parse.
        isinstance(error, OSError) and error.errno is not None and error.errno not in DAMAGE
    )
    return (OSError if transient else ValueError)(f"{what}: {first_line(error)}")
