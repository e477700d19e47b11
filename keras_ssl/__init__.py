"""Self-supervised pretext tasks for Keras 3 on TensorFlow: images in, served features out."""

# ruff: noqa: F403, F405  (_public.py imports the names of __all__)
import importlib
import sys

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
    "serving",
    "solvers",
    "tasks",
    "training",
    "transport",
]

if not _start.COMMAND:
    from keras_ssl._public import *


def __getattr__(name):
    # The command imports TensorFlow at the first use of a public name: --help and errors need none.
    if name not in __all__ or "keras_ssl._public" in sys.modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    public = importlib.import_module("keras_ssl._public")
    globals().update({public_name: getattr(public, public_name) for public_name in __all__})
    return globals()[name]
