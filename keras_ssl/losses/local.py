"""Contrastive losses over the positions of feature maps: CPC's and AMDIM's."""

import keras
import tensorflow as tf

from keras_ssl.arguments import check_integers, check_not_negative, check_positive
from keras_ssl.losses.contrastive import own_rows
from keras_ssl.training import distribute

EXCLUDED = (
    -1e9
)  # score of excluded keys; unlike -inf, it has a gradient even if no other key is left


def predicted_scores(y_pred, first):
    """Scores the prediction of each position with the targets of all positions of all images.

    Args:
        y_pred: (B, 1 + S, H, W, D) float tensor, see `PredictiveCoding`.
        first: int, how many rows above its target the first prediction was made.

    Yields:
        (scores, label) for each of the S steps: (B, P, N * H * W) float32 with the N images of all
        replicas, with gradient, and (B, P) int32, the column of the target, for the P positions that are
        predicted.

    Example:
        >>> [scores.shape for scores, _ in predicted_scores(tf.zeros((3, 3, 7, 7, 8)), first=2)]
        [TensorShape([3, 35, 147]), TensorShape([3, 28, 147])]
    """
    y_pred = tf.cast(y_pred, tf.float32)
    slots, height, width, size = y_pred.shape[1:]
    targets = tf.reshape(distribute.all_gather(y_pred[:, 0]), [-1, size])
    number = tf.shape(y_pred)[0]
    image = distribute.first_row(y_pred) + tf.range(number)
    for slot in range(1, slots):
        row = first + slot - 1  # those above have nothing to be predicted from
        queries = tf.reshape(y_pred[:, slot, row:], [-1, size])
        scores = tf.matmul(queries, targets, transpose_b=True)
        places = tf.range(row * width, height * width)
        yield (
            tf.reshape(scores, [number, (height - row) * width, -1]),
            image[:, None] * (height * width) + places,
        )


@keras.saving.register_keras_serializable(package="keras_ssl")
class PredictiveCoding(keras.losses.Loss):
    """Computes the cross-entropy of finding the predicted position among all positions (CPC's loss).

    The negatives of a prediction are all other positions of its own image and all positions of all other
    images, over all replicas. The scores are scalar products, neither normalized nor divided by a
    temperature. The steps are computed one after another; each has a matrix of up to (N * H * W)^2 scores,
    3,136 x 2,240 for 64 images and 7x7 positions.

    Args:
        first: int, how many rows above its target the first prediction was made; the second was made one
            row further above, and so on.
        **kwargs: passed to keras.losses.Loss.

    Shapes:
        y_true: not used. y_pred: (B, 1 + S, H, W, D): the embedding of each position, then its predictions by
        S steps. Predictions for the first rows are not used, since too few rows are above them. The loss:
        (B,) float32, the mean over the steps of the mean over the positions; ln(N * H * W) if all scores are
        0.

    Raises:
        ValueError: `first` is less than 1, or `y_pred` has no prediction, or too few rows for the last.

    Reference: van den Oord, Li & Vinyals, "Representation Learning with Contrastive Predictive Coding",
    2018, equation 4; Hénaff et al., "Data-Efficient Image Recognition with Contrastive Predictive Coding",
    ICML 2020, appendix (pseudo-code).

    Example:
        >>> round(float(PredictiveCoding(first=2)([0] * 3, tf.zeros((3, 4, 7, 7, 8)))), 4)       # ln 147
        4.9904
    """

    def __init__(self, first=1, **kwargs):
        super().__init__(**kwargs)
        check_integers(1, first=first)
        self.first = first

    def call(self, y_true, y_pred):
        check_predictions(y_pred, self.first)
        steps = [
            tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels=label, logits=scores), axis=1
            )
            for scores, label in predicted_scores(y_pred, self.first)
        ]
        return tf.add_n(steps) / len(steps)

    def get_config(self):
        return {**super().get_config(), "first": self.first}


def check_predictions(y_pred, first):
    """Raises ValueError unless `y_pred` has the shape that `PredictiveCoding` expects."""
    shape = y_pred.shape
    if len(shape) != 5 or not first + shape[1] - 2 < shape[2] or shape[1] < 2:
        raise ValueError(
            f"y_pred must be (B, 1 + S, H, W, D), the embedding of each position and its predictions by one "
            f"or more steps from at most H - 1 rows above, got shape {shape} with first={first}"
        )


def local_scores(y_pred, locations):
    """Scores the sources of each view with the targets at all locations of the other view of all images.

    Args:
        y_pred: (B, 2, 2 + L1 + L2, D) float tensor, see `MultiscaleInfoNCE`.
        locations: pair of int, L1 and L2.

    Returns:
        (scores, own): a list of six (B, N, L) float32 tensors over the N images of all replicas, with
        gradient: for either view the scores of its vector with the first map of the other view, of its vector
        with the second map, and of its location with the first map; and (B, N) bool, whether the image is the
        same.

    Example:
        >>> scores, own = local_scores(tf.zeros((3, 2, 2 + 25 + 49, 8)), (25, 49))
        >>> [s.shape[2] for s in scores], own.shape
        ([25, 49, 25, 25, 49, 25], TensorShape([3, 3]))
    """
    y_pred = tf.cast(y_pred, tf.float32)
    everyone, size = distribute.all_gather(y_pred), y_pred.shape[-1]
    number, total = tf.shape(y_pred)[0], tf.shape(everyone)[0]
    scores = []
    for view, other in ((0, 1), (1, 0)):
        vector, location = y_pred[:, view, 0], y_pred[:, view, 1]
        first, second = tf.split(everyone[:, other, 2:], locations, axis=1)
        for source, targets in ((vector, first), (vector, second), (location, first)):
            products = tf.matmul(source, tf.reshape(targets, [-1, size]), transpose_b=True)
            scores.append(tf.reshape(products / size**0.5, [number, total, targets.shape[1]]))
    return scores, own_rows(y_pred, everyone)


@keras.saving.register_keras_serializable(package="keras_ssl")
class MultiscaleInfoNCE(keras.losses.Loss):
    """Computes the cross-entropy of finding the locations of the same image among all images (AMDIM's loss).

    A source in one view is compared with all locations in the other view of all images of the batch, over all
    replicas. Each location of the same image is a positive once, with all locations of all other images as
    its negatives; the other locations of the same image are neither. There are three terms: from the vector
    of the whole image to a first and to a second map of locations, and from a location to the first map. Each
    term is the mean over both directions between the views, and the terms are added.

    Scores are scalar products divided by the square root of the dimensions. Their squares are penalized, and
    then they are clipped smoothly, which keeps the training stable.

    Args:
        locations: pair of int, the number of locations of the first and of the second map.
        clip: float, c in c * tanh(score / c).
        penalty: float, weight of the mean squared score before the clip; 0.05 in the authors' code.
        **kwargs: passed to keras.losses.Loss.

    Shapes:
        y_true: not used. y_pred: (B, 2, 2 + L1 + L2, D) for two views: the embedding of the whole image, the
        embedding of one location of the first map, then the embeddings of all locations of both maps. The
        loss: (B,) float32. With scores of 0 a term with L locations is ln(1 + (N - 1) * L) for N images.

    Raises:
        ValueError: `locations` are not two positive integers, `clip` is not positive, `penalty` is negative,
            or `y_pred` is not of that shape.

    Reference: Bachman, Hjelm & Buchwalter, "Learning Representations by Maximizing Mutual Information Across
    Views", NeurIPS 2019; `costs.py` in Philip-Bachman/amdim-public.

    Example:
        >>> loss = MultiscaleInfoNCE((25, 49))([0] * 2, tf.zeros((2, 2, 2 + 25 + 49, 8)))
        >>> round(float(loss), 4)                                              # 2 ln 26 + ln 50
        10.4282
    """

    def __init__(self, locations, clip=20.0, penalty=0.05, **kwargs):
        super().__init__(**kwargs)
        locations = tuple(locations)
        if len(locations) != 2:
            raise ValueError(f"locations must be a pair of integers, got {locations}")
        check_integers(1, **{f"locations[{i}]": number for i, number in enumerate(locations)})
        self.locations, self.clip = locations, check_positive("clip", clip)
        self.penalty = check_not_negative("penalty", penalty)

    def call(self, y_true, y_pred):
        self.check(y_pred)
        scores, own = local_scores(y_pred, self.locations)
        # The sum of three terms, each of which is the mean over two directions.
        total = tf.add_n([self.cross_entropy(raw, own) for raw in scores]) / 2
        return total + self.penalties(scores)

    def cross_entropy(self, raw, own):
        """Computes the mean over the locations of the same image, from (B, N, L) scores; returns (B,)."""
        scores = self.clip * tf.tanh(raw / self.clip)
        own = own[:, :, None]
        positive = tf.reduce_sum(tf.where(own, scores, 0.0), axis=1)
        negatives = tf.reduce_logsumexp(tf.where(own, EXCLUDED, scores), axis=[1, 2])
        return tf.reduce_mean(tf.nn.softplus(negatives[:, None] - positive), axis=1)

    def penalties(self, scores):
        """Computes the penalty of each image; returns (B,)."""
        return self.penalty / 2 * tf.add_n([tf.reduce_mean(raw**2, axis=[1, 2]) for raw in scores])

    def check(self, y_pred):
        """Raises ValueError unless `y_pred` has the shape in the docstring of the class."""
        expected = (2, 2 + sum(self.locations))
        if len(y_pred.shape) != 4 or tuple(y_pred.shape[1:3]) != expected:
            raise ValueError(
                f"y_pred must be (B, {expected[0]}, {expected[1]}, D) for locations={self.locations}, got "
                f"shape {y_pred.shape}"
            )

    def get_config(self):
        config = {"locations": self.locations, "clip": self.clip, "penalty": self.penalty}
        return {**super().get_config(), **config}
