"""The pretext tasks, one file each, and the one table that lists them."""

from typing import NamedTuple

from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.clustering.deep_cluster import DeepCluster
from keras_ssl.tasks.clustering.self_label import SelfLabel
from keras_ssl.tasks.clustering.sift_clusters import SiftClusters
from keras_ssl.tasks.context.rotation import Rotation


class Row(NamedTuple):
    """One line of the table: `task` is the class, `labels` says what the labels are."""

    name: str
    task: type[PretextModel]
    family: str
    paper: str
    labels: str


TASKS = [
    Row(
        "rotation", Rotation, "context", "Gidaris et al. 2018", "by how much the picture is turned"
    ),
    Row(
        "deep_cluster",
        DeepCluster,
        "clustering",
        "Caron et al. 2018",
        "the k-means cluster of the picture's features",
    ),
    Row(
        "self_label",
        SelfLabel,
        "clustering",
        "Asano et al. 2020",
        "balanced labels by optimal transport",
    ),
    Row(
        "sift_clusters",
        SiftClusters,
        "clustering",
        "Christlein et al. 2017",
        "the cluster of the patch's SIFT descriptor",
    ),
]

__all__ = ["TASKS", "DeepCluster", "Rotation", "Row", "SelfLabel", "SiftClusters"]
