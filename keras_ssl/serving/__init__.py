"""Serving: the feature client, and an embedded server for where TensorFlow Serving is not at hand."""

from keras_ssl.serving.client import AsyncFeatureClient, FeatureClient, credentials, extract
from keras_ssl.serving.server import Server, models_in

__all__ = [
    "AsyncFeatureClient",
    "FeatureClient",
    "Server",
    "credentials",
    "extract",
    "models_in",
]
