"""Evaluation of features: kNN, linear probe, fine-tuning, geometry, retrieval and reconstruction."""

from keras_ssl.evaluation.comparison import compare, probe_stages, table
from keras_ssl.evaluation.extract import extract, pool_frames
from keras_ssl.evaluation.fine_tuning import fine_tune
from keras_ssl.evaluation.frames import frame_prediction
from keras_ssl.evaluation.geometry import alignment, effective_rank, feature_std, uniformity
from keras_ssl.evaluation.probes import knn, linear_probe
from keras_ssl.evaluation.reconstruction import reconstruction
from keras_ssl.evaluation.retrieval import exemplar_svm, retrieval, vlad
from keras_ssl.evaluation.selection import choose_l2, select_probe

__all__ = [
    "alignment", "choose_l2", "compare", "effective_rank", "exemplar_svm", "extract", "feature_std",
    "fine_tune", "frame_prediction", "knn", "linear_probe", "pool_frames", "probe_stages",
    "reconstruction", "retrieval",
    "select_probe", "table", "uniformity", "vlad",
]  # fmt: skip
