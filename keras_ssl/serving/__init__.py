"""Serving: the feature client, and an embedded server for where TensorFlow Serving is not at hand."""

from keras_ssl.serving.client import FeatureClient
from keras_ssl.serving.server import Server, models_in, serve

__all__ = ["FeatureClient", "Server", "models_in", "serve"]
