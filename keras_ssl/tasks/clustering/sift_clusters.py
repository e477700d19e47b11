"""SIFT clusters: predicts the cluster of a patch's SIFT descriptor."""

import keras
import numpy as np
import tensorflow as tf

from keras_ssl import data
from keras_ssl.callbacks import Relabel
from keras_ssl.pretext import PretextModel
from keras_ssl.solvers import clustering
from keras_ssl.solvers.shares import share_of
from keras_ssl.tasks.clustering import label_table
from keras_ssl.training import distribute


@keras.saving.register_keras_serializable(package="keras_ssl")
class SiftClusters(PretextModel):
    """Predicts the cluster of the SIFT descriptor of patches of handwriting, to identify writers.

    Patches around SIFT keypoints on ink are clustered by their descriptors, once, before training. The
    network gets the pixels. To predict the cluster it has to learn the structures of strokes that SIFT
    describes. Its activations, aggregated over a page by VLAD, characterize the handwriting
    (`evaluation.vlad`).

    Keypoints near the boundary of two clusters have arbitrary labels. They are left out if their distances to
    the nearest and the second nearest centroid are too similar (section III-A of the paper): `keras-ssl
    pretrain` removes them from the data by `labeled`. If they remain in the data, their weight is 0, and the
    loss of a batch is the mean over its other patches.

    Args:
        encoder: functional keras.Model from (B, H, W, C) patches to (B, D).
        num_images: int N, patches in the data set; their ids are 0 to N - 1.
        num_clusters: int K; by default 5,000 as in the paper, but at most a tenth of the patches.
        dimensions: int, of the descriptors after PCA; 32 in the paper.
        ratio: float in (0, 1], the largest ratio of the two distances; 0.9 in the paper.
        seed: int, of k-means.
        **kwargs: passed to keras.Model.

    Shapes:
        x: (B, H, W, C), dtype of the image. y: (B,) int64, the ids, which `late_labels` replaces by
        clusters and weights. Prediction: (B, K) float32 logits.

    Raises:
        ValueError: there are fewer than 2 patches or clusters, or more clusters than patches; `ratio` is
            not in (0, 1]; `fit` has no `callbacks.Relabel`.

    Reference: Christlein, Gropp, Fiel & Maier, "Unsupervised Feature Learning for Writer
    Identification and Writer Retrieval", ICDAR 2017.

    Example:
        >>> import keras_ssl as kssl
        >>> patches = kssl.data.digits("test")             # or kssl.data.from_pages("pages/")
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=8, blocks=(1, 1))
        >>> task = kssl.tasks.SiftClusters(encoder, num_images=360, num_clusters=20)
        >>> task.compile("adam")
        >>> relabel = kssl.callbacks.Relabel(patches, when="once")
        >>> history = task.fit(task.dataset(patches, batch_size=60), callbacks=[relabel], verbose=0)
    """

    label_name = "patch"
    weight_decay = 1e-4  # as in the authors' code
    reader = staticmethod(data.from_pages)

    def __init__(
        self, encoder, num_images, num_clusters=None, dimensions=32, ratio=0.9, seed=0, **kwargs
    ):
        super().__init__(encoder, **kwargs)
        if num_clusters is None:
            num_clusters = min(5000, max(2, num_images // 10))
        clustering.check_number(num_clusters, num_images)
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio must be in (0, 1], got {ratio!r}")
        self.num_images, self.num_clusters = num_images, num_clusters
        self.dimensions, self.ratio, self.seed = dimensions, ratio, seed
        self.labels = self.add_weight(
            shape=(num_images,), dtype="int32", initializer=keras.initializers.Constant(-1),
            trainable=False, name="labels",
        )  # fmt: skip
        self.head = keras.layers.Dense(num_clusters, dtype="float32", name="head")

    def labeled(self, images):
        """Selects the patches that have a label, for training after `relabel`.

        Args:
            images: tf.data.Dataset of all patches.

        Returns:
            tf.data.Dataset of known length, without the patches near the boundary of two clusters.
        """
        kept = self.labels.numpy() >= 0
        if hasattr(images, "columns"):  # random access remains
            return data.subset(images, np.flatnonzero(kept[images.columns["id"].numpy()]))
        images = images.filter(lambda patch: tf.gather(kept, patch["id"]))
        return images.apply(tf.data.experimental.assert_cardinality(int(kept.sum())))

    def pretext(self, batch, seed):
        return batch["image"], batch["id"]

    def call(self, x, training=False):
        return self.head(self.encoder(x, training=training))

    def late_labels(self, x, y, y_pred):
        found = label_table.lookup(self.labels, y)
        kept = tf.cast(found >= 0, tf.float32)
        # Keras divides the loss by the number of all patches. Without this factor, the more patches of a
        # batch have no label, the smaller its gradient would be.
        fraction = tf.reduce_mean(distribute.all_gather(kept))
        return tf.maximum(found, 0), tf.math.divide_no_nan(kept, fraction)

    def descriptors(self, batch):
        """Computes the RootSIFT descriptor of each patch, at its keypoint or else at its center."""
        if "descriptor" in batch:
            return batch["descriptor"]
        import cv2

        sift = cv2.SIFT_create()
        found = []
        for image in np.asarray(batch["image"]).astype(np.uint8):
            height, width = image.shape[:2]
            center = cv2.KeyPoint(width / 2, height / 2, min(height, width) / 3, 0)
            found.append(sift.compute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), [center])[1][0])
        return data.root_sift(np.stack(found))

    def relabel(self, features):
        """Clusters the descriptors.

        Args:
            features: (N, 128) array of RootSIFT descriptors, in the order of the ids, or the `Share` of
                this worker.
        """
        share = clustering.pca(share_of(features), self.dimensions)
        labels, centroids = clustering.kmeans(share, self.num_clusters, seed=self.seed)
        squared = clustering.nearest(share.own, centroids, 2)[0]
        near, second = np.sqrt(np.maximum(squared, 0)).T
        kept = np.where(near > self.ratio * second, -1, labels)
        self.labels.assign(share.everywhere(kept))

    def default_callbacks(self, images):
        return [Relabel(images, when="once")]

    def prediction(self, images):
        return {"cluster": self.head(self.encoder(images, training=False))}
