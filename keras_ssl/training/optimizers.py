"""Optimizers that the command line and the zoo train with."""

import keras
import tensorflow as tf

MIN_WARM_UP = 100  # steps, but at most half of the training run


def sgd_cosine(learning_rate, steps):
    """Returns SGD with Nesterov momentum 0.9, linear warm-up and cosine decay to 0.

    Warm-up takes a tenth of the steps, and at least 100 of them or half where there are few.

    Args:
        learning_rate: float, the peak.
        steps: int, optimizer steps of the whole training.

    Returns:
        keras.optimizers.SGD, to give to `compile`.

    Raises:
        ValueError: `learning_rate` is not positive or `steps` is less than 1.

    Reference: Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR
    2017; Goyal et al., "Accurate, Large Minibatch SGD", 2017 (warm-up).

    Example:
        >>> float(sgd_cosine(0.1, steps=100).learning_rate)             # the warm-up starts at 0
        0.0
    """
    return keras.optimizers.SGD(_cosine(learning_rate, steps), momentum=0.9, nesterov=True)


def adam_cosine(learning_rate, steps, beta_1=0.9):
    """Returns Adam with the warm-up and decay of `sgd_cosine`.

    Args:
        learning_rate: float, the peak.
        steps: int, optimizer steps of the whole training.
        beta_1: float, the decay of the mean gradient; 0.5 where two networks compete, as DCGAN has it.

    Returns:
        keras.optimizers.Adam, to give to `compile`.

    Raises:
        ValueError: `learning_rate` is not positive or `steps` is less than 1.

    Reference: Kingma & Ba, "Adam", ICLR 2015; Radford et al., ICLR 2016, section 4 (0.5).

    Example:
        >>> float(adam_cosine(1e-3, steps=100).learning_rate)           # the warm-up starts at 0
        0.0
    """
    return keras.optimizers.Adam(_cosine(learning_rate, steps), beta_1=beta_1)


@keras.saving.register_keras_serializable(package="keras_ssl")
class LossScale(keras.optimizers.LossScaleOptimizer):
    """Keras' dynamic loss scaling, which leaves out a step that overflows on any replica.

    Keras looks at the gradients before they are summed over the replicas, and at those of the first
    replica only: an infinite one of another replica would end up in all weights.

    Args:
        *args, **kwargs: as `keras.optimizers.LossScaleOptimizer`.

    Reference: Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2.

    Example:
        >>> optimizer = LossScale(keras.optimizers.SGD(0.1), initial_scale=4.0)
        >>> float(optimizer.scale_loss(0.5))
        2.0
    """

    def check_finite(self, grads):
        finite = super().check_finite(grads)
        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return finite
        overflows = tf.cast(tf.logical_not(finite), tf.float32)
        return tf.equal(context.all_reduce(tf.distribute.ReduceOp.SUM, overflows), 0.0)


def with_loss_scale(optimizer):
    """Wraps an optimizer in a `LossScale`, unless it scales its loss already.

    Args:
        optimizer: as `keras.optimizers.get` takes it.

    Returns:
        keras.optimizers.LossScaleOptimizer.

    Example:
        >>> with_loss_scale("sgd").name
        'loss_scale_optimizer'
    """
    optimizer = keras.optimizers.get(optimizer)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer
    # Under Keras' name, so that variables keep their paths.
    return LossScale(optimizer, name="loss_scale_optimizer")


def _cosine(learning_rate, steps):
    if not learning_rate > 0 or steps < 1:
        raise ValueError(f"learning_rate and steps must be positive, got {learning_rate}, {steps}")
    # At least 100 steps: Jigsaw on 200 photos, 4 steps per epoch, otherwise meets the peak at once and its
    # loss climbs from 4.9 to 8.0, where chance is 4.6.
    warm_up = max(steps // 10, min(MIN_WARM_UP, steps // 2))
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warm_up else learning_rate,
        decay_steps=steps - warm_up,
        warmup_target=learning_rate if warm_up else None,
        warmup_steps=warm_up,
    )
