"""Imports the public names of keras_ssl, and registers every class with Keras."""

# ruff: noqa: E402, F401, I001  (TensorFlow comes first, quietly)
from keras_ssl import _start

_start.import_keras()

from keras_ssl import callbacks, data, encoders, evaluation, layers, losses, metrics, ops
from keras_ssl import serving, solvers, tables, tasks, training
from keras_ssl.ops import images, masks, patches
from keras_ssl.ops import lab as colors
from keras_ssl.pretext import PretextModel
from keras_ssl.saved_model import export, load
from keras_ssl.serving import AsyncFeatureClient, FeatureClient
from keras_ssl.solvers import clustering, transport
from keras_ssl.tables import search
from keras_ssl.tasks.context import permutations
from keras_ssl.tasks.similarity import exemplars
from keras_ssl.training import adversarial, distribute
from keras_ssl.training import momentum as _momentum

_TASKS = [row.task for row in tasks.TASKS]  # importing a class registers it
