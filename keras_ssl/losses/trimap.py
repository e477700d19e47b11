"""Loss of a mask of which some pixels are uncertain."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="keras_ssl")
class TrimapCrossEntropy(keras.losses.Loss):
    """Computes the cross-entropy of a mask, averaged over the certain pixels of each image.

    An image whose mask has no pixel of 1 has the loss 0: nothing moves in it now, but something in it may be
    able to move.

    Shapes:
        y_true: (B, H, W, 1), 0 or 1, NaN where it is uncertain. y_pred: (B, H, W, 1) logits. The loss: (B,).

    Reference: Pathak et al., "Learning Features by Watching Objects Move", CVPR 2017, section 5.

    Example:
        >>> mask = tf.constant([1.0, 0, 0, float("nan")])[None, None, :, None]
        >>> logits = tf.constant([0.0, 0, 0, 9])[None, None, :, None]
        >>> round(float(TrimapCrossEntropy()(mask, logits)), 4)                                     # log 2
        0.6931
    """

    def call(self, y_true, y_pred):
        y_true, y_pred = tf.cast(y_true, tf.float32), tf.cast(y_pred, tf.float32)
        certain = tf.math.is_finite(y_true)
        mask = tf.where(certain, y_true, tf.zeros_like(y_true))
        entropy = tf.nn.sigmoid_cross_entropy_with_logits(mask, y_pred)
        weight = tf.cast(certain, tf.float32) * tf.reduce_max(mask, axis=[1, 2, 3], keepdims=True)
        total, number = (tf.reduce_sum(x, axis=[1, 2, 3]) for x in (weight * entropy, weight))
        return tf.math.divide_no_nan(total, number)
