"""Detects feature collapse."""

import math
import warnings

import keras

from keras_ssl.arguments import check_fraction, check_integer
from keras_ssl.callbacks.sample import Sample
from keras_ssl.evaluation.geometry import alignment, effective_rank, feature_std, uniformity

# Below this value features have collapsed, whatever the initial value; healthy features have at least 0.09.
MIN_FEATURE_STD = 0.01


class Collapse(keras.callbacks.Callback):
    """Warns if all images get nearly the same features, or features that vary in few directions.

    The loss does not reveal collapse: of two networks with the same loss, one may distinguish all images and
    the other none. After an epoch the features of a fixed sample of images are extracted. Four metrics,
    computed by functions of `evaluation`, are added to the logs of the epoch, and so to History and to the
    callbacks after this one: `feature_std` and `effective_rank`, which detect collapse; `feature_alignment`,
    the mean squared distance between an image and its mirror image; and `feature_uniformity`. The last two
    are NaN if all features of an image are 0.

    Args:
        images: tf.data.Dataset of dicts with `image` and `id`, the one that the task is trained on.
        number: int, images in the sample: evenly spaced ones, or the first ones of a dataset without random
            access. All images if there are fewer.
        every: int, measure at the end of every `every`-th epoch.
        min_std: float, warn if `feature_std` falls below this fraction of its value at the start of the
            training run; a resumed run reads this value from its `Checkpoint`.
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

    checkpointed = ("before", "warned")

    def __init__(self, images, number=256, every=1, min_std=0.4, min_rank=0.3):
        super().__init__()
        check_integer("number", number, 2)
        check_integer("every", every, 1)
        self.images, self.number, self.every = images, number, every
        self.min_std = check_fraction("min_std", min_std)
        self.min_rank = check_fraction("min_rank", min_rank)

    def on_train_begin(self, logs=None):
        self.sample = Sample(self.model, self.images, self.number)
        features = self.sample.features()
        self.before, self.warned = (feature_std(features), effective_rank(features)), []

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every:
            return
        features = self.sample.features()
        std, rank = feature_std(features), effective_rank(features)
        if logs is not None:
            mirrored = self.sample.features(mirrored=True)
            # Features that are all 0 have no direction; this is not a reason to stop the training run.
            known = all(part.any(axis=1).all() for part in (features, mirrored))
            logs.update(
                feature_std=std,
                effective_rank=rank,
                feature_alignment=alignment(features, mirrored) if known else math.nan,
                feature_uniformity=uniformity(features) if known else math.nan,
            )
        std_before, rank_before = self.before
        if std < max(self.min_std * std_before, MIN_FEATURE_STD):
            what = "they are nearly the same for all images"
        elif rank < self.min_rank * rank_before:
            what = "they vary in few directions"
        else:
            return
        if what not in self.warned:
            self.warned.append(what)
            warnings.warn(
                f"features collapsed: after epoch {epoch + 1} {what} (feature_std {std:.2g}, before training "
                f"{std_before:.2g}; effective_rank {rank:.1f}, before training {rank_before:.1f}): try a "
                "smaller learning rate, and check that no constant prediction minimizes the loss",
                stacklevel=2,
            )
