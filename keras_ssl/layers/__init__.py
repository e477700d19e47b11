"""Layers that the zoo's networks are built from."""

from keras_ssl.layers.batch_normalization import BatchNormalization

__all__ = ["BatchNormalization"]
