"""The optimisers that the command line and the zoo train with."""

import keras


def sgd_cosine(learning_rate, steps):
    """SGD with Nesterov momentum 0.9; warm-up over a tenth of the steps, then half a cosine to 0.

    Args:
        learning_rate: float, the peak.
        steps: int, optimiser steps of the whole training.

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
    """Adam; warm-up over a tenth of the steps, then half a cosine to 0.

    Args:
        learning_rate: float, the peak.
        steps: int, optimiser steps of the whole training.
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
class Scaled(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule times a constant.

    Args:
        schedule: keras.optimizers.schedules.LearningRateSchedule.
        factor: float.

    Example:
        >>> cosine = keras.optimizers.schedules.CosineDecay(0.1, decay_steps=10)
        >>> round(float(Scaled(cosine, 0.5)(0)), 3)
        0.05
    """

    def __init__(self, schedule, factor):
        self.schedule, self.factor = schedule, factor

    def __call__(self, step):
        return self.factor * self.schedule(step)

    def get_config(self):
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {"schedule": schedule, "factor": self.factor}

    @classmethod
    def from_config(cls, config):
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(schedule, config["factor"])


def slower(optimizer, factor):
    """An optimizer of the same kind with a smaller learning rate, without state.

    Args:
        optimizer: keras.optimizers.Optimizer.
        factor: float, times its learning rate or schedule.

    Returns:
        keras.optimizers.Optimizer.

    Example:
        >>> round(float(slower(keras.optimizers.SGD(0.1), 0.2).learning_rate), 3)
        0.02
    """
    config = optimizer.get_config()
    rate = config["learning_rate"]
    if isinstance(rate, dict):
        rate = Scaled(keras.optimizers.schedules.deserialize(rate), factor)
        config["learning_rate"] = keras.optimizers.schedules.serialize(rate)
    else:
        config["learning_rate"] = factor * rate
    return type(optimizer).from_config(config)


def _cosine(learning_rate, steps):
    if not learning_rate > 0 or steps < 1:
        raise ValueError(f"learning_rate and steps must be positive, got {learning_rate}, {steps}")
    warm_up = steps // 10
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warm_up else learning_rate,
        decay_steps=steps - warm_up,
        warmup_target=learning_rate if warm_up else None,
        warmup_steps=warm_up,
    )
