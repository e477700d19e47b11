"""Deep InfoMax's losses: whether a code and a feature map are of the same image."""

import math

import keras
import tensorflow as tf

from keras_ssl.losses.contrastive import own_rows
from keras_ssl.training import distribute

BOUNDS = ("JSD", "InfoNCE", "DV")
MASKED = (
    -1e30
)  # instead of -inf: a batch of one image, which has no negatives, has a finite gradient


def image_scores(queries, keys):
    """Computes the inner products of the query of each image with the keys of all images of the batch.

    Args:
        queries: (B, D) float tensor, one per image.
        keys: (B, L, D) float tensor, one for each of L positions of the same images.

    Returns:
        (scores, own): a (B, N, L) float32 tensor over the keys of all N images of all replicas, with
        gradient; (B, N) bool, whether the image is the same.

    Example:
        >>> scores, own = image_scores(tf.eye(2), tf.eye(2)[:, None])
        >>> scores[..., 0].numpy().tolist(), own.numpy().tolist()
        ([[1.0, 0.0], [0.0, 1.0]], [[True, False], [False, True]])
    """
    everyone = distribute.all_gather(tf.cast(keys, tf.float32))
    scores = tf.tensordot(tf.cast(queries, tf.float32), everyone, [[1], [2]])
    return scores, own_rows(queries, everyone)


@keras.saving.register_keras_serializable(package="keras_ssl")
class InfoMax(keras.losses.Loss):
    """Computes a negative bound of the mutual information of a query and the keys of its image.

    Positives are the L keys of the query's own image; negatives are the keys of all other images of the
    batch, over all replicas. Scores are inner products, neither normalized nor scaled.

    - "JSD": mean softplus(-positive) + mean softplus(negative) - 2 log 2, a bound of minus twice the
      Jensen-Shannon divergence. It is 0 for scores of 0, and -2 log 2 = -1.39 for perfect scores. It needs
      few negatives.
    - "InfoNCE": the cross-entropy of finding each of the L positives among all negatives, without the other
      positives; log(1 + (N - 1) L) for scores of 0 and N images. It needs many negatives.
    - "DV", Donsker-Varadhan: log-mean-exp of the negatives of all queries, minus the mean positive. It has
      the largest variance, and does not stop scores from growing.

    A batch of one image has no negatives; its loss is 0.

    Args:
        bound: "JSD", "InfoNCE" or "DV".
        **kwargs: passed to keras.losses.Loss.

    Shapes:
        y_true: not used. y_pred: (B, 1 + L, D), for each image a query and L keys. The loss: (B,) float32;
        its mean over the batch is the formula above.

    Raises:
        ValueError: `bound` is unknown.

    Reference: Hjelm et al., "Learning Deep Representations by Mutual Information Estimation and
    Maximization", ICLR 2019, equations 4 to 6; `losses.mutual_information` has the bounds themselves.

    Example:
        >>> round(float(InfoMax("InfoNCE")([0] * 3, tf.zeros((3, 1 + 4, 8)))), 4)              # ln 9
        2.1972
    """

    def __init__(self, bound="JSD", **kwargs):
        super().__init__(**kwargs)
        if bound not in BOUNDS:
            raise ValueError(f"bound must be one of {', '.join(BOUNDS)}, got {bound!r}")
        self.bound = bound

    def call(self, y_true, y_pred):
        scores, own = image_scores(y_pred[:, 0], y_pred[:, 1:])
        own = own[:, :, None]
        number, positions = tf.shape(scores)[1], tf.cast(tf.shape(scores)[2], tf.float32)
        others = tf.cast(tf.maximum(number - 1, 1), tf.float32)
        positive = tf.reduce_sum(tf.where(own, scores, 0.0), axis=1)
        if self.bound == "JSD":
            negative = tf.reduce_sum(tf.where(own, 0.0, tf.nn.softplus(scores)), axis=[1, 2])
            value = tf.reduce_mean(tf.nn.softplus(-positive), axis=1) - 2 * math.log(2)
            value += negative / (others * positions)
        else:
            negative = tf.reduce_logsumexp(tf.where(own, MASKED, scores), axis=[1, 2])
            if self.bound == "InfoNCE":
                value = tf.reduce_mean(tf.nn.softplus(negative[:, None] - positive), axis=1)
            else:
                everyone = tf.reduce_logsumexp(distribute.all_gather(negative))
                pairs = tf.cast(number, tf.float32) * others * positions
                value = everyone - tf.math.log(pairs) - tf.reduce_mean(positive, axis=1)
        return tf.where(number > 1, value, 0.0)

    def get_config(self):
        return {**super().get_config(), "bound": self.bound}
