"""Momentum encoders: an exponential moving average of a network (mean teacher, MoCo, BYOL)."""

import math

import keras
import tensorflow as tf
from keras.src.backend import AutocastScope

from keras_ssl.arguments import check_fraction
from keras_ssl.layers import BatchNormalization

UNKNOWN_STEPS = 2**31 - 1  # a run of this length keeps the momentum of its first step


def twin(network):
    """Copies a network, including its weights; the copy is saved with the task but not trained.

    The variables of the copy are not trainable, but its layers stay in training mode: its batch normalization
    uses the statistics of the batch and keeps its own moving averages. `layer.trainable = False` would
    disable both. In the copy, `layers.BatchNormalization` replaces Keras' batch normalization: it computes
    the same, and can be split into groups.

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
    # In mixed precision, `call` reads variables in 16 bits, which would round away a step of 1 - momentum.
    with AutocastScope(None):
        for mine, theirs in zip(copy.variables, network.variables, strict=True):
            if theirs.trainable:
                mine.assign(mine + (1 - momentum) * (tf.convert_to_tensor(theirs) - mine))


def risen(momentum, step, steps):
    """Returns a momentum that rises to 1 along a cosine in the course of training.

    `fit` must add the callback `CountSteps`, as in `tasks/contrastive/byol.py`.

    Args:
        momentum: float in [0, 1], at the first step.
        step: int32 scalar tensor or variable, steps so far.
        steps: int32 scalar tensor or variable, steps of the whole run.

    Returns:
        float32 scalar tensor; 1 from the last step on.

    Reference: Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", NeurIPS
    2020, section 3.3.

    Example:
        >>> float(risen(0.5, 5, 10))
        0.75
    """
    step, steps = (tf.cast(tf.convert_to_tensor(v), tf.float32) for v in (step, steps))
    fraction = tf.clip_by_value(step / steps, 0.0, 1.0)
    return 1 - (1 - momentum) * (tf.cos(math.pi * fraction) + 1) / 2


class CountSteps(keras.callbacks.Callback):
    """Sets the weights `step` and `steps` of a task to its place in the training run, and the run's length.

    Both are int32 scalars that are not trained; `steps` starts as `UNKNOWN_STEPS`, and `call(training=True)`
    adds 1 to `step`.

    Example:
        >>> callbacks = [CountSteps()]
    """

    def on_train_begin(self, logs=None):
        self.begun = False

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if self.begun:
            return
        self.begun, per_epoch = True, self.params["steps"]
        if per_epoch is None:  # a generator, whose length is not known before its end
            self.model.steps.assign(UNKNOWN_STEPS)
            return
        # Not from the checkpoint: the run that saved it may have had more or fewer steps per epoch.
        self.model.step.assign(self.epoch * per_epoch + batch)
        self.model.steps.assign(max(1, self.params["epochs"] * per_epoch))
