"""Callbacks for `fit`."""

from keras_ssl.callbacks.finite import Finite
from keras_ssl.callbacks.pictures import Pictures, predicted
from keras_ssl.callbacks.relabel import Relabel, extract

__all__ = ["Finite", "Pictures", "Relabel", "extract", "predicted"]
