"""Self-supervised pretext tasks for Keras 3 on TensorFlow: pictures in, served features out."""

from keras_ssl import _start  # noqa: I001  (first: it sets what TensorFlow reads when imported)

from keras_ssl.training import adversarial, distribute
from keras_ssl import callbacks, data, encoders, evaluation, layers, losses, metrics, tasks
from keras_ssl.solvers import clustering, transport
from keras_ssl import ops, solvers, training
from keras_ssl.ops import images, masks, patches
from keras_ssl.ops import lab as colors
from keras_ssl.tasks.similarity import exemplars
from keras_ssl.tasks.context import permutations
from keras_ssl.saved_model import export, load
from keras_ssl.pretext import PretextModel
from keras_ssl.serving import AsyncFeatureClient, FeatureClient

__version__ = "0.1.0"
__all__ = [
    "AsyncFeatureClient",
    "FeatureClient",
    "PretextModel",
    "adversarial",
    "callbacks",
    "clustering",
    "colors",
    "data",
    "distribute",
    "encoders",
    "evaluation",
    "exemplars",
    "export",
    "images",
    "layers",
    "load",
    "losses",
    "masks",
    "metrics",
    "ops",
    "patches",
    "permutations",
    "solvers",
    "tasks",
    "training",
    "transport",
]
del _start
