"""Batch normalisation on TensorFlow's fused kernel."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="keras_ssl")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' batch normalisation, run by TensorFlow's fused kernel where that kernel applies.

    Weights, configuration and results (to 1e-5) are those of
    `keras.layers.BatchNormalization`; only the speed differs. Keras 3 computes the layer from
    seven separate operations, a third of a narrow residual network's training step, and
    TensorFlow can fold only the fused operation into the convolution before it when serving.

    The kernel takes a 4-D tensor normalised over its last axis, in float32, bfloat16 or float16.
    Everything else (another rank or axis, float64, a mask, `renorm`, `synchronized=True` with more than
    one replica) is computed by Keras.

    Args:
        *args, **kwargs: as `keras.layers.BatchNormalization`.

    Call arguments:
        inputs: (B, ..., C) float tensor.
        training: bool, normalise with the statistics of the batch (and update the moving ones).
        mask: optional (B, ...) bool tensor, positions that count towards the statistics.

    Returns:
        A tensor of the shape of `inputs`, in the layer's compute dtype.

    Reference: Ioffe & Szegedy, "Batch Normalization", ICML 2015.

    Example:
        >>> BatchNormalization()(tf.ones((2, 8, 8, 3)), training=True).shape
        TensorShape([2, 8, 8, 3])
    """

    def call(self, inputs, training=None, mask=None):
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        fused = (
            len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and inputs.dtype in ("float32", "bfloat16", "float16")
            and mask is None
            and not self.renorm
            and not (self.synchronized and replicas > 1)
        )
        if not fused:
            return super().call(inputs, training=training, mask=mask)

        channels = inputs.shape[-1]
        arguments = dict(
            x=inputs,
            scale=tf.convert_to_tensor(self.gamma) if self.scale else tf.ones(channels),
            offset=tf.convert_to_tensor(self.beta) if self.center else tf.zeros(channels),
            epsilon=self.epsilon,
        )
        moving_mean = tf.convert_to_tensor(self.moving_mean)
        moving_variance = tf.convert_to_tensor(self.moving_variance)
        if not (training and self.trainable):
            outputs = tf.raw_ops.FusedBatchNormV3(
                mean=moving_mean, variance=moving_variance, is_training=False, **arguments
            )
            return tf.cast(outputs.y, self.compute_dtype)

        nothing = tf.zeros(0)  # the kernel's own moving average differs from Keras', see below
        outputs = tf.raw_ops.FusedBatchNormV3(
            mean=nothing, variance=nothing, is_training=True, **arguments
        )
        # The kernel reports the unbiased variance (divided by n - 1), Keras keeps the biased one.
        n = tf.cast(tf.size(inputs) // channels, tf.float32)
        variance = outputs.batch_variance * (n - 1) / tf.maximum(n, 1)
        # A replica may get no image of the last batch: no statistics then, so no update.
        rate = tf.where(n > 0, 1 - self.momentum, 0.0)
        for moving, old, new in (
            (self.moving_mean, moving_mean, outputs.batch_mean),
            (self.moving_variance, moving_variance, variance),
        ):
            moving.assign(old + rate * (tf.where(n > 0, new, old) - old))
        return tf.cast(outputs.y, self.compute_dtype)
