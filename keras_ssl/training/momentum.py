"""Momentum encoders: an exponential moving average of a network (mean teacher, MoCo, BYOL)."""

import keras
import tensorflow as tf
from keras.src.backend import AutocastScope

from keras_ssl.arguments import check_fraction
from keras_ssl.layers import BatchNormalization


def twin(network):
    """Copies a network, including its weights; the copy is saved with the task but not trained.

    The variables of the copy are not trainable, but its layers stay in training mode: its batch
    normalization uses the statistics of the batch and keeps its own moving averages. `layer.trainable =
    False` would disable both. In the copy of Keras' batch normalization is `layers.BatchNormalization`, which
    computes the same and can be split into groups.

    Args:
        network: functional or Sequential keras.Model, built.

    Returns:
        keras.Model with the same architecture, none of whose variables is trainable.

    Raises:
        ValueError: `network` is not built.

    Reference: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020.

    Example:
        >>> network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> twin(network).trainable_variables
        []
    """
    if not network.built:
        raise ValueError(
            f"network {network.name!r} must be built before it can have a twin: call it once"
        )
    copy = keras.models.clone_model(network, clone_function=_cloned, recursive=True)
    copy.set_weights(network.get_weights())
    for variable in copy.variables:
        variable.trainable = False
    return copy


def _cloned(layer):
    kind = type(layer)
    kind = BatchNormalization if kind is keras.layers.BatchNormalization else kind
    return kind.from_config(layer.get_config())


def follow(copy, network, momentum):
    """Updates a twin from its network: copy = momentum * copy + (1 - momentum) * network.

    Only trainable weights are averaged; the twin keeps its own moving statistics of batch normalization.
    Call it in the task's `call(training=True)`, before the twin runs.

    Args:
        copy: keras.Model returned by `twin(network)`.
        network: keras.Model that is trained.
        momentum: float or scalar tensor in [0, 1]; 0.999 in MoCo, rising to 1 in BYOL.

    Raises:
        ValueError: `momentum` is a number outside [0, 1].

    Example:
        >>> network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> follow(twin(network), network, 0.99)
    """
    if not tf.is_tensor(momentum):
        check_fraction("momentum", momentum)
    # In mixed precision `call` reads variables in 16 bits, in which a step of 1 - momentum is rounded away.
    with AutocastScope(None):
        for mine, theirs in zip(copy.variables, network.variables, strict=True):
            if theirs.trainable:
                mine.assign(mine + (1 - momentum) * (tf.convert_to_tensor(theirs) - mine))
