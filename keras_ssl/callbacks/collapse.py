"""Detects feature collapse."""

import math
import warnings

import keras
import numpy as np

from keras_ssl.callbacks.sample import Sample

# Below it features have collapsed, regardless of the initial value; healthy ones have at least 0.09.
MIN_FEATURE_STD = 0.01


class Collapse(keras.callbacks.Callback):
    """Warns if all images get nearly the same features, or features that vary in few directions.

    The loss does not reveal it: of two networks with the same loss, one may distinguish all images and the
    other none. After an epoch the features of a fixed sample of images are extracted. Two metrics,
    `feature_std` and `effective_rank`, computed by the functions of the same names, are added to the logs
    of the epoch, and so to History and to the callbacks after this one.

    Args:
        images: tf.data.Dataset of dicts with `image` and `id`, the one that the task is trained on.
        number: int, images in the sample: evenly spaced ones, or the first ones of a dataset without random
            access. All images if there are fewer.
        every: int, measure at the end of every `every`-th epoch.
        min_std: float, warn if `feature_std` falls below this fraction of its value at the start of `fit`,
            where the weights are untrained or, in a resumed run, those of the checkpoint.
        min_rank: float, likewise for `effective_rank`.

    Raises:
        ValueError: `number` is below 2 or `every` below 1; `min_std` or `min_rank` is not in [0, 1]; in
            `fit`, `images` is not such a dataset.

    Warns:
        UserWarning: the features have collapsed; at most once per training run for each of the two metrics.

    Example:
        >>> monitor = Collapse(images=[], every=5)
        >>> history = task.fit(dataset, callbacks=[monitor]).history            # doctest: +SKIP
        >>> history["effective_rank"]                                           # doctest: +SKIP
    """

    def __init__(self, images, number=256, every=1, min_std=0.4, min_rank=0.3):
        super().__init__()
        if number < 2:
            raise ValueError(f"number must be at least 2 to compare images, got {number!r}")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every!r}")
        for name, value in (("min_std", min_std), ("min_rank", min_rank)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in 0..1, got {value!r}")
        self.images, self.number, self.every = images, number, every
        self.min_std, self.min_rank = min_std, min_rank

    def on_train_begin(self, logs=None):
        self.sample = Sample(self.model, self.images, self.number)
        features = self.sample.features()
        self.before, self.warned = (feature_std(features), effective_rank(features)), set()

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every:
            return
        features = self.sample.features()
        std, rank = feature_std(features), effective_rank(features)
        if logs is not None:
            logs.update(feature_std=std, effective_rank=rank)
        std_before, rank_before = self.before
        if std < max(self.min_std * std_before, MIN_FEATURE_STD):
            what = "they are nearly the same for all images"
        elif rank < self.min_rank * rank_before:
            what = "they vary in few directions"
        else:
            return
        if what not in self.warned:
            self.warned.add(what)
            warnings.warn(
                f"features collapsed: after epoch {epoch + 1} {what} (feature_std {std:.2g}, before training "
                f"{std_before:.2g}; effective_rank {rank:.1f}, before training {rank_before:.1f}): try a "
                "smaller learning rate, and check that no constant prediction minimizes the loss",
                stacklevel=2,
            )


def feature_std(features):
    """Computes the standard deviation of features over the images, relative to their norm.

    Args:
        features: (N, D) float array.

    Returns:
        float in [0, 1]: the square root of the variance, summed over the dimensions and divided by the mean
        squared norm. 0 if all images have the same features or features are not finite; 1 if their mean
        is 0.

    Raises:
        ValueError: `features` is not an (N, D) array with N and D of at least 1.

    Example:
        >>> round(feature_std([[1.0, 1.0], [1.0, -1.0]]) ** 2, 3)
        0.5
    """
    features = _normalized(features)
    return float(np.sqrt(np.square(features - features.mean(axis=0)).mean(axis=0).sum()))


def effective_rank(features):
    """Computes the effective rank of features: the exponential of the entropy of their singular values.

    Args:
        features: (N, D) float array, centered first.

    Returns:
        float: k if features vary in k directions by equal amounts, between 1 and k if the amounts differ. 0
        if all images have the same features or features are not finite.

    Raises:
        ValueError: `features` is not an (N, D) array with N and D of at least 1.

    Reference: Roy & Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007;
    Garrido et al., "RankMe", ICML 2023, where it predicts the accuracy of linear probes.

    Example:
        >>> round(effective_rank([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]), 3)
        2.0
    """
    features = _normalized(features)
    values = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    # Equal features differ by rounding errors of float32, which have a high rank.
    values = values[values > np.finfo(np.float32).eps * math.sqrt(len(features))]
    if not len(values):
        return 0.0
    parts = values / values.sum()
    return float(np.exp(-(parts * np.log(parts)).sum()))


def _normalized(features):
    """Scales features to a mean squared norm of 1, in float64; returns zeros if that is impossible."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features must be a (N, D) array, got shape {features.shape}")
    largest = np.abs(features).max()
    if not (np.isfinite(largest) and largest > 0):
        return np.zeros_like(features)
    features = features / largest  # so that squares of large values do not overflow
    return features / np.sqrt(np.square(features).sum(axis=1).mean())
