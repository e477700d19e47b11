"""Alignment and uniformity of embeddings on the unit sphere, as a loss."""

import keras
import tensorflow as tf

from keras_ssl.arguments import check_not_negative, check_positive
from keras_ssl.losses.contrastive import check_views
from keras_ssl.training import distribute


@keras.saving.register_keras_serializable(package="keras_ssl")
class Alignment(keras.losses.Loss):
    """Computes the distance between the embeddings of two views of each image, to a power.

    Args:
        alpha: float, the power of the Euclidean distance.
        **kwargs: passed to keras.losses.Loss.

    Shapes:
        y_true: not used. y_pred: (B, 2, D) embeddings of two views, which are normalized here. The loss:
        (B,) float32; for alpha = 2 it is 0 for views of the same direction, 2 for orthogonal and 4 for
        opposite ones.

    Raises:
        ValueError: `alpha` is not positive, or `y_pred` is not (B, 2, D).

    Reference: Wang & Isola, "Understanding Contrastive Representation Learning through Alignment and
    Uniformity on the Hypersphere", ICML 2020, section 4.1.1.

    Example:
        >>> float(Alignment()([0], tf.constant([[[1.0, 0.0], [0.0, 3.0]]])))
        2.0
    """

    def __init__(self, alpha=2.0, **kwargs):
        super().__init__(**kwargs)
        self.alpha = check_positive("alpha", alpha)

    def call(self, y_true, y_pred):
        check_views(y_pred, exactly=2)
        first, second = tf.unstack(_normalized(y_pred), 2, axis=1)
        square = tf.reduce_sum(tf.math.squared_difference(first, second), axis=-1)
        # The root has no gradient at 0. There, value and gradient should be 0.
        apart = square > 0
        return tf.where(apart, tf.where(apart, square, 1.0) ** (self.alpha / 2), 0.0)

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha}


@keras.saving.register_keras_serializable(package="keras_ssl")
class Uniformity(keras.losses.Loss):
    """Computes how unevenly embeddings are spread over the unit sphere, for each view of the batch.

    It is the logarithm of the mean over all pairs of images of exp(-t * squared distance), over all
    replicas: 0 if all embeddings are equal, and negative otherwise. Each image gets the same value, the mean
    over the views. A batch of one image has no pairs and gets 0.

    Args:
        t: float, how fast the potential of a pair decreases with the squared distance.
        **kwargs: passed to keras.losses.Loss.

    Shapes:
        y_true: not used. y_pred: (B, V, D) embeddings of V views, which are normalized here. The loss: (B,)
        float32.

    Raises:
        ValueError: `t` is not positive, or `y_pred` is not (B, V, D) with V of at least 2.

    Reference: Wang & Isola, ICML 2020, section 4.1.2.

    Example:
        >>> round(float(Uniformity()([0, 0], tf.constant([[[1.0]] * 2, [[-1.0]] * 2]))), 4)    # -4 t
        -8.0
    """

    def __init__(self, t=2.0, **kwargs):
        super().__init__(**kwargs)
        self.t = check_positive("t", t)

    def call(self, y_true, y_pred):
        check_views(y_pred)
        everyone = distribute.all_gather(_normalized(y_pred))
        number = tf.shape(everyone)[0]
        values = []
        for z in tf.unstack(everyone, y_pred.shape[1], axis=1):
            squares = 2 - 2 * tf.matmul(z, z, transpose_b=True)
            pairs = tf.where(tf.eye(number, dtype=tf.bool), -float("inf"), -self.t * squares)
            # One image has no pair; a single finite number keeps the gradient finite.
            pairs = tf.where(number > 1, pairs, 0.0)
            count = tf.cast(tf.maximum(number * (number - 1), 1), tf.float32)
            values.append(tf.reduce_logsumexp(pairs) - tf.math.log(count))
        return tf.repeat(tf.add_n(values) / len(values), tf.shape(y_pred)[0])

    def get_config(self):
        return {**super().get_config(), "t": self.t}


@keras.saving.register_keras_serializable(package="keras_ssl")
class AlignmentUniformity(keras.losses.Loss):
    """Computes the weighted sum of `Alignment` and `Uniformity` of two views of each image.

    Args:
        alpha: float, as in `Alignment`.
        t: float, as in `Uniformity`.
        alignment: float, weight of the alignment.
        uniformity: float, weight of the uniformity.
        **kwargs: passed to keras.losses.Loss.

    Shapes:
        y_true: not used. y_pred: (B, 2, D) embeddings of two views, which are normalized here. The loss:
        (B,) float32, at least `uniformity` times -4 t.

    Raises:
        ValueError: `alpha` or `t` is not positive, a weight is negative, or `y_pred` is not (B, 2, D).

    Reference: Wang & Isola, ICML 2020, section 4; SsnL/align_uniform.

    Example:
        >>> round(abs(float(AlignmentUniformity()([0] * 4, tf.ones((4, 2, 3))))), 4)     # collapsed
        0.0
    """

    def __init__(self, alpha=2.0, t=2.0, alignment=1.0, uniformity=1.0, **kwargs):
        super().__init__(**kwargs)
        self.alpha, self.t = check_positive("alpha", alpha), check_positive("t", t)
        self.alignment = check_not_negative("alignment", alignment)
        self.uniformity = check_not_negative("uniformity", uniformity)

    def call(self, y_true, y_pred):
        alignment = Alignment(self.alpha).call(y_true, y_pred)
        return self.alignment * alignment + self.uniformity * Uniformity(self.t).call(
            y_true, y_pred
        )

    def get_config(self):
        config = {name: getattr(self, name) for name in ("alpha", "t", "alignment", "uniformity")}
        return {**super().get_config(), **config}


def _normalized(embeddings):
    return tf.math.l2_normalize(tf.cast(embeddings, tf.float32), axis=-1)
