"""Notices when features lose what tells pictures apart."""

import math
import warnings

import keras
import numpy as np
import tensorflow as tf

CHUNK = 64  # pictures at a time: the feature maps of more would not fit beside the training
SAME = 0.01  # a feature_std that is too low whatever it was before; healthy features have 0.09 and more


class Collapse(keras.callbacks.Callback):
    """Warns when all pictures get the same features, or features that differ in hardly a direction.

    The loss does not show it: of two networks with the same loss, one may tell all pictures apart, and the
    other none. After an epoch the features of a few fixed pictures are taken, and two figures go to its
    logs, and so to History and the callbacks that come after this one: `feature_std` and
    `effective_rank`, as the functions of these names measure them.

    Args:
        images: tf.data.Dataset of dicts with `image` and `id`: those that the task is fitted on.
        number: int, pictures to measure with: the first ones, or, where the dataset can be asked for
            pictures by their place, evenly spaced ones. All where there are fewer.
        every: int, measure after every so many epochs.
        min_std: float, the `feature_std` below which there is a warning, as a part of what it was when `fit`
            began: that of an untrained network, or of the weights that a resumed training goes on with.
        min_rank: float, likewise for `effective_rank`.

    Raises:
        ValueError: `number` below 2 or `every` below 1; `min_std` or `min_rank` not in 0..1; in `fit`,
            `images` that are none.

    Warns:
        UserWarning: the features have collapsed, once for each of the two figures in a training.

    Example:
        >>> monitor = Collapse(images=[], every=5)
        >>> history = task.fit(dataset, callbacks=[monitor]).history            # doctest: +SKIP
        >>> history["effective_rank"]                                           # doctest: +SKIP
    """

    def __init__(self, images, number=256, every=1, min_std=0.4, min_rank=0.3):
        super().__init__()
        if number < 2:
            raise ValueError(f"number must be at least 2 to compare pictures, got {number!r}")
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
        if std < max(self.min_std * std_before, SAME):
            what = "all pictures have nearly the same"
        elif rank < self.min_rank * rank_before:
            what = "they differ in hardly a direction"
        else:
            return
        if what not in self.warned:
            self.warned.add(what)
            warnings.warn(
                f"features collapsed: after epoch {epoch + 1} {what} (feature_std {std:.2g}, before training "
                f"{std_before:.2g}; effective_rank {rank:.1f}, before training {rank_before:.1f}): try a "
                "smaller learning rate, and see that the loss cannot be met by one answer for all pictures",
                stacklevel=2,
            )


class Sample:
    """A few pictures of a dataset, always the same, and their features as the training goes on.

    Args:
        task: PretextModel.
        images: tf.data.Dataset of dicts with `image` and `id`.
        number: int, pictures; all where there are fewer.

    Raises:
        ValueError: `images` yields something else, or nothing.
    """

    def __init__(self, task, images, number):
        spec = images.element_spec
        if not isinstance(spec, dict) or not {"image", "id"} <= set(spec):
            raise ValueError(
                f"images must yield dicts with `image` and `id`, as for the task's dataset(), got {spec}"
            )
        columns = getattr(images, "columns", None)
        if columns is None:
            chosen = images.take(number)
        else:  # evenly spaced: folders come sorted by class
            length = int(images.cardinality())
            places = np.arange(min(number, length)) * length // min(number, length)
            rows = {name: tf.gather(column, places) for name, column in columns.items()}
            chosen = tf.data.Dataset.from_tensor_slices(rows)
            if images.load_row is not None:
                chosen = chosen.map(images.load_row).ignore_errors()
        kept = {"image", "id", "label"} & set(spec)
        chosen = chosen.map(lambda element: {name: element[name] for name in kept})
        self.elements = next(iter(chosen.batch(number)), None)
        if self.elements is None:
            raise ValueError("images must hold at least one picture, got none")
        pictures = self.elements["image"]
        signature = tf.TensorSpec((None, *pictures.shape[1:]), pictures.dtype)
        self._features = tf.function(task.features, input_signature=[signature])

    def features(self):
        """(number, D) float32 array."""
        pictures = self.elements["image"]
        chunks = [self._features(pictures[i : i + CHUNK]) for i in range(0, len(pictures), CHUNK)]
        return np.concatenate(chunks)


def feature_std(features):
    """How much features differ between pictures, relative to their size.

    Args:
        features: (N, D) float array.

    Returns:
        float in 0..1: the root of the variance, summed over the dimensions, by the mean squared norm. 0 where
        all pictures have the same features, and where features are not finite; 1 where their mean is 0.

    Raises:
        ValueError: `features` is no (N, D) array with N and D of at least 1.

    Example:
        >>> round(feature_std([[1.0, 1.0], [1.0, -1.0]]) ** 2, 3)
        0.5
    """
    features = _normalised(features)
    return float(np.sqrt(np.square(features - features.mean(axis=0)).mean(axis=0).sum()))


def effective_rank(features):
    """In how many directions features differ: the exponential of the entropy of the singular values.

    Args:
        features: (N, D) float array. They are centred first.

    Returns:
        float: k where features vary in k directions by equal amounts, between 1 and k where by unequal
        ones. 0 where all pictures have the same features, and where features are not finite.

    Raises:
        ValueError: `features` is no (N, D) array with N and D of at least 1.

    Reference: Roy & Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007;
    Garrido et al., "RankMe", ICML 2023, where it predicts the accuracy of linear probes.

    Example:
        >>> round(effective_rank([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]), 3)
        2.0
    """
    features = _normalised(features)
    values = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    # Equal features in float32 differ by rounding errors, which have a high rank of their own.
    values = values[values > np.finfo(np.float32).eps * math.sqrt(len(features))]
    if not len(values):
        return 0.0
    parts = values / values.sum()
    return float(np.exp(-(parts * np.log(parts)).sum()))


def _normalised(features):
    """As float64, with a mean squared norm of 1; zeros where that cannot be."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features must be a (N, D) array, got shape {features.shape}")
    largest = np.abs(features).max()
    if not (np.isfinite(largest) and largest > 0):
        return np.zeros_like(features)
    features = features / largest  # squares of huge values would overflow
    return features / np.sqrt(np.square(features).sum(axis=1).mean())
