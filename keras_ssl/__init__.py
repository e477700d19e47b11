"""Self-supervised pretext tasks for Keras 3 on TensorFlow: images in, served features out."""

# ruff: noqa: F403, F405  (_public.py imports the names of __all__)
import importlib

from keras_ssl import _start

__version__ = "0.1.0"
__all__ = [
    "AsyncFeatureClient",
    "FeatureClient",
    "PretextModel",
    "adversarial",
    "callbacks",
    "clustering",
    "colors",
    "data",
    "distribute",
    "encoders",
    "evaluation",
    "exemplars",
    "export",
    "images",
    "layers",
    "load",
    "losses",
    "masks",
    "metrics",
    "ops",
    "patches",
    "permutations",
    "search",
    "serving",
    "solvers",
    "tables",
    "tasks",
    "training",
    "transport",
]

if not _start.COMMAND:
    from keras_ssl._public import *


def __getattr__(name):
    # The command imports TensorFlow when a public name is first used: --help and errors need no TensorFlow.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("keras_ssl._public"), name)
