"""Accuracy of nearest neighbors during training, for images with labels."""

import keras
import numpy as np

from keras_ssl.arguments import check_integer
from keras_ssl.callbacks.sample import Sample
from keras_ssl.evaluation.probes import knn


class KNN(keras.callbacks.Callback):
    """Adds the kNN accuracy of the features to the logs of an epoch, as `knn`.

    The pretext metrics do not reveal how good the features are. The labels are only used to measure: the
    features of a fixed sample of labeled images are extracted, and one half is classified by its nearest
    neighbors in the other half. It is meant for comparing epochs; `keras-ssl evaluate` computes an accuracy
    that is comparable with published ones.

    Args:
        images: tf.data.Dataset of dicts with `image`, `id` and `label`, such as `data.from_folder` returns
            for a folder with one folder per class.
        number: int, images in the sample: evenly spaced ones, or the first ones of a dataset without random
            access. All images if there are fewer.
        k: int, number of neighbors.
        every: int, measure at the end of every `every`-th epoch.

    Raises:
        ValueError: `k` or `every` is below 1, or `number` is below 2; in `fit`, `images` is not such a
            dataset.

    Reference: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR
    2018, section 3.4.

    Example:
        >>> monitor = KNN(images=[], every=5)
        >>> history = task.fit(dataset, callbacks=[monitor]).history            # doctest: +SKIP
        >>> history["knn"]                                                      # doctest: +SKIP
    """

    def __init__(self, images, number=2000, k=20, every=1):
        super().__init__()
        for name, value, least in (("number", number, 2), ("k", k, 1), ("every", every, 1)):
            check_integer(name, value, least)
        self.images, self.number, self.k, self.every = images, number, k, every

    def on_train_begin(self, logs=None):
        self.sample = Sample(self.model, self.images, self.number)
        if "label" not in self.sample.elements:
            raise ValueError(
                f"images must yield dicts with `label`, got {', '.join(self.sample.elements)}: use "
                "from_folder with one folder per class, or from_array(..., labels)"
            )
        if len(self.sample.elements["id"]) < 2:
            raise ValueError("images must hold at least two images to compare, got one")
        self.labels = self.sample.elements["label"].numpy()
        # Folders are sorted by class: every second image would miss classes that have a single image.
        self.order = np.random.default_rng(0).permutation(len(self.labels))

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every or logs is None:
            return
        features, labels = self.sample.features()[self.order], self.labels[self.order]
        half = len(labels) // 2
        logs["knn"] = knn(
            features[half:],
            labels[half:],
            features[:half],
            labels[:half],
            min(self.k, len(labels) - half),
        )
