"""A SavedModel in a graph Session: how TensorFlow Serving runs it, without Python objects."""

from pathlib import Path

import tensorflow as tf


class Servable:
    """One version of a model, loaded as TensorFlow Serving loads it.

    Args:
        path: version directory of a SavedModel, e.g. "saved_models/rotation_cifar10/1".

    Attributes:
        signatures: dict of tensorflow SignatureDef protos by name.

    Raises:
        ValueError: `path` holds no SavedModel that loads.

    Example:
        >>> import numpy as np
        >>> servable = Servable("saved_models/rotation_cifar10/1")
        >>> servable.run({"images": np.zeros((1, 32, 32, 3), "uint8")})["features"].shape
        (1, 256)
    """

    def __init__(self, path):
        graph = tf.Graph()
        self.session = tf.compat.v1.Session(graph=graph)
        logger = tf.get_logger()
        level = logger.level
        logger.setLevel("ERROR")  # "deprecated": the loader is, graph Sessions in C++ are not
        try:
            with graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(
                    self.session, [tf.saved_model.SERVING], str(path)
                )
        except (OSError, tf.errors.OpError) as error:
            self.session.close()
            raise ValueError(
                f"path {str(path)!r} holds no SavedModel that loads: {error}"
            ) from None
        finally:
            logger.setLevel(level)
        self.signatures = {
            name: signature
            for name, signature in meta_graph.signature_def.items()
            if signature.method_name == tf.saved_model.PREDICT_METHOD_NAME
        }

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
        feed = {definition.inputs[name].name: value for name, value in inputs.items()}
        names = list(outputs) or list(definition.outputs)
        fetch = {name: definition.outputs[name].name for name in names}
        return self.session.run(fetch, feed)

    def close(self):
        """Frees the session and its variables."""
        self.session.close()


def versions(path):
    """Versions of a model: the numeric directories, as TensorFlow Serving sees them.

    Args:
        path: directory of a model.

    Returns:
        list of int, ascending; empty where there is no such directory.
    """
    path = Path(path)
    if not path.is_dir():
        return []
    return sorted(int(p.name) for p in path.iterdir() if p.name.isdecimal() and p.is_dir())
