"""Losses, keras.losses.Loss subclasses that return at least one value per image, and `mutual_information`."""

from keras_ssl.losses import mutual_information
from keras_ssl.losses.align_uniform import Alignment, AlignmentUniformity, Uniformity
from keras_ssl.losses.color_bins import ColorBins
from keras_ssl.losses.contrastive import NCE, InfoNCE, NTXent, SupervisedContrastive
from keras_ssl.losses.depth import ScaleInvariantDepth
from keras_ssl.losses.distillation import Distillation
from keras_ssl.losses.geometry import BalancedCrossEntropy, CosineDistance
from keras_ssl.losses.gradient_difference import GradientDifference
from keras_ssl.losses.hole import Hole
from keras_ssl.losses.infomax import InfoMax
from keras_ssl.losses.local import MultiscaleInfoNCE, PredictiveCoding
from keras_ssl.losses.ranking import DepthRanking
from keras_ssl.losses.squared_distance import SquaredDistance
from keras_ssl.losses.trimap import TrimapCrossEntropy
from keras_ssl.losses.triplet import Triplet

__all__ = [
    "NCE",
    "Alignment",
    "AlignmentUniformity",
    "BalancedCrossEntropy",
    "ColorBins",
    "CosineDistance",
    "DepthRanking",
    "Distillation",
    "GradientDifference",
    "Hole",
    "InfoMax",
    "InfoNCE",
    "MultiscaleInfoNCE",
    "NTXent",
    "PredictiveCoding",
    "ScaleInvariantDepth",
    "SquaredDistance",
    "SupervisedContrastive",
    "TrimapCrossEntropy",
    "Triplet",
    "Uniformity",
    "mutual_information",
]
