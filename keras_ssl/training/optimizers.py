"""Optimizers with the weight decay and the schedules of the papers, and LARS."""

import keras
import tensorflow as tf

from keras_ssl.arguments import check_integer, check_not_negative, check_positive

MIN_WARM_UP = 100  # steps, but at most half of the training run


@keras.saving.register_keras_serializable(package="keras_ssl")
class SGD(keras.optimizers.SGD):
    """Stochastic gradient descent whose weight decay is a part of the gradient, as in PyTorch and Caffe.

    Keras shrinks the weights by `learning_rate * weight_decay` in each step, outside the momentum. Here
    `weight_decay * weight` is added to the gradient, and momentum 0.9 makes it ten times as effective. This
    is how papers define their values. Biases and the scales and offsets of normalization, which have a single
    axis, are excluded, and so are the variables in `exclude_from_weight_decay`.

    Args:
        *args, **kwargs: passed to keras.optimizers.SGD.

    Reference: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NeurIPS
    2012, section 5; Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 5.1 (exclusions).

    Example:
        >>> kernel = keras.Variable([[2.0]])
        >>> SGD(0.1, momentum=0.9, weight_decay=0.5).apply([tf.constant([[1.0]])], [kernel])
        >>> round(float(kernel[0, 0]), 4)                          # 2 - 0.1 * (1 + 0.5 * 2)
        1.8
    """

    def _apply_weight_decay(self, variables):
        pass  # in `update_step`

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(self.decayed(gradient, variable), variable, learning_rate)

    def decayed(self, gradient, variable):
        """Returns the gradient plus the gradient of the weight decay."""
        if not (self.weight_decay and self.adapts(variable)):
            return gradient
        weight = tf.convert_to_tensor(variable)
        return tf.cast(gradient, weight.dtype) + self.weight_decay * weight

    def adapts(self, variable):
        """Returns whether weight decay (and the rate of `LARS`) applies to a variable."""
        return len(variable.shape) > 1 and self._use_weight_decay(variable)


@keras.saving.register_keras_serializable(package="keras_ssl")
class LARS(SGD):
    """Layer-wise adaptive rate scaling: SGD with steps proportional to the norm of each weight.

    The gradient of a weight w, including weight decay, is multiplied by `trust * |w| / |gradient|`, or by 1
    if either norm is 0. This allows large learning rates for large batches. The gradients of variables
    without weight decay (see `SGD`) are not scaled.

    Args:
        learning_rate: float or schedule.
        momentum: float in [0, 1].
        trust: float, the size of a step relative to the weight at a learning rate of 1.
        rate_in_momentum: bool. True: each gradient is multiplied by the learning rate before it is added to
            the momentum (SimCLR). False: the momentum is multiplied by the current learning rate (BYOL). With
            a constant rate both give the same steps.
        **kwargs: passed to keras.optimizers.SGD, such as `weight_decay`.

    Raises:
        ValueError: `trust` is not positive.

    Reference: You, Gitman & Ginsburg, "Large Batch Training of Convolutional Networks", 2017; Chen et al.,
    "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020; Grill et al.,
    "Bootstrap Your Own Latent", NeurIPS 2020.

    Example:
        >>> kernel = keras.Variable([[4.0]])
        >>> LARS(1.0, momentum=0.0, trust=0.01).apply([tf.constant([[7.0]])], [kernel])
        >>> round(float(kernel[0, 0]), 4)                          # 4 - 0.01 * 4, whatever the gradient
        3.96
    """

    def __init__(
        self, learning_rate=0.1, momentum=0.9, trust=1e-3, rate_in_momentum=True, **kwargs
    ):
        super().__init__(learning_rate, momentum, **kwargs)
        self.trust, self.rate_in_momentum = check_positive("trust", trust), rate_in_momentum

    def update_step(self, gradient, variable, learning_rate):
        gradient = self.decayed(gradient, variable)
        if self.adapts(variable):
            size, slope = tf.norm(tf.convert_to_tensor(variable)), tf.norm(gradient)
            known = tf.logical_and(size > 0, slope > 0)
            gradient *= tf.where(known, self.trust * tf.math.divide_no_nan(size, slope), 1.0)
        if self.rate_in_momentum or not self.momentum:
            keras.optimizers.SGD.update_step(self, gradient, variable, learning_rate)
        else:
            velocity = self.momentums[self._get_variable_index(variable)]
            self.assign(velocity, self.momentum * tf.convert_to_tensor(velocity) + gradient)
            direction = tf.convert_to_tensor(velocity)
            if self.nesterov:
                direction = self.momentum * direction + gradient
            self.assign_sub(variable, learning_rate * direction)

    def get_config(self):
        config = {"trust": self.trust, "rate_in_momentum": self.rate_in_momentum}
        return {**super().get_config(), **config}


def sgd_cosine(learning_rate, steps, weight_decay=0.0):
    """Returns SGD with Nesterov momentum 0.9, linear warm-up and cosine decay to 0.

    Warm-up takes a tenth of the steps, but at least 100 steps, or half of them if there are fewer than 200.

    Args:
        learning_rate: float, the peak.
        steps: int, optimizer steps of the whole training run.
        weight_decay: float, as in `SGD`.

    Returns:
        SGD, for `compile`.

    Raises:
        ValueError: `learning_rate` is not positive, `steps` is less than 1, or `weight_decay` is negative.

    Reference: Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR
    2017; Goyal et al., "Accurate, Large Minibatch SGD", 2017 (warm-up).

    Example:
        >>> float(sgd_cosine(0.1, steps=100).learning_rate)             # the warm-up starts at 0
        0.0
    """
    return _nesterov(_schedule(learning_rate, steps), weight_decay)


def sgd_constant(learning_rate, steps, weight_decay=0.0):
    """Returns SGD with Nesterov momentum 0.9 and a constant learning rate after the warm-up of `sgd_cosine`.

    It is for tasks whose labels change until the end, such as DeepCluster: with a rate that decays to 0, the
    network could no longer learn new labels.

    Args:
        learning_rate: float.
        steps: int, optimizer steps of the whole training run, of which the warm-up is a part.
        weight_decay: float, as in `SGD`.

    Returns:
        SGD, for `compile`.

    Raises:
        ValueError: `learning_rate` is not positive, `steps` is less than 1, or `weight_decay` is negative.

    Reference: Caron et al., "Deep Clustering for Unsupervised Learning of Visual Features", ECCV 2018,
    section 3.4.

    Example:
        >>> schedule = sgd_constant(0.1, steps=1000).get_config()["learning_rate"]
        >>> schedule["config"]["warmup_steps"]
        100
    """
    return _nesterov(_schedule(learning_rate, steps, end=1.0), weight_decay)


def lars_cosine(learning_rate, steps, weight_decay=0.0, rate_in_momentum=True):
    """Returns `LARS` with momentum 0.9 and the warm-up and decay of `sgd_cosine`.

    Args:
        learning_rate: float, the peak.
        steps: int, optimizer steps of the whole training run.
        weight_decay: float, as in `SGD`.
        rate_in_momentum: bool, as in `LARS`.

    Returns:
        LARS, for `compile`.

    Raises:
        ValueError: `learning_rate` is not positive, `steps` is less than 1, or `weight_decay` is negative.

    Reference: Chen et al., ICML 2020, section 2.2; Grill et al., NeurIPS 2020, section 3.3.

    Example:
        >>> float(lars_cosine(1.0, steps=100).learning_rate)            # the warm-up starts at 0
        0.0
    """
    check_not_negative("weight_decay", weight_decay)
    schedule = _schedule(learning_rate, steps)
    return LARS(schedule, weight_decay=weight_decay, rate_in_momentum=rate_in_momentum)


def adam_cosine(learning_rate, steps, beta_1=0.9):
    """Returns Adam with the warm-up and decay of `sgd_cosine`.

    Args:
        learning_rate: float, the peak.
        steps: int, optimizer steps of the whole training run.
        beta_1: float, the decay rate of the mean gradient; 0.5 for adversarial training, as in DCGAN.

    Returns:
        keras.optimizers.Adam, for `compile`.

    Raises:
        ValueError: `learning_rate` is not positive or `steps` is less than 1.

    Reference: Kingma & Ba, "Adam", ICLR 2015; Radford et al., ICLR 2016, section 4 (0.5).

    Example:
        >>> float(adam_cosine(1e-3, steps=100).learning_rate)           # the warm-up starts at 0
        0.0
    """
    return keras.optimizers.Adam(_schedule(learning_rate, steps), beta_1=beta_1)


def with_rate(optimizer, factor):
    """Copies an optimizer that is not built yet, with another learning rate.

    Args:
        optimizer: keras.optimizers.Optimizer; if it scales its loss, its inner optimizer is copied.
        factor: float, multiplies the learning rate, or every rate of its schedule.

    Returns:
        keras.optimizers.Optimizer of the same class.

    Example:
        >>> round(float(with_rate(keras.optimizers.Adam(0.5), 0.1).learning_rate), 6)
        0.05
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    if factor != 1:
        config = copy.get_config()
        rate = config["learning_rate"]
        if isinstance(rate, dict):
            rate = Scaled(keras.optimizers.schedules.deserialize(rate), factor)
        else:
            rate = rate * factor
        copy = type(copy).from_config({**config, "learning_rate": rate})
    return copy


@keras.saving.register_keras_serializable(package="keras_ssl")
class Scaled(keras.optimizers.schedules.LearningRateSchedule):
    """Multiplies the learning rates of a schedule by a factor.

    Args:
        schedule: keras.optimizers.schedules.LearningRateSchedule.
        factor: float.

    Example:
        >>> float(Scaled(keras.optimizers.schedules.ExponentialDecay(8.0, 1, 0.5), 0.5)(1))
        2.0
    """

    def __init__(self, schedule, factor):
        self.schedule, self.factor = schedule, factor

    def __call__(self, step):
        return self.factor * self.schedule(step)

    def get_config(self):
        schedule = keras.optimizers.schedules.serialize(self.schedule)
        return {"schedule": schedule, "factor": self.factor}

    @classmethod
    def from_config(cls, config):
        return cls(keras.optimizers.schedules.deserialize(config["schedule"]), config["factor"])


def _nesterov(schedule, weight_decay):
    check_not_negative("weight_decay", weight_decay)
    return SGD(schedule, momentum=0.9, nesterov=True, weight_decay=weight_decay)


def _schedule(learning_rate, steps, end=0.0):
    """Returns a schedule of warm-up and cosine decay from the peak rate to the fraction `end` of it."""
    check_positive("learning_rate", learning_rate)
    check_integer("steps", steps, 1)
    # With fewer than 100 warm-up steps, the loss of Jigsaw on 200 photos (4 steps per epoch) climbs from 4.9
    # to 8.0 in the first epochs; chance is 4.6.
    warm_up = max(steps // 10, min(MIN_WARM_UP, steps // 2))
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warm_up else learning_rate,
        decay_steps=steps - warm_up,
        alpha=end,
        warmup_target=learning_rate if warm_up else None,
        warmup_steps=warm_up,
    )
