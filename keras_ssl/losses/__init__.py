"""Losses: keras.losses.Loss subclasses, one value per image."""

from keras_ssl.losses.triplet import Triplet

__all__ = ["Triplet"]
