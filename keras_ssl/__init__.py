"""Self-supervised pretext tasks for Keras 3 on TensorFlow: pictures in, served features out."""

from keras_ssl import _start  # noqa: I001  (first: it sets what TensorFlow reads when imported)

from keras_ssl import (
    adversarial,
    callbacks,
    clustering,
    colors,
    data,
    distribute,
    encoders,
    evaluation,
    exemplars,
    images,
    layers,
    losses,
    masks,
    metrics,
    patches,
    permutations,
    tasks,
    transport,
)
from keras_ssl.export import export, load
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
    "patches",
    "permutations",
    "tasks",
    "transport",
]
del _start
