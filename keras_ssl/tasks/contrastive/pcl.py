"""PCL: contrasts each image with the keys of other images, and with the prototypes of their clusters."""

import functools

import keras
import numpy as np
import tensorflow as tf

from keras_ssl import losses, metrics
from keras_ssl.arguments import check_integer, check_not_negative
from keras_ssl.callbacks import Relabel
from keras_ssl.solvers import clustering
from keras_ssl.solvers.shares import share_of
from keras_ssl.tasks.contrastive import memory
from keras_ssl.tasks.contrastive.moco import MoCo, QueueContrast, QueueInfoNCE


@keras.saving.register_keras_serializable(package="keras_ssl")
class PCL(MoCo):
    """Contrasts a view with momentum keys, as MoCo does, and with the prototypes of clusters (ProtoNCE).

    `MoCo` separates all images, even those that show the same thing. So in every epoch the momentum encoder
    computes embeddings of all images, and these are clustered. Each image is pulled to the centroid of its
    cluster, the prototype, and pushed away from the other prototypes. Several clusterings, of different
    sizes, give a hierarchy of prototypes (section 3.2).

    Similarities with a prototype are divided by its concentration phi, which is based on the mean distance of
    the cluster's images to the prototype. It is large for a loose cluster, whose images are therefore pulled
    closer. Without it, many images would collapse into few clusters (section 3.3).

    Training starts with `warmup` epochs of MoCo alone, since clusters of an untrained encoder mean little.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D).
        num_images: int N, images in the data set; their ids are 0 to N - 1.
        clusters: int or sequence of ints, clusters of each clustering, 2 to N; by default N / 200, N / 100
            and N / 50. ImageNet: (25000, 50000, 100000).
        warmup: int, epochs before the first clustering; 20 of 200 in the paper.
        when: int, epochs from one clustering to the next.
        smoothing: float, alpha: the concentration is divided by ln(size + smoothing), so small clusters have
            a larger one.
        queue, momentum, dimensions, depth, groups: as in `MoCo`.
        temperature: float, of the keys, and the mean concentration of each clustering.
        recipe: augmentation of both views, as in `MoCo`: "MOCO_SMALL", "MOCO_V1" or "MOCO_V2".
        seed: int, of the clusterings.
        **kwargs: passed to keras.Model.

    Shapes:
        x: dict of `views` (B, 2, H, W, 3) float32 in 0..255, `order` (B,) float32, as in `MoCo`, and `id`
        (B,) int64. y: (B,) int64, the ids, which are not used. Prediction: (B, 1 + M, 3) float32 with M
        clusterings: MoCo's three similarities, then for each clustering the similarity with the image's own
        prototype divided by its concentration, the logarithm of the sum of exp of the similarities with the
        other prototypes, and their maximum. Before the first clustering these three have the loss 0.

    Raises:
        ValueError: `clusters` are not in 2..N, `warmup` or `smoothing` is negative, or as in `MoCo`; `fit`
            has no `callbacks.Relabel`; in `dataset`, there are not `num_images` images.
        tf.errors.InvalidArgumentError: during training, an id is not in 0..N-1.

    Reference: Li, Zhou, Xiong & Hoi, "Prototypical Contrastive Learning of Unsupervised Representations",
    ICLR 2021.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1, 1))
        >>> task = kssl.tasks.PCL(encoder, num_images=360, clusters=(10, 20), warmup=0, queue=256)
        >>> task.compile("adam")
        >>> images = kssl.data.digits("test")
        >>> callbacks = task.default_callbacks(images)
        >>> history = task.fit(task.dataset(images, batch_size=60), callbacks=callbacks, verbose=0)
    """

    def __init__(
        self, encoder, num_images, clusters=None, warmup=1, when=1, smoothing=10.0, queue=4096, momentum=0.99,
        temperature=0.1, dimensions=128, depth=1, groups=8, recipe="MOCO_SMALL", seed=0, **kwargs,
    ):  # fmt: skip
        super().__init__(
            encoder,
            queue,
            momentum,
            temperature,
            dimensions,
            depth,
            groups=groups,
            recipe=recipe,
            **kwargs,
        )
        check_integer("num_images", num_images, 2)
        check_integer("warmup", warmup, 0)
        check_integer("when", when, 1)
        check_integer("seed", seed, 0)
        if clusters is None:
            clusters = [max(2, num_images // each) for each in (200, 100, 50)]
        self.clusters = tuple(np.atleast_1d(clusters).tolist())
        if not self.clusters:
            raise ValueError("clusters must be one number or more, got none")
        for number in self.clusters:
            check_integer("clusters", number, 2)
            clustering.check_number(number, num_images)
        self.num_images, self.warmup, self.when, self.seed = num_images, warmup, when, seed
        self.smoothing = check_not_negative("smoothing", smoothing)
        state = functools.partial(self.add_weight, trainable=False, autocast=False)
        unknown = keras.initializers.Constant(-1)
        self.labels = state((len(self.clusters), num_images), unknown, "int32", name="labels")
        self.relabelings = state((), "zeros", "int32", name="relabelings")
        self.prototypes = [
            state((number, dimensions), "zeros", "float32", name=f"prototypes{m}")
            for m, number in enumerate(self.clusters)
        ]
        self.concentrations = [
            state((number,), "ones", "float32", name=f"concentrations{m}")
            for m, number in enumerate(self.clusters)
        ]

    def pretext(self, batch, seed):
        x, ids = super().pretext(batch, seed)
        return {**x, "id": memory.known_ids(batch, self.num_images)}, ids

    def call(self, x, training=False):
        queries, similarities = self.contrast(x, training)
        own = tf.gather(tf.convert_to_tensor(self.labels), tf.cast(x["id"], tf.int32), axis=1)
        each = zip(self.prototypes, self.concentrations, tf.unstack(own), strict=True)
        rows = [similarities[:, 0], *(_compare(queries, *clusters) for clusters in each)]
        return tf.stack(rows, axis=1)

    @tf.function(reduce_retracing=True, autograph=False)
    def descriptors(self, batch):
        """Computes the embeddings by the momentum encoder that are clustered, (B, dimensions)."""
        features = batch["image"]
        for copy, network in ((self.key_encoder, self.encoder), (self.key_head, self.head)):
            # With the moving statistics of the network: those of the copy are not updated.
            pairs = list(zip(copy.variables, network.variables, strict=True))
            trained = [a.value for a, b in pairs if b.trainable]
            others = [b.value for b in network.non_trainable_variables]
            features, _ = network.stateless_call(trained, others, features, training=False)
        return tf.math.l2_normalize(features, axis=-1)

    def relabel(self, features):
        """Clusters the embeddings: new labels, prototypes and concentrations.

        Args:
            features: (N, dimensions) array of unit vectors, in the order of the ids, or the `Share` of this
                worker.
        """
        share = share_of(features)
        labels, seed = [], self.seed + len(self.clusters) * int(self.relabelings.numpy())
        for m, number in enumerate(self.clusters):
            found, centroids = clustering.kmeans(share, number, seed=seed + m)
            distances = clustering.distances(share, found, centroids)
            parts = np.bincount(found, minlength=number), np.bincount(found, distances, number)
            sizes, sums = share.sum(np.stack(parts))
            phi = concentrations(sizes, sums, self.smoothing, self.temperature)
            norms = np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
            self.prototypes[m].assign(centroids / norms)
            self.concentrations[m].assign(phi)
            labels.append(share.everywhere(found))
        self.labels.assign(np.stack(labels))
        self.relabelings.assign_add(1)

    def dataset(self, images, *args, **kwargs):
        made = super().dataset(images, *args, **kwargs)  # which checks them
        if (number := int(images.cardinality())) != self.num_images:
            raise ValueError(
                f"images must be all num_images={self.num_images}, which are clustered, got {number}"
            )
        return made

    dataset.__doc__ = MoCo.dataset.__doc__

    def default_loss(self):
        return PrototypeNCE(self.temperature)

    def default_metrics(self):
        kept = [PrototypeContrast(name) for name in metrics.CONTRAST]
        return [*kept, PrototypeAccuracy()]

    def default_callbacks(self, images):
        return [Relabel(images, self.when, warmup=self.warmup)]


def _compare(queries, prototypes, concentration, own):
    """Compares queries with prototypes: (B, 3), the last three numbers of `PCL`'s prediction.

    Args:
        queries: (B, D) float32 tensor.
        prototypes: (K, D) variable.
        concentration: (K,) variable.
        own: (B,) int32 tensor, the cluster of each image, or -1.
    """
    logits = tf.matmul(queries, tf.convert_to_tensor(prototypes), transpose_b=True)
    logits /= tf.convert_to_tensor(concentration)
    itself = own[:, None] == tf.range(tf.shape(logits)[1])
    positive = tf.reduce_sum(tf.where(itself, logits, 0.0), axis=-1)
    others = tf.where(itself, -float("inf"), logits)
    soft, largest = tf.reduce_logsumexp(others, axis=-1), tf.reduce_max(others, axis=-1)
    known = (own >= 0)[:, None]
    nothing = tf.constant([[0.0, -1e9, -1e9]])  # its loss is 0, and so is its gradient
    return tf.where(known, tf.stack([positive, soft, tf.stop_gradient(largest)], axis=-1), nothing)


def concentrations(sizes, sums, smoothing, temperature):
    """Estimates how concentrated clusters are around their prototypes, phi in the paper's equation 12.

    It is the mean distance divided by ln(size + smoothing). As in the authors' code, a cluster of a single
    image gets the maximum, the largest and smallest tenth are clipped, and all are scaled so that their mean
    is the temperature.

    Args:
        sizes: (K,) array, images of each cluster.
        sums: (K,) array, sums of the distances of its images to its centroid.
        smoothing: float, alpha.
        temperature: float.

    Returns:
        (K,) float32 array.

    Example:
        >>> phi = concentrations(np.array([2, 2]), np.array([0.1 + 0.3, 0.5 + 0.5]), 10, 0.2)
        >>> [round(float(one), 3) for one in (*phi, phi.mean())]
        [0.131, 0.269, 0.2]
    """
    phi = sums / np.maximum(sizes, 1) / np.log(np.maximum(sizes, 2) + smoothing)
    phi[sizes < 2] = phi[sizes > 1].max(initial=0)
    phi = np.maximum(
        np.clip(phi, *np.percentile(phi, (10, 90))), 1e-12
    )  # 0 if all images are equal
    return (temperature * phi / phi.mean()).astype(np.float32)


@keras.saving.register_keras_serializable(package="keras_ssl")
class PrototypeNCE(QueueInfoNCE):
    """Adds to MoCo's loss the cross-entropy of finding the prototype, averaged over the clusterings."""

    def call(self, y_true, y_pred):
        found = losses.InfoNCE(temperature=1.0).call(y_true, y_pred[:, 1:, :2])
        return super().call(y_true, y_pred[:, :1]) + tf.reduce_mean(found, axis=1)


@keras.saving.register_keras_serializable(package="keras_ssl")
class PrototypeContrast(QueueContrast):
    """`metrics.Contrast` for PCL's predictions: of finding the other view among the queue."""

    def largest(self, y_true, y_pred):
        return super().largest(y_true, y_pred[:, :1])


@keras.saving.register_keras_serializable(package="keras_ssl")
class PrototypeAccuracy(keras.metrics.MeanMetricWrapper):
    """Measures how often an image's own prototype is the most similar one; 1 before the first clustering."""

    def __init__(self, name="prototype_accuracy", **kwargs):
        super().__init__(self._found, name, **kwargs)

    @staticmethod
    def _found(y_true, y_pred):
        return tf.cast(y_pred[:, 1:, 0] > y_pred[:, 1:, 2], tf.float32)

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype}
