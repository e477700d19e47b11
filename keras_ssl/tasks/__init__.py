"""The pretext tasks, one file each, and the one table that lists them."""

from typing import NamedTuple

from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.clustering.deep_cluster import DeepCluster
from keras_ssl.tasks.clustering.self_label import SelfLabel
from keras_ssl.tasks.clustering.sift_clusters import SiftClusters
from keras_ssl.tasks.context.jigsaw import Jigsaw
from keras_ssl.tasks.context.jigsaw_plus import JigsawPlus
from keras_ssl.tasks.context.relative_patch import RelativePatch
from keras_ssl.tasks.context.rotation import Rotation
from keras_ssl.tasks.generation.colorization import Colorization
from keras_ssl.tasks.generation.gan import GAN
from keras_ssl.tasks.generation.inpainting import Inpainting
from keras_ssl.tasks.generation.super_resolution import SuperResolution
from keras_ssl.tasks.similarity.exemplar import Exemplar
from keras_ssl.tasks.similarity.exemplar_triplet import ExemplarTriplet


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
        "relative_patch",
        RelativePatch,
        "context",
        "Doersch et al. 2015",
        "on which of eight sides the other patch lies",
    ),
    Row(
        "jigsaw",
        Jigsaw,
        "context",
        "Noroozi & Favaro 2016",
        "which permutation the tiles were put in",
    ),
    Row(
        "jigsaw_plus",
        JigsawPlus,
        "context",
        "Noroozi et al. 2018",
        "the same, though some tiles are another picture's",
    ),
    Row(
        "exemplar",
        Exemplar,
        "similarity",
        "Dosovitskiy et al. 2016",
        "which of N patches was transformed",
    ),
    Row(
        "exemplar_triplet",
        ExemplarTriplet,
        "similarity",
        "Doersch & Zisserman 2017",
        "which patch of the batch is the same one, transformed",
    ),
    Row(
        "colorization",
        Colorization,
        "generation",
        "Zhang et al. 2016",
        "the colours of the gray picture",
    ),
    Row(
        "inpainting",
        Inpainting,
        "generation",
        "Pathak et al. 2016",
        "what was in the hole",
    ),
    Row(
        "super_resolution",
        SuperResolution,
        "generation",
        "Ledig et al. 2017",
        "the picture before it was made smaller",
    ),
    Row(
        "gan",
        GAN,
        "generation",
        "Donahue et al. 2017",
        "is the pair of picture and code real or generated",
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

__all__ = [
    "GAN",
    "TASKS",
    "Colorization",
    "DeepCluster",
    "Exemplar",
    "ExemplarTriplet",
    "Inpainting",
    "Jigsaw",
    "JigsawPlus",
    "RelativePatch",
    "Rotation",
    "Row",
    "SelfLabel",
    "SiftClusters",
    "SuperResolution",
]
