"""The processes of a Ray cluster that read, hash and encode the files of a table."""

import contextlib
import os
import socket
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ssl.tables.encode import LocalEncoder
from keras_ssl.tables.identity import of_model
from keras_ssl.tables.update import read


class Found(NamedTuple):
    """A worker's result for a file."""

    path: str
    columns: dict | None  # as in `update.read`; None if there is no such file
    result: (
        np.ndarray | str | None
    )  # as in `update.settle`; the machine's name if there is no such file


class Worker:
    """An actor with the model, and a thread of TensorFlow for each of its CPUs.

    Args:
        threads: int.
    """

    def __init__(self, threads):
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)

    def load(self, model, sha256, load, batch_size, folder):
        """Loads the model.

        Args:
            model: absolute path of the model.
            sha256: str, of its Identity on the driver.
            load: function from the path to a keras.Model.
            batch_size: int, images per batch.
            folder: str, the driver's current folder.

        Returns:
            None, or a sentence that explains why the model cannot be loaded.
        """
        try:
            if of_model(model).sha256 != sha256:
                raise ValueError(f"{model!r} has other weights there")
            with contextlib.suppress(OSError):
                os.chdir(folder)  # where `--import` searches for modules
            self._encoder = LocalEncoder(load(model), batch_size)
        except Exception as error:  # a model or a module of the user can raise any error
            return f"machine {socket.gethostname()!r} of the cluster cannot load the model: {error}"
        return None

    def encode(self, files):
        """Returns a `Found` for each of the files, a list of (path, known SHA-256 or None)."""
        done = []

        def contents():
            for path, known in files:
                columns, content = read(path, known)
                if isinstance(content, bytes):
                    yield (path, columns), content
                else:
                    gone = columns is None
                    done.append(Found(path, columns, socket.gethostname() if gone else content))

        for (path, columns), result in self._encoder.files(contents()):
            done.append(Found(path, columns, result))
        return done
