"""The cost of decoding the image files of a request, for requests that are run in several parts."""

import threading

import numpy as np
import tensorflow as tf

from keras_ssl.ops import decode
from keras_ssl.serving.server.errors import invalid_argument

OPERATIONS = {
    "DecodeAndCropJpeg", "DecodeBmp", "DecodeGif", "DecodeImage", "DecodeJpeg", "DecodePng", "DecodeWebP",
}  # fmt: skip


def decodes_images(graph):
    """Returns whether a GraphDef has an operation that decodes image files."""
    functions = graph.library.function
    nodes = [graph.node, *(function.node_def for function in functions)]
    return any(node.op in OPERATIONS for part in nodes for node in part)


class FileCosts:
    """Bounds the cost of all files of a request; the graph of an export sees the files of one part only.

    A separate graph is built at the first such request, and runs on one thread of the CPU.

    Example:
        >>> costs = FileCosts()
        >>> costs.check([np.array([b"text", b"GIF87a"], object)])
        >>> costs.close()
    """

    def __init__(self):
        self._session, self._lock = None, threading.Lock()

    def check(self, arrays):
        """Refuses a request whose files together take too long to decode.

        Args:
            arrays: list of arrays of bytes, at least one.

        Raises:
            StatusError: INVALID_ARGUMENT, they cost more than `decode.MAX_COST`.
            tf.errors.InvalidArgumentError: a JPEG is damaged.
        """
        with self._lock:
            if self._session is None:
                self._build()
        files = np.concatenate([array.ravel() for array in arrays])
        if self._cost(files) > decode.MAX_COST:
            raise invalid_argument(decode.TOO_LONG)

    def close(self):
        """Closes the session."""
        if self._session is not None:
            self._session.close()

    def _build(self):
        spec = tf.TensorSpec((None,), tf.string)
        traced = tf.function(decode.total_cost, autograph=False).get_concrete_function(spec)
        graph = tf.Graph()
        with graph.as_default():
            files = tf.compat.v1.placeholder(tf.string, [None])
            cost = traced(files)
        config = tf.compat.v1.ConfigProto(
            device_count={"GPU": 0}, inter_op_parallelism_threads=1, use_per_session_threads=True
        )
        self._session = tf.compat.v1.Session(graph=graph, config=config)
        self._cost = self._session.make_callable(cost, [files])
