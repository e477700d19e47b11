"""Clients for TensorFlow Serving and for the embedded server."""

from keras_ssl.serving.client.async_client import AsyncFeatureClient
from keras_ssl.serving.client.clips import extract_clips
from keras_ssl.serving.client.extraction import extract
from keras_ssl.serving.client.feature_client import FeatureClient
from keras_ssl.serving.client.tls import credentials

__all__ = ["AsyncFeatureClient", "FeatureClient", "credentials", "extract", "extract_clips"]
