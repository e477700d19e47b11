"""The embedded server, for machines without TensorFlow Serving."""

from keras_ssl.serving.server.configs import models_in
from keras_ssl.serving.server.embedded import Server

__all__ = ["Server", "models_in"]
