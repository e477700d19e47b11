"""Serving: the feature clients, and an embedded server for machines without TensorFlow Serving."""

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
