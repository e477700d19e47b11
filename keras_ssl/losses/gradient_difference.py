"""Error of predicted frames and of their differences between neighboring pixels."""

import keras
import tensorflow as tf

from keras_ssl.arguments import check_fraction, check_not_negative


@keras.saving.register_keras_serializable(package="keras_ssl")
class GradientDifference(keras.losses.Loss):
    """Computes the L1 or L2 error of an image, and the gradient difference loss, which keeps edges sharp.

    The gradient difference loss is the mean absolute difference between the absolute gradients of the image
    and of the prediction: for each direction, a mean over pairs of neighboring pixels; both means are added.

    Args:
        norm: 1 for absolute errors, 2 for squared ones.
        gradient: float, weight of the gradient difference loss.
        outside: float in 0..1, weight of the pixels where the mask is 0; the weight of a pair is the product
            of both pixels' weights.
        **kwargs: passed to keras.losses.Loss.

    Shapes:
        y_true: (B, H, W, C + 1), the image and, as the last channel, the mask of zeros and ones.
        y_pred: (B, H, W, C). The loss: (B,), 0 for an image in which no pixel has a weight.

    Raises:
        ValueError: `norm` is not 1 or 2, `gradient` is negative, or `outside` is not in 0..1.

    Reference: Mathieu, Couprie & LeCun, "Deep Multi-Scale Video Prediction Beyond Mean Square Error", ICLR
    2016, section 3.

    Example:
        >>> y_true = tf.constant([[[[0.0, 1.0], [3.0, 1.0]]]])          # two pixels, both in the mask
        >>> float(GradientDifference(gradient=2.0)(y_true, tf.zeros((1, 1, 2, 1))))     # 3 / 2 + 2 * 3
        7.5
    """

    def __init__(self, norm=1, gradient=1.0, outside=1.0, **kwargs):
        super().__init__(**kwargs)
        if norm not in (1, 2):
            raise ValueError(f"norm must be 1 or 2, got {norm!r}")
        check_not_negative("gradient", gradient)
        check_fraction("outside", outside)
        self.norm, self.gradient, self.outside = norm, gradient, outside

    def call(self, y_true, y_pred):
        y_true, y_pred = tf.cast(y_true, tf.float32), tf.cast(y_pred, tf.float32)
        image, mask = y_true[..., :-1], y_true[..., -1:]
        weight = mask + self.outside * (1 - mask)
        error = tf.abs(image - y_pred)
        loss = _mean(error if self.norm == 1 else error**2, weight)
        for axis in (1, 2):
            (a, b), (c, d), (v, w) = (_neighbors(x, axis) for x in (image, y_pred, weight))
            loss += self.gradient * _mean(tf.abs(tf.abs(b - a) - tf.abs(d - c)), v * w)
        return loss

    def get_config(self):
        names = ("norm", "gradient", "outside")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _neighbors(x, axis):
    """Returns all pixels except the last, and all except the first, along an axis: the pairs of neighbors."""
    return (x[:, :-1], x[:, 1:]) if axis == 1 else (x[:, :, :-1], x[:, :, 1:])


def _mean(values, weight):
    """Returns the weighted mean over pixels, and over channels: (B,)."""
    values = tf.reduce_mean(values, axis=-1, keepdims=True)
    total = tf.reduce_sum(weight, axis=[1, 2, 3])
    return tf.math.divide_no_nan(tf.reduce_sum(weight * values, axis=[1, 2, 3]), total)
