"""A SavedModel in a graph Session: how TensorFlow Serving runs it, without Python objects."""

import hashlib
import json
import threading
from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.apis import prediction_log_pb2

from keras_ssl.serving.server.requests import declared_inputs, inputs_of

CHECKSUMS = "checksums.json"  # in assets.extra: written by keras_ssl.export
WARMUP = "tf_serving_warmup_requests"


class Servable:
    """One version of a model, loaded as TensorFlow Serving loads it.

    Args:
        path: version directory of a SavedModel, e.g. "saved_models/rotation_cifar10/1".
        config: tf.compat.v1.ConfigProto of the Session, e.g. its numbers of threads.

    Attributes:
        signatures: dict of tensorflow SignatureDef protos by name.
        inputs: dict by signature of what it declares of its inputs.

    Raises:
        ValueError: `path` holds no SavedModel that loads, or its files are not those that
            keras_ssl.export wrote.

    Example:
        >>> import numpy as np
        >>> servable = Servable("saved_models/rotation_cifar10/1")
        >>> servable.run({"images": np.zeros((1, 32, 32, 3), "uint8")})["features"].shape
        (1, 256)
    """

    def __init__(self, path, config=None):
        self.path = Path(path)
        check_files(self.path)
        graph = tf.Graph()
        self.session = tf.compat.v1.Session(graph=graph, config=config)
        logger = tf.get_logger()
        level = logger.level
        logger.setLevel("ERROR")  # "deprecated": the loader is, graph Sessions in C++ are not
        try:
            with graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(
                    self.session, [tf.saved_model.SERVING], str(path)
                )
        # A damaged graph can fail anywhere on its way into Python: what counts is that it did.
        except Exception as error:
            self.session.close()
            raise ValueError(
                f"path {str(path)!r} holds no SavedModel that loads: {first_line(error)}"
            ) from None
        finally:
            logger.setLevel(level)
        self.signatures = dict(meta_graph.signature_def)
        self.inputs = {name: declared_inputs(s) for name, s in self.signatures.items()}
        self._callables, self._lock = {}, threading.Lock()

    def run(self, inputs, signature="serving_default", outputs=()):
        """Runs a signature.

        Args:
            inputs: dict of arrays by the signature's input names.
            signature: name of the signature.
            outputs: names of the outputs wanted; all by default.

        Returns:
            dict of arrays by output name.

        Raises:
            KeyError: unknown signature, input or output.
            tf.errors.InvalidArgumentError: an array of the wrong type or shape.
        """
        definition = self.signatures[signature]
        outputs = tuple(outputs) or tuple(definition.outputs)
        names = tuple(sorted(inputs))
        key = (signature, names, outputs)
        with self._lock:  # two threads must not extend the graph at once
            if key not in self._callables:
                options = config_pb2.CallableOptions(
                    feed=[definition.inputs[name].name for name in names],
                    fetch=[definition.outputs[name].name for name in outputs],
                )
                # As the C++ Session that TensorFlow Serving has: `Session.run` would compare the
                # shapes with the placeholders', which are looser in C++, and costs 0.2 ms more.
                self._callables[key] = self.session._make_callable_from_options(options)
        values = self._callables[key](*(inputs[name] for name in names))
        return dict(zip(outputs, values, strict=True))

    def warm_up(self):
        """Replays the requests in `assets.extra`, as TensorFlow Serving does before it serves.

        Raises:
            ValueError: the records are damaged, or one of them fails.
        """
        records = self.path / "assets.extra" / WARMUP
        if not records.is_file():
            return
        try:
            for record in tf.data.TFRecordDataset(str(records)).as_numpy_iterator():
                request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
                name = request.model_spec.signature_name or "serving_default"
                inputs = inputs_of(request, self.inputs[name])
                self.run(inputs, name, tuple(request.output_filter))
        except Exception as error:  # of the protobuf, of TensorFlow, of our own checks
            raise ValueError(f"warm-up of {str(self.path)!r} failed: {first_line(error)}") from None

    def close(self):
        """Frees the session and its variables."""
        self._callables.clear()  # they must go before their session
        self.session.close()


def checksums(path):
    """SHA-256 of every file of a version but its card, which people may add to.

    Args:
        path: version directory, without the checksums as yet.

    Returns:
        dict of the file's name relative to `path`, str, to str.
    """
    path = Path(path)
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "card.json"
    }


def check_files(path):
    """Compares a version with the checksums that its export wrote, where there are any.

    TensorFlow notices damaged weights, not a damaged graph: that one loads and answers nonsense.

    Args:
        path: version directory.

    Raises:
        ValueError: a file is missing or not what was exported.
    """
    file = Path(path) / "assets.extra" / CHECKSUMS
    if not file.is_file():
        return
    try:
        expected = json.loads(file.read_text())
        for name, digest in expected.items():
            if hashlib.sha256((Path(path) / name).read_bytes()).hexdigest() != digest:
                raise ValueError(f"{name} is not what was exported")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"path {str(path)!r} is damaged or half copied: {error}") from None


def first_line(error):
    """The first line of an exception's message, without the place in the graph around it."""
    words = getattr(error, "message", None) or str(error)
    words = words.removeprefix("Graph execution error:").strip()
    return words.split("\n")[0] or type(error).__name__


def versions(path):
    """Versions of a model: its numeric directories, as TensorFlow Serving sees them.

    Args:
        path: directory of a model.

    Returns:
        dict of int to pathlib.Path, ascending ("00000123" is version 123); empty where there is no such
        directory.
    """
    try:
        found = {int(p.name): p for p in Path(path).iterdir() if p.name.isdecimal() and p.is_dir()}
    except OSError:
        return {}
    return {version: found[version] for version in sorted(found) if version < 2**63}
