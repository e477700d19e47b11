"""Batch normalization with TensorFlow's fused kernel, synchronized over replicas or split into groups."""

import contextlib
import contextvars

import keras
import tensorflow as tf

from keras_ssl.training import distribute

# The arguments of `grouped`. Not attributes of the layers, which the threads that trace the replicas share.
_GROUPED = contextvars.ContextVar("grouped", default=(None, None, True))


@contextlib.contextmanager
def grouped(groups, rows=None, moves=True):
    """Splits the statistics of all `BatchNormalization` layers that are called inside, in training.

    Each of `groups` consecutive parts of the batch is normalized by its own statistics, as if it were alone
    on a device, even if the layer is synchronized. Moving averages are updated by the mean over the groups,
    over those of all replicas if the layer is synchronized. Inputs that Keras computes (another axis or type,
    a mask, `renorm`) are not split.

    Args:
        groups: int, a divisor of the batch size.
        rows: int or scalar tensor, number of first rows that count in the moving averages, by default all;
            the rows after them only fill up the last groups.
        moves: bool, update the moving averages.

    Reference: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020,
    section 3.3; SplitBatchNorm in the authors' notebook for CIFAR-10.

    Example:
        >>> x = tf.constant([[1.0], [3.0], [10.0], [30.0]])
        >>> with grouped(2):
        ...     y = BatchNormalization(epsilon=1e-9)(x, training=True)
        >>> y.numpy().round().ravel().tolist()
        [-1.0, 1.0, -1.0, 1.0]
    """
    token = _GROUPED.set((groups, rows, moves))
    try:
        yield
    finally:
        _GROUPED.reset(token)


@keras.saving.register_keras_serializable(package="keras_ssl")
class BatchNormalization(keras.layers.BatchNormalization):
    """Computes Keras' batch normalization with TensorFlow's fused kernel, if the kernel supports the input.

    Weights, configuration and results (to 1e-5) are the same as in `keras.layers.BatchNormalization`; only
    the speed differs. Keras 3 computes the layer by seven separate operations, which take a third of a narrow
    residual network's training step. For serving, TensorFlow can fold only the fused operation into the
    preceding convolution.

    The kernel takes a 4-D tensor normalized over its last axis, in float32, bfloat16 or float16, and weights
    in float32, as in mixed precision. Everything else (another rank or axis, float64, weights in 16 bits, a
    mask, `renorm`) is computed by Keras.

    With `synchronized=True`, training on several replicas normalizes tensors of any rank over the batch
    of all replicas, which gives the result of a single replica. Each replica sends the count, the mean
    and the sum of squared deviations of its part, in one all-gather, and replicas with more images weigh
    more. Keras averages squares instead, which loses the variance of channels whose mean is large (on a
    single replica too), and weights all replicas equally.

    Args:
        *args, **kwargs: passed to keras.layers.BatchNormalization.

    Call arguments:
        inputs: (B, ..., C) float tensor.
        training: bool, normalize with the statistics of the batch (and update the moving ones).
        mask: optional (B, ...) bool tensor, positions that count towards the statistics.

    Returns:
        A tensor of the shape of `inputs`, in the layer's compute dtype.

    Reference: Ioffe & Szegedy, "Batch Normalization", ICML 2015; Chan, Golub & LeVeque, "Algorithms for
    Computing the Sample Variance", The American Statistician 1983 (variances of parts combined).

    Example:
        >>> BatchNormalization()(tf.ones((2, 8, 8, 3)), training=True).shape
        TensorShape([2, 8, 8, 3])
    """

    def supported(self, rank):
        """Returns whether the kernel can compute this layer for inputs of a rank; otherwise Keras does."""
        # The kernel takes no weights and statistics in 16 bits, which a policy such as "float16" creates.
        return self.axis in (-1, rank - 1) and self.variable_dtype == "float32" and not self.renorm

    def call(self, inputs, training=None, mask=None):
        learns = training and self.trainable
        plain = (
            self.supported(len(inputs.shape))
            and inputs.dtype in ("float32", "bfloat16", "float16")
            and mask is None
        )
        groups, *arguments = _GROUPED.get()
        if groups and learns and plain:
            return self._over_groups(inputs, groups, *arguments)
        # None while Keras builds a model under a strategy, outside of any replica.
        context = tf.distribute.get_replica_context()
        several = context is not None and context.num_replicas_in_sync > 1
        if self.synchronized and learns and plain and (several or len(inputs.shape) != 4):
            return self._over_replicas(inputs)
        if not plain or len(inputs.shape) != 4:
            return super().call(inputs, training=training, mask=mask)

        weights = self._kernel_weights(inputs.shape[-1])
        if learns:
            y, statistics = self._fused(inputs, **weights)
            self._move(*statistics)
            return y
        outputs = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            mean=tf.convert_to_tensor(self.moving_mean),
            variance=tf.convert_to_tensor(self.moving_variance),
            is_training=False,
            **weights,
        )
        return tf.cast(outputs.y, self.compute_dtype)

    def _kernel_weights(self, channels):
        return dict(
            scale=tf.convert_to_tensor(self.gamma) if self.scale else tf.ones(channels),
            offset=tf.convert_to_tensor(self.beta) if self.center else tf.zeros(channels),
            epsilon=self.epsilon,
        )

    def _fused(self, x, **weights):
        """Normalizes a 4-D tensor by its own statistics; returns it and the arguments of `_move`."""
        empty = tf.zeros(0)  # no moving average: the kernel's differs from Keras', see below
        outputs = tf.raw_ops.FusedBatchNormV3(
            x=x, mean=empty, variance=empty, is_training=True, **weights
        )
        # The kernel returns the unbiased variance (divided by n - 1), Keras keeps the biased one.
        n = tf.cast(tf.size(x) // x.shape[-1], tf.float32)
        variance = outputs.batch_variance * (n - 1) / tf.maximum(n, 1)
        return tf.cast(outputs.y, self.compute_dtype), (n, outputs.batch_mean, variance)

    def _over_groups(self, inputs, groups, rows, moves):
        # The kernel once for each group: along the first axis a tensor is split without a copy.
        shape, x, weights = tf.shape(inputs), inputs, self._kernel_weights(inputs.shape[-1])
        if len(inputs.shape) != 4:
            x = tf.reshape(x, [shape[0], tf.reduce_prod(shape[1:-1]), 1, inputs.shape[-1]])
        parts = [self._fused(part, **weights) for part in tf.split(x, groups)]
        y, statistics = zip(*parts, strict=True)
        if moves:
            size = shape[0] // groups
            rows = tf.clip_by_value(
                (shape[0] if rows is None else rows) - size * tf.range(groups), 0, size
            )
            rows = tf.cast(rows, tf.float32)[:, None]
            values = tf.stack(
                [tf.concat([mean, variance], axis=0) for _, mean, variance in statistics]
            )
            if self.synchronized:
                rows, values = distribute.all_gather(rows), distribute.all_gather(values)
            n = tf.reduce_sum(rows)
            mean = tf.reduce_sum(tf.where(rows > 0, rows * values, 0), axis=0) / tf.maximum(n, 1)
            self._move(n, *tf.split(mean, 2))
        return tf.reshape(tf.concat(y, axis=0), shape)

    def _over_replicas(self, inputs):
        x, axes = tf.cast(inputs, tf.float32), list(range(len(inputs.shape) - 1))
        n = tf.cast(tf.size(x) // x.shape[-1], tf.float32)
        mean = tf.reduce_sum(x, axes) / tf.maximum(n, 1)
        squares = tf.reduce_sum(tf.math.squared_difference(x, mean), axes)

        row = tf.concat([n[None], mean, squares], axis=0)[None]
        rows = distribute.all_gather(row)
        sizes, means, squares = tf.split(rows, [1, x.shape[-1], x.shape[-1]], axis=1)
        n = tf.reduce_sum(sizes)
        # Relative to the first mean: no rounding error if the means of all replicas are equal.
        steps = tf.reduce_sum(sizes * (means - means[0]), 0)
        mean = means[0] + steps / tf.maximum(n, 1)
        between = sizes * tf.math.squared_difference(means, mean)
        variance = tf.reduce_sum(squares + between, 0) / tf.maximum(n, 1)
        self._move(n, mean, variance)

        factor = tf.math.rsqrt(variance + self.epsilon)
        if self.scale:
            factor *= tf.convert_to_tensor(self.gamma)
        # The mean is subtracted first, since it may be large.
        y = (x - mean) * factor
        if self.center:
            y += tf.convert_to_tensor(self.beta)
        return tf.cast(y, self.compute_dtype)

    def _move(self, n, mean, variance):
        """Updates the moving statistics by those of a batch with `n` values per channel."""
        # A replica may get no image of the last batch. Then it has no statistics, and nothing is updated.
        rate = tf.where(n > 0, 1 - self.momentum, 0.0)
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            old = tf.convert_to_tensor(moving)
            moving.assign(old + rate * (tf.where(n > 0, new, old) - old))
