"""Losses: keras.losses.Loss subclasses that return one value per image or more."""

from keras_ssl.losses.color_bins import ColorBins
from keras_ssl.losses.hole import Hole
from keras_ssl.losses.triplet import Triplet

__all__ = ["ColorBins", "Hole", "Triplet"]
