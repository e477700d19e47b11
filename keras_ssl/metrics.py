"""Metrics for `compile`: quality of images and depth, and how well embeddings distinguish images."""

import keras
import tensorflow as tf

from keras_ssl.losses.contrastive import similarities
from keras_ssl.losses.local import predicted_scores
from keras_ssl.losses.ranking import ordered_differences
from keras_ssl.ops import depth
from keras_ssl.training import distribute


def psnr(y_true, y_pred):
    """Computes the peak signal-to-noise ratio of each image, in decibels.

    It is 10 log10 of the squared range divided by the mean squared error; 6 dB more means half the root mean
    square error. A perfect reconstruction gets 100 dB.

    Args:
        y_true: (B, H, W, C) tensor in -1..1, or (B, H, W, C + 1) with a mask as the last channel: only
            pixels where it is 1 count.
        y_pred: (B, H, W, C) tensor; values outside -1..1 are clipped first.

    Returns:
        (B,) float32 tensor.

    Example:
        >>> psnr(tf.zeros((1, 4, 4, 3)), tf.fill((1, 4, 4, 3), 0.2)).numpy().round(3).tolist()
        [20.0]
    """
    y_true, y_pred = tf.cast(y_true, tf.float32), tf.cast(y_pred, tf.float32)
    channels = y_pred.shape[-1]
    square = (y_true[..., :channels] - tf.clip_by_value(y_pred, -1, 1)) ** 2
    counts = y_true[..., channels:] if y_true.shape[-1] > channels else tf.ones_like(square)
    counts = tf.broadcast_to(counts, tf.shape(square))
    number = tf.maximum(tf.reduce_sum(counts, axis=[1, 2, 3]), 1.0)
    error = tf.reduce_sum(counts * square, axis=[1, 2, 3]) / number
    return 10 * tf.math.log(4 / tf.maximum(error, 4e-10)) / tf.math.log(10.0)


@keras.saving.register_keras_serializable(package="keras_ssl")
class PSNR(keras.metrics.MeanMetricWrapper):
    """Computes the mean peak signal-to-noise ratio of images, see `psnr`.

    Args:
        name: str.
        **kwargs: passed to keras.metrics.Metric.

    Example:
        >>> metric = PSNR()
        >>> metric.update_state(tf.zeros((1, 4, 4, 3)), tf.fill((1, 4, 4, 3), 0.2))
        >>> round(float(metric.result()), 3)
        20.0
    """

    def __init__(self, name="psnr", **kwargs):
        super().__init__(psnr, name=name, **kwargs)

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype}


def abs_rel(y_true, y_pred):
    """Computes the mean absolute error of each depth map, relative to the true depth.

    Args:
        y_true: (B, H, W, 1) tensor, meters; pixels where it is NaN, 0 or infinite do not count.
        y_pred: tensor of the same shape, meters, or one that broadcasts to it, such as a mean depth.

    Returns:
        (B,) float32 tensor, NaN for an image without a known pixel.

    Reference: Eigen, Puhrsch & Fergus, "Depth Map Prediction from a Single Image using a Multi-Scale Deep
    Network", NIPS 2014, section 4.3.

    Example:
        >>> abs_rel([[[[1.0], [4.0], [float("nan")]]]], 2.0).numpy().tolist()     # 1/1 and 2/4
        [0.75]
    """
    y_true, y_pred = tf.cast(y_true, tf.float32), tf.cast(y_pred, tf.float32)
    known = depth.known(y_true)
    error = tf.where(known, tf.abs(y_pred - y_true) / y_true, tf.zeros_like(y_true))
    number = tf.reduce_sum(tf.cast(known, tf.float32), axis=[1, 2, 3])
    return tf.reduce_sum(error, axis=[1, 2, 3]) / number


@keras.saving.register_keras_serializable(package="keras_ssl")
class AbsRel(keras.metrics.Mean):
    """Computes the mean relative error of depth over all images that have a known pixel, see `abs_rel`.

    Args:
        name: str.
        **kwargs: passed to keras.metrics.Mean.

    Shapes:
        y_true: (B, H, W, 1), meters; NaN, 0 or infinite where unknown. y_pred: (B, H, W, 1), natural
        logarithm of meters, as in `losses.ScaleInvariantDepth`.

    Example:
        >>> metric = AbsRel()
        >>> metric.update_state(tf.fill((1, 4, 4, 1), 2.0), tf.math.log(tf.fill((1, 4, 4, 1), 3.0)))
        >>> round(float(metric.result()), 3)
        0.5
    """

    def __init__(self, name="abs_rel", **kwargs):
        super().__init__(name=name, **kwargs)

    def update_state(self, y_true, y_pred, sample_weight=None):
        error = abs_rel(y_true, tf.exp(tf.cast(y_pred, tf.float32)))
        counted = tf.reduce_any(depth.known(tf.cast(y_true, tf.float32)), axis=[1, 2, 3])
        weight = tf.cast(counted, tf.float32)
        if sample_weight is not None:
            weight *= tf.cast(tf.reshape(sample_weight, [-1]), tf.float32)
        super().update_state(tf.where(counted, error, tf.zeros_like(error)), weight)


@keras.saving.register_keras_serializable(package="keras_ssl")
class OrderedPairs(keras.metrics.Mean):
    """Computes the fraction of pairs of pixels whose depths are predicted in the right order.

    It is 1 - WKDR of the paper, over pairs whose order is known and not equal. Equal predictions are wrong: a
    map without any depth gets 0, a random map 0.5.

    Args:
        name: str.
        **kwargs: passed to keras.metrics.Mean.

    Shapes:
        y_true: (B, P, 3) and y_pred: (B, H, W, 1), as for `losses.DepthRanking`.

    Reference: Chen et al., "Single-Image Depth Perception in the Wild", NIPS 2016, section 5.

    Example:
        >>> metric = OrderedPairs()
        >>> metric.update_state([[[0.0, 1.0, -1.0], [2.0, 0.0, -1.0]]], [[[[0.0], [3.0], [7.0]]]])
        >>> float(metric.result())
        0.5
    """

    def __init__(self, name="ordered", **kwargs):
        super().__init__(name=name, **kwargs)

    def update_state(self, y_true, y_pred, sample_weight=None):
        order, difference = ordered_differences(y_true, y_pred)
        weight = tf.cast(tf.abs(order) > 0, tf.float32)  # false for NaN
        if sample_weight is not None:
            weight *= tf.cast(tf.reshape(sample_weight, [-1, 1]), tf.float32)
        super().update_state(tf.cast(order * difference > 0, tf.float32), weight)


@keras.saving.register_keras_serializable(package="keras_ssl")
class MaskIoU(keras.metrics.Mean):
    """Computes the mean intersection over union of predicted and true masks.

    It is computed for each image over its certain pixels, and averaged over the images whose mask has a pixel
    of 1.

    Args:
        name: str.
        **kwargs: passed to keras.metrics.Mean.

    Shapes:
        y_true: (B, H, W, 1), 0 or 1, NaN where it is uncertain. y_pred: (B, H, W, 1) logits; positive ones
        are in the mask.

    Example:
        >>> metric = MaskIoU()
        >>> metric.update_state([[[[1.0], [1.0], [0.0], [float("nan")]]]], [[[[2.0], [-1.0], [1.0], [9.0]]]])
        >>> round(float(metric.result()), 3)
        0.333
    """

    def __init__(self, name="iou", **kwargs):
        super().__init__(name=name, **kwargs)

    def update_state(self, y_true, y_pred, sample_weight=None):
        y_true, predicted = tf.cast(y_true, tf.float32), tf.cast(y_pred, tf.float32) > 0
        mask, certain = y_true > 0.5, tf.math.is_finite(y_true)  # NaN > 0.5 is false
        both, either = (
            tf.reduce_sum(tf.cast(pixels, tf.float32), axis=[1, 2, 3])
            for pixels in (mask & predicted, (mask | predicted) & certain)
        )
        weight = tf.cast(tf.reduce_any(mask, axis=[1, 2, 3]), tf.float32)
        if sample_weight is not None:
            weight *= tf.cast(tf.reshape(sample_weight, [-1]), tf.float32)
        super().update_state(tf.math.divide_no_nan(both, either), weight)


# Computed from the largest similarity with a positive and with a negative.
CONTRAST = {
    "accuracy": lambda positive, negative: tf.cast(positive > negative, tf.float32),
    "positive": lambda positive, negative: positive,
    "negative": lambda positive, negative: negative,
}


@keras.saving.register_keras_serializable(package="keras_ssl")
class Contrast(keras.metrics.MeanMetricWrapper):
    """Measures how well the embeddings of several views distinguish images.

    `positive` is the cosine similarity of a view with the most similar other view of its image. `negative` is
    its similarity with the most similar view of another image of the batch, over all replicas. `accuracy` is
    how often the former is larger.

    Args:
        name: str, which of the three is averaged: "accuracy", "positive" or "negative".
        by_label: bool, whether all images with the same label count as one image.
        **kwargs: passed to keras.metrics.Metric.

    Shapes:
        y_true: (B,), the labels if `by_label`, otherwise not used. y_pred: (B, V, D) embeddings of V views,
        or (B, 2, V, D) predictions and targets.

    Raises:
        ValueError: `name` is unknown.

    Example:
        >>> metric = Contrast("positive")
        >>> views = tf.constant([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.6, 0.8]]])
        >>> metric.update_state([0, 0], views)
        >>> round(float(metric.result()), 3)
        0.9
    """

    def __init__(self, name="accuracy", by_label=False, **kwargs):
        if name not in CONTRAST:
            raise ValueError(f"name must be one of {', '.join(CONTRAST)}, got {name!r}")
        super().__init__(lambda *y: CONTRAST[name](*self.largest(*y)), name, **kwargs)
        self.by_label = by_label

    def largest(self, y_true, y_pred):
        """Returns the largest similarity of each view with its positives and with its negatives."""
        pair = tf.unstack(y_pred, 2, axis=1) if len(y_pred.shape) == 4 else (y_pred, y_pred)
        similarity, same, itself = similarities(*pair)
        if self.by_label:
            labels = tf.reshape(y_true, [-1])
            same = labels[:, None] == distribute.all_gather(labels)
        same = same[:, None, :, None]
        positive = tf.where(same & ~itself, similarity, -1.0)
        negative = tf.where(same, -1.0, similarity)
        return [tf.reduce_max(values, axis=[2, 3]) for values in (positive, negative)]

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype, "by_label": self.by_label}


@keras.saving.register_keras_serializable(package="keras_ssl")
class FoundPositions(keras.metrics.MeanMetricWrapper):
    """Measures how often a predicted position has the highest score of all positions of all images.

    Args:
        first: int, as in `losses.PredictiveCoding`.
        name: str.
        **kwargs: passed to keras.metrics.Metric.

    Shapes:
        y_true: not used. y_pred: as in `losses.PredictiveCoding`.

    Example:
        >>> embeddings = tf.reshape(tf.eye(4), [1, 1, 4, 1, 4])           # of four rows of one image
        >>> metric = FoundPositions(first=1)
        >>> metric.update_state([0], tf.concat([embeddings, embeddings], axis=1))
        >>> float(metric.result())
        1.0
    """

    def __init__(self, first=1, name="accuracy", **kwargs):
        super().__init__(self.found, name, **kwargs)
        self.first = first

    def found(self, y_true, y_pred):
        """Returns the fraction of the predictions of each image that are right, (B,)."""
        steps = [
            tf.reduce_mean(
                tf.cast(tf.argmax(scores, axis=-1, output_type=tf.int32) == label, tf.float32),
                axis=1,
            )
            for scores, label in predicted_scores(y_pred, self.first)
        ]
        return tf.add_n(steps) / len(steps)

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype, "first": self.first}
