"""Serving: the feature client, and an embedded server for where TensorFlow Serving is not at hand."""

from keras_ssl.serving.async_client import AsyncFeatureClient
from keras_ssl.serving.client import FeatureClient, credentials
from keras_ssl.serving.configs import models_in
from keras_ssl.serving.extraction import extract
from keras_ssl.serving.server import Server

__all__ = [
    "AsyncFeatureClient",
    "FeatureClient",
    "Server",
    "credentials",
    "extract",
    "models_in",
]
