"""Evaluation of features: kNN, linear probe, retrieval and reconstruction."""

from keras_ssl.evaluation.extract import extract
from keras_ssl.evaluation.probes import compare, knn, linear_probe, table
from keras_ssl.evaluation.reconstruction import reconstruction
from keras_ssl.evaluation.retrieval import retrieval, vlad

__all__ = [
    "compare", "extract", "knn", "linear_probe", "reconstruction", "retrieval", "table", "vlad",
]  # fmt: skip
