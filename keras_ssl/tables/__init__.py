"""Features in LanceDB tables: update from files, search, near-duplicates; imports no TensorFlow."""

from keras_ssl.tables.near_duplicates import duplicates
from keras_ssl.tables.neighbors import Match, search
from keras_ssl.tables.store import FeatureTable

__all__ = ["FeatureTable", "Match", "duplicates", "search"]
