"""Cross-entropy over color bins, for colorization."""

import keras
import tensorflow as tf

from keras_ssl.ops import lab


@keras.saving.register_keras_serializable(package="keras_ssl")
class ColorBins(keras.losses.Loss):
    """Computes the cross-entropy between soft-encoded colors and logits over color bins.

    A color is encoded as a distribution over its five nearest bins, with weights from a Gaussian of
    standard deviation 5, so that a nearby bin costs less than a distant one.

    Shapes:
        y_true: (..., 2) colors a and b. y_pred: (..., 262) logits over `lab.ab_bins()`.
        The loss: (...), in nats.

    Reference: Zhang, Isola & Efros, "Colorful Image Colorization", ECCV 2016, section 2.1.

    Example:
        >>> round(float(ColorBins()([[0.0, 0.0]], [[0.0] * 262])), 3)               # log 262
        5.568
    """

    nearest, deviation = 5, 5.0

    def call(self, y_true, y_pred):
        square = lab.distances(tf.cast(y_true, tf.float32))
        farthest = -tf.math.top_k(-square, self.nearest).values[..., -1:]
        # Relative to the nearest bin: for a color far outside the bins all weights would round to 0.
        further = square - tf.reduce_min(square, axis=-1, keepdims=True)
        weight = tf.exp(-further / (2 * self.deviation**2))
        weight = tf.where(square <= farthest, weight, 0.0)
        weight /= tf.reduce_sum(weight, axis=-1, keepdims=True)
        return tf.nn.softmax_cross_entropy_with_logits(weight, tf.cast(y_pred, tf.float32))
