"""Serving: the feature clients, and an embedded server for machines without TensorFlow Serving."""

import importlib

from keras_ssl.serving.client import (
    AsyncFeatureClient,
    FeatureClient,
    credentials,
    extract,
    extract_clips,
)

__all__ = [
    "AsyncFeatureClient",
    "FeatureClient",
    "Server",
    "credentials",
    "extract",
    "extract_clips",
    "models_in",
]


def __getattr__(name):
    # The server is imported when it is first used: clients do not need it.
    if name not in ("Server", "models_in"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("keras_ssl.serving.server"), name)
