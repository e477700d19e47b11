"""DeepCluster: predicts the k-means cluster of each image's features."""

import keras
import numpy as np
import tensorflow as tf

from keras_ssl.callbacks import Relabel
from keras_ssl.ops import augment
from keras_ssl.pretext import PretextModel
from keras_ssl.solvers import clustering
from keras_ssl.solvers.shares import share_of
from keras_ssl.tasks.clustering import label_table
from keras_ssl.training import optimizers


@keras.saving.register_keras_serializable(package="keras_ssl")
class DeepCluster(PretextModel):
    """Predicts the k-means cluster of each image's features, recomputed during training.

    An untrained convolutional network already maps similar images to similar features. Clustering its
    features and training it to predict the clusters strengthens this, and the features are clustered
    again.

    Each relabeling PCA-whitens and L2-normalizes the features of all images and runs k-means. The numbers
    of the new clusters are unrelated to those of the old ones, so the classifier is reinitialized, and so
    are its slots in the optimizer (section 3.2, as in the authors' code).

    Two trivial solutions are prevented (section 3.3):

    - *Empty clusters*: the classifier can assign all images to one cluster. An empty cluster gets a
      perturbed copy of the centroid of another cluster, and a part of its images.
    - *Trivial parametrization*: if most images are in a few clusters, the network can ignore its input.
      Each image is weighted inversely to the size of its cluster, so that all clusters have equal weight.

    Augmentation is a random crop and a flip, as in the authors' code. Colors are not changed, so images can
    be clustered by color alone. To avoid this, the paper feeds the network grayscale Sobel gradients, which
    is an option of the encoder: `encoders.resnet(..., preprocessing=layers.Sobel())`.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D).
        num_images: int N, images in the data set; their ids are 0 to N - 1.
        num_clusters: int K, at most N; many more than there are classes (ten times as many in the paper).
        dimensions: int, of the whitened features; 256 in the paper.
        crop: float in (0, 1], the smallest fraction of the area that a random crop keeps.
        seed: int, of k-means and of the classifier's initial weights.
        **kwargs: passed to keras.Model.

    Shapes:
        x: (B, H, W, C) float32. y: (B,) int64, the ids, which `late_labels` replaces by clusters and
        weights. Prediction: (B, K) float32 logits.

    Raises:
        ValueError: there are fewer than 2 images or clusters, or more clusters than images; `crop` is not
            in (0, 1]; `fit` has no `callbacks.Relabel`.

    Reference: Caron et al., "Deep Clustering for Unsupervised Learning of Visual Features", ECCV 2018.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=8, blocks=(1, 1))
        >>> task = kssl.tasks.DeepCluster(encoder, num_images=360, num_clusters=20)
        >>> task.compile("adam")
        >>> images = kssl.data.digits("test")
        >>> relabel = kssl.callbacks.Relabel(images)
        >>> history = task.fit(task.dataset(images, batch_size=60), callbacks=[relabel], verbose=0)
    """

    label_name = "image"
    weight_decay = 1e-5  # as in the authors' code

    def __init__(
        self, encoder, num_images, num_clusters=None, dimensions=256, crop=0.3, seed=0, **kwargs
    ):
        super().__init__(encoder, **kwargs)
        if num_clusters is None:
            num_clusters = min(128, num_images)
        clustering.check_number(num_clusters, num_images)
        augment.check_crop(crop)
        self.num_images, self.num_clusters = num_images, num_clusters
        self.dimensions, self.crop, self.seed = dimensions, crop, seed
        self.labels = self.add_weight(
            shape=(num_images,), dtype="int32", initializer=keras.initializers.Constant(-1),
            trainable=False, name="labels",
        )  # fmt: skip
        self.weight_of_cluster = self.add_weight(
            shape=(num_clusters,), initializer="ones", trainable=False, name="weight_of_cluster"
        )
        self.relabelings = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False, name="relabelings"
        )
        self.head = keras.layers.Dense(num_clusters, dtype="float32", name="head")
        self.head.build(
            (None, encoder.output_shape[-1])
        )  # `relabel` needs it before the first call

    def pretext(self, batch, seed):
        return augment.random_crop(batch["image"], seed, self.crop), batch["id"]

    def call(self, x, training=False):
        return self.head(self.encoder(x, training=training))

    def late_labels(self, x, y, y_pred):
        found = label_table.lookup(self.labels, y)
        known = tf.maximum(found, 0)  # -1 before the first relabeling: weight 0
        weight = tf.gather(tf.convert_to_tensor(self.weight_of_cluster), known)
        return known, tf.where(found < 0, 0.0, weight)

    def relabel(self, features):
        """Clusters the features and reinitializes the classifier.

        Args:
            features: (N, D) array, in the order of the ids, or the `Share` of this worker.
        """
        seed, share = self.seed + int(self.relabelings.numpy()), share_of(features)
        whitened = clustering.whiten(share, self.dimensions)
        labels, _ = clustering.kmeans(whitened, self.num_clusters, seed=seed)
        labels = share.everywhere(labels)
        sizes = np.bincount(labels, minlength=self.num_clusters)
        # All nonempty clusters have the same weight, and the mean weight of an image is 1.
        weight = self.num_images / np.maximum(sizes, 1) / (sizes > 0).sum()
        self.labels.assign(labels)
        self.weight_of_cluster.assign(weight)
        self.relabelings.assign_add(1)
        initializer = keras.initializers.RandomNormal(stddev=0.01, seed=seed)
        self.head.kernel.assign(initializer(self.head.kernel.shape))
        self.head.bias.assign(tf.zeros_like(self.head.bias))
        optimizer = getattr(self, "optimizer", None)  # None before `compile`
        prefixes = tuple(v.path.replace("/", "_") + "_" for v in self.head.weights)
        for slot in optimizer.variables if optimizer is not None else []:
            if slot.name.startswith(prefixes):
                slot.assign(tf.zeros_like(slot))

    def default_optimizer(self, steps, learning_rate=0.05):
        return optimizers.sgd_constant(learning_rate, steps, self.weight_decay)

    def default_callbacks(self, images):
        return [Relabel(images)]

    def prediction(self, images):
        return {"cluster": self.head(self.encoder(images, training=False))}
