"""SeLa: predicts balanced labels, which optimal transport computes from the network's predictions."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from keras_ssl.callbacks import Relabel
from keras_ssl.ops import augment, recipes
from keras_ssl.ops.random import split
from keras_ssl.pretext import PretextModel
from keras_ssl.solvers import clustering
from keras_ssl.solvers.shares import share_of, slices
from keras_ssl.solvers.transport import sinkhorn
from keras_ssl.tasks.clustering import label_table
from keras_ssl.training import optimizers, pipeline

TIE = 0.01  # fraction of its mass by which an image prefers its current label


@keras.saving.register_keras_serializable(package="keras_ssl")
class SelfLabel(PretextModel):
    """Predicts labels computed from its own predictions, each for equally many images.

    DeepCluster alternates between two objectives, k-means and classification, and needs remedies against
    empty and against large clusters. Here a single cross-entropy is minimized alternately over the network
    and over the labels. Without a constraint, the best labels would be degenerate: one label for all images.
    With the constraint that each label is used equally often (equipartition), finding them is an optimal
    transport problem from N images to K labels, which Sinkhorn's algorithm solves for the whole data set
    at once (section 3.2).

    The first relabeling, in step 0, computes the labels from the predictions of the untrained network, as in
    the authors' code. The initial random balanced labels only decide between labels that suit an image
    equally well. Several heads, each with its own labels, share the encoder (section 3.3).

    The labels are computed from augmented images, as in the authors' code: a random crop and flip, color
    jitter and 20 % grayscale images, drawn again for every relabeling. So the labels do not depend on
    anything that the augmentation changes. The random numbers follow from `seed`, the number of the
    relabeling and the id.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D).
        num_images: int N, images in the data set; their ids are 0 to N - 1.
        num_clusters: int K, at most N; 128 in the paper for CIFAR, 3,000 for ImageNet.
        num_heads: int; 10 in the paper.
        lam: float, inverse temperature of the transport; 25 in the paper, 10 for CIFAR in the authors'
            code.
        tolerance: float, the error at which the transport stops, as the paper measures it: the sum over
            all images of the relative errors of their sums. 0.1 in the paper, 0.01 for CIFAR. As a
            fraction of the mass it is clipped to 1e-6 (the resolution of float32) to 1e-5 (for few
            images).
        relabelings: int, number of relabelings during training with `default_callbacks`, quadratically
            spaced.
        crop: float in (0, 1], the smallest fraction of the area that a random crop keeps.
        seed: int, of the random labels before the first relabeling, and of the views of each relabeling.
        scratch: str, a folder on a disk for the 4 * N * K bytes of a relabeling, or None for memory.
        **kwargs: passed to keras.Model.

    Shapes:
        x: (B, H, W, C) float32. y: (B,) int64, the ids, which `late_labels` replaces by (B, heads) labels.
        Prediction: (B, heads, K) float32 logits.

    Raises:
        ValueError: there are fewer than 2 images or clusters, more clusters than images, or no head;
            `crop` is not in (0, 1]; `fit` has no `callbacks.Relabel`.

    Reference: Asano, Rupprecht & Vedaldi, "Self-labelling via Simultaneous Clustering and
    Representation Learning", ICLR 2020.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=8, blocks=(1, 1))
        >>> task = kssl.tasks.SelfLabel(encoder, num_images=360, num_clusters=20, num_heads=2)
        >>> task.compile("adam")
        >>> images = kssl.data.digits("test")
        >>> relabel = kssl.callbacks.Relabel(images, when=("quadratic", 3))
        >>> history = task.fit(task.dataset(images, batch_size=60), callbacks=[relabel], verbose=0)
    """

    weight_decay = 1e-5  # as in the authors' code for ImageNet; 5e-4 for CIFAR

    def __init__(
        self,
        encoder,
        num_images,
        num_clusters=None,
        num_heads=10,
        lam=25.0,
        tolerance=0.1,
        relabelings=100,
        crop=0.3,
        seed=0,
        scratch=None,
        **kwargs,
    ):
        super().__init__(encoder, **kwargs)
        if num_clusters is None:
            num_clusters = min(128, num_images)
        clustering.check_number(num_clusters, num_images)
        for name, value in (
            ("num_heads", num_heads), ("relabelings", relabelings), ("lam", lam),
            ("tolerance", tolerance),
        ):  # fmt: skip
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value!r}")
        augment.check_crop(crop)
        self.num_images, self.num_clusters, self.num_heads = num_images, num_clusters, num_heads
        self.lam, self.tolerance, self.relabelings = lam, tolerance, relabelings
        self.crop, self.seed, self.scratch = crop, seed, scratch
        self.labels = self.add_weight(
            shape=(num_heads, num_images), dtype="int32", trainable=False, name="labels",
            initializer=lambda shape, dtype: self.random_labels(),
        )  # fmt: skip
        self.relabeled = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False, name="relabeled"
        )
        self.heads = keras.layers.Dense(num_heads * num_clusters, dtype="float32", name="heads")
        self.heads.build(
            (None, encoder.output_shape[-1])
        )  # `relabel` needs it before the first call

    def random_labels(self):
        """Returns (heads, N) int32 random labels, each used equally often."""
        balanced = np.arange(self.num_images) % self.num_clusters
        random = np.random.default_rng(self.seed)
        return np.stack([random.permutation(balanced) for _ in range(self.num_heads)]).astype(
            "int32"
        )

    def pretext(self, batch, seed):
        return self._augment(batch["image"], seed), batch["id"]

    def _augment(self, image, seed):
        # The authors' transformations for CIFAR, except for the smallest crop.
        recipe = dataclasses.replace(recipes.MOCO_V1, area=(self.crop, 1.0))
        return augment.view(image, seed, recipe)

    def view(self, batch):
        """Computes random views of images, whose features the next `relabel` gets.

        Args:
            batch: dict of `image` (B, H, W, 3) in 0..255 and `id` (B,).

        Returns:
            (B, H, W, 3) float32 tensor in 0..255.
        """
        ids = tf.cast(batch["id"], tf.int64)
        drawn, _ = pipeline.derive_seeds(self.seed, tf.convert_to_tensor(self.relabeled))
        seed = tf.stack([tf.fill(tf.shape(ids), drawn), ids], axis=1)
        # Split, since `pretext` gets the same seed in the epoch with this number.
        return self._augment(batch["image"], split(seed, 1)[0])

    def call(self, x, training=False):
        logits = self.heads(self.encoder(x, training=training))
        return tf.reshape(logits, [-1, self.num_heads, self.num_clusters])

    def late_labels(self, x, y, y_pred):
        found = label_table.lookup(self.labels, y)
        return tf.transpose(found), None

    def relabel(self, features):
        """Computes new labels by optimal transport from images to labels, for each head.

        Args:
            features: (N, D) array, in the order of the ids, or the `Share` of this worker.
        """
        share = share_of(features)
        kernel, bias = self.heads.kernel.numpy(), self.heads.bias.numpy()
        block = max(1, 2**20 // self.num_clusters)
        current, labels = self.labels.numpy(), []
        for head in range(self.num_heads):
            part = slice(head * self.num_clusters, (head + 1) * self.num_clusters)
            before = share.take(current[head])

            def log_probabilities(part=part, before=before):
                for rows in slices(len(share.own), block):
                    logits = share.own[rows] @ kernel[:, part] + bias[part]
                    # Similar images share their mass among all labels, and the argmax would give all of
                    # them the same label: a slight preference for the current label keeps the balance.
                    own = tf.one_hot(before[rows], self.num_clusters)
                    yield tf.nn.log_softmax(logits) + TIE / self.lam * tf.cast(own, logits.dtype)

            found = sinkhorn(
                share.replace(log_probabilities),
                lam=self.lam,
                tolerance=float(np.clip(self.tolerance / self.num_images, 1e-6, 1e-5)),
                scratch=self.scratch,
            ).assignments  # without the kernel, which is as large as all scores
            labels.append(share.everywhere(found))
        self.labels.assign(np.stack(labels))
        self.relabeled.assign_add(1)

    def default_optimizer(self, steps, learning_rate=0.05):
        return optimizers.sgd_cosine(learning_rate, steps, self.weight_decay)

    def default_callbacks(self, images):
        return [Relabel(images, when=("quadratic", self.relabelings))]

    def prediction(self, images):
        return {"clusters": self(images)}

    def preview(self, x, y, y_pred=None):
        labels = self.labels.numpy()[0]  # of the first head
        predicted = [""] * len(x)
        if y_pred is not None:
            predicted = [f", predicted {k}" for k in y_pred[:, 0].argmax(axis=-1)]
        return [
            [(x[i], f"image {y[i]}, label {labels[y[i]]}{predicted[i]}")] for i in range(len(x))
        ]
