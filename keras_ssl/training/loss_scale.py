"""Dynamic loss scaling for float16."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="keras_ssl")
class LossScale(keras.optimizers.LossScaleOptimizer):
    """Scales the loss dynamically as Keras does, and skips a step if any replica overflows.

    Keras checks only the gradients of the first replica, before they are summed over the replicas, so an
    infinite gradient of another replica would reach all weights.

    Args:
        *args, **kwargs: passed to keras.optimizers.LossScaleOptimizer.

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
    """Wraps an optimizer in a `LossScale`, unless it already scales its loss.

    Args:
        optimizer: as in `keras.optimizers.get`.

    Returns:
        keras.optimizers.LossScaleOptimizer.

    Example:
        >>> with_loss_scale("sgd").name
        'loss_scale_optimizer'
    """
    optimizer = keras.optimizers.get(optimizer)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer
    # With the name that Keras uses, so that variables keep their paths.
    return LossScale(optimizer, name="loss_scale_optimizer")
