"""Callbacks for `fit`."""

from keras_ssl.callbacks.checkpoint import Checkpoint
from keras_ssl.callbacks.collapse import Collapse, effective_rank, feature_std
from keras_ssl.callbacks.csv_log import CSVLog
from keras_ssl.callbacks.finite import Finite
from keras_ssl.callbacks.knn import KNN
from keras_ssl.callbacks.pictures import Pictures, predicted
from keras_ssl.callbacks.progress import Progress
from keras_ssl.callbacks.projector import Projector
from keras_ssl.callbacks.relabel import Relabel, features_by_id

__all__ = [
    "KNN",
    "CSVLog",
    "Checkpoint",
    "Collapse",
    "Finite",
    "Pictures",
    "Progress",
    "Projector",
    "Relabel",
    "effective_rank",
    "feature_std",
    "features_by_id",
    "predicted",
]
