"""Imports Keras on TensorFlow, quietly for the command line, before anything else of the package."""

import os
import sys

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# The command answers in one line; TensorFlow's C++ log would put its own above it, and while it is
# imported (no CUDA here, oneDNN on) it heeds no log level.
command = os.path.basename(sys.argv[0] if sys.argv else "") == "keras-ssl"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if command else "1")
if command:
    stderr = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
try:
    import keras
    import tensorflow_serving.apis.predict_pb2  # noqa: F401
finally:
    if command:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nothing)

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "keras_ssl runs on Keras' TensorFlow backend, but KERAS_BACKEND is "
        f"{keras.backend.backend()!r}: set KERAS_BACKEND=tensorflow before keras is imported"
    )
