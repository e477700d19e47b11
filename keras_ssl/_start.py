"""Sets the environment variables that TensorFlow reads on import, and imports it quietly for the command."""

import contextlib
import os
import sys

# Whether this process is the keras-ssl command, which imports TensorFlow only if a subcommand needs it.
COMMAND = os.path.basename(sys.argv[0] if sys.argv else "") == "keras-ssl"

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if COMMAND else "1")


def import_keras():
    """Imports Keras and TensorFlow; for the command, without the log that TensorFlow prints on import.

    Raises:
        ImportError: Keras has another backend.
    """
    keras = sys.modules.get("keras")
    backend = keras.backend.backend() if keras else os.environ["KERAS_BACKEND"]
    if backend != "tensorflow":  # before Keras imports a backend that may not be installed
        raise ImportError(
            f"keras_ssl runs on Keras' TensorFlow backend, but KERAS_BACKEND is {backend!r}: set "
            "KERAS_BACKEND=tensorflow before keras is imported"
        )
    with _stderr_muted() if COMMAND else contextlib.nullcontext():
        import keras
        import tensorflow_serving.apis.predict_pb2  # noqa: F401


@contextlib.contextmanager
def _stderr_muted():
    # TensorFlow's C++ log (no CUDA here, oneDNN on) ignores the log level while TensorFlow is imported.
    stderr, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nothing)
