"""Batch normalization with TensorFlow's fused kernel, optionally synchronized over replicas."""

import keras
import tensorflow as tf

from keras_ssl.training import distribute


@keras.saving.register_keras_serializable(package="keras_ssl")
class BatchNormalization(keras.layers.BatchNormalization):
    """Computes Keras' batch normalization with TensorFlow's fused kernel, if the kernel supports the input.

    Weights, configuration and results (to 1e-5) are those of `keras.layers.BatchNormalization`; only the
    speed differs. Keras 3 computes the layer by seven separate operations, which take a third of a
    narrow residual network's training step. For serving, TensorFlow can fold only the fused operation
    into the preceding convolution.

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

    def call(self, inputs, training=None, mask=None):
        learns = training and self.trainable
        plain = (
            self.axis in (-1, len(inputs.shape) - 1)
            and inputs.dtype in ("float32", "bfloat16", "float16")
            # The kernel takes no weights and statistics in 16 bits, as a policy such as "float16" makes them.
            and self.variable_dtype == "float32"
            and mask is None
            and not self.renorm
        )
        # None while Keras builds a model under a strategy, which happens outside of any replica.
        context = tf.distribute.get_replica_context()
        several = context is not None and context.num_replicas_in_sync > 1
        if self.synchronized and learns and plain and (several or len(inputs.shape) != 4):
            return self._over_replicas(inputs)
        if not plain or len(inputs.shape) != 4:
            return super().call(inputs, training=training, mask=mask)

        channels = inputs.shape[-1]
        arguments = dict(
            x=inputs,
            scale=tf.convert_to_tensor(self.gamma) if self.scale else tf.ones(channels),
            offset=tf.convert_to_tensor(self.beta) if self.center else tf.zeros(channels),
            epsilon=self.epsilon,
        )
        if not learns:
            outputs = tf.raw_ops.FusedBatchNormV3(
                mean=tf.convert_to_tensor(self.moving_mean),
                variance=tf.convert_to_tensor(self.moving_variance),
                is_training=False,
                **arguments,
            )
            return tf.cast(outputs.y, self.compute_dtype)

        empty = tf.zeros(0)  # no moving average by the kernel: it differs from Keras', see below
        outputs = tf.raw_ops.FusedBatchNormV3(
            mean=empty, variance=empty, is_training=True, **arguments
        )
        # The kernel returns the unbiased variance (divided by n - 1), Keras keeps the biased one.
        n = tf.cast(tf.size(inputs) // channels, tf.float32)
        variance = outputs.batch_variance * (n - 1) / tf.maximum(n, 1)
        self._move(n, outputs.batch_mean, variance)
        return tf.cast(outputs.y, self.compute_dtype)

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
        # A replica may get no image of the last batch, hence no statistics: no update then.
        rate = tf.where(n > 0, 1 - self.momentum, 0.0)
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            old = tf.convert_to_tensor(moving)
            moving.assign(old + rate * (tf.where(n > 0, new, old) - old))
