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
