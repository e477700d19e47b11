"""SeLa, self-labelling: balanced labels by optimal transport from the network's own predictions."""

import keras
import numpy as np
import tensorflow as tf

from keras_ssl.callbacks import Relabel
from keras_ssl.ops import augment
from keras_ssl.ops.random import split
from keras_ssl.pretext import PretextModel
from keras_ssl.solvers import clustering
from keras_ssl.solvers.transport import sinkhorn

TIE = 0.01  # by what share of its mass a picture prefers the label that it has


@keras.saving.register_keras_serializable(package="keras_ssl")
class SelfLabel(PretextModel):
    """Predicts labels that were made from its own predictions, each label for equally many pictures.

    DeepCluster alternates between two objectives, k-means and classification, and needs cures for
    empty and for swollen clusters. Here one cross-entropy is minimised in turn over the network and
    over the labels. Over the labels alone the minimum would be trivial, one label for all; with the
    constraint that each is used equally often (equipartition) it is a transport problem from N
    pictures to K labels, which Sinkhorn's algorithm solves for the whole data set at once (section 3.2).

    Training starts from random balanced labels. Several heads, each with labels of its own, share the
    encoder (section 3.3).

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D).
        num_images: int N, pictures in the data set; their ids are 0 to N - 1.
        num_clusters: int K, at most N; 128 in the paper for CIFAR, 3,000 for ImageNet.
        num_heads: int; 10 in the paper.
        lam: float, sharpness of the transport; 25 in the paper, 10 for CIFAR in the authors' code.
        tolerance: float, the transport's error to stop at, in the paper's measure: the sum over all
            pictures of the relative errors of their sums. 0.1 in the paper, 0.01 for CIFAR. As a share
            of the mass it is kept in 1e-6 (the resolution of float32) to 1e-5 (for few pictures).
        relabellings: int, how often `default_callbacks` relabels in a training, quadratically spaced.
        crop: float in 0..1, the smallest share of the area that a random crop keeps.
        seed: int, of the first labels.
        **kwargs: of keras.Model.

    Shapes:
        x: (B, H, W, C) float32. y: (B,) int64, the id, of which `late_labels` makes the (B, heads)
        labels. Prediction: (B, heads, K) float32 logits.

    Raises:
        ValueError: fewer than 2 images or clusters, more clusters than images, no head; fitting
            without `callbacks.Relabel`.

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

    def __init__(
        self,
        encoder,
        num_images,
        num_clusters=None,
        num_heads=10,
        lam=25.0,
        tolerance=0.1,
        relabellings=100,
        crop=0.3,
        seed=0,
        **kwargs,
    ):
        super().__init__(encoder, **kwargs)
        if num_clusters is None:
            num_clusters = min(128, num_images)
        clustering.check_number(num_clusters, num_images)
        for name, value in (
            ("num_heads", num_heads), ("relabellings", relabellings), ("lam", lam),
            ("tolerance", tolerance),
        ):  # fmt: skip
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value!r}")
        augment.check_crop(crop)
        self.num_images, self.num_clusters, self.num_heads = num_images, num_clusters, num_heads
        self.lam, self.tolerance, self.relabellings = lam, tolerance, relabellings
        self.crop, self.seed = crop, seed
        self.labels = self.add_weight(
            shape=(num_heads, num_images), dtype="int32", trainable=False, name="labels",
            initializer=lambda shape, dtype: self.random_labels(),
        )  # fmt: skip
        self.heads = keras.layers.Dense(num_heads * num_clusters, dtype="float32", name="heads")
        self.heads.build((None, encoder.output_shape[-1]))  # relabelled before it is first called

    def random_labels(self):
        """(heads, N) int32: every label as often as every other, in random order."""
        balanced = np.arange(self.num_images) % self.num_clusters
        random = np.random.default_rng(self.seed)
        return np.stack([random.permutation(balanced) for _ in range(self.num_heads)]).astype(
            "int32"
        )

    def pretext(self, batch, seed):
        crop, colors = split(seed, 2)
        image = augment.random_crop(batch["image"], crop, self.crop)
        return augment.random_colors(image, colors), batch["id"]

    def call(self, x, training=False):
        logits = self.heads(self.encoder(x, training=training))
        return tf.reshape(logits, [-1, self.num_heads, self.num_clusters])

    def late_labels(self, x, y, y_pred):
        # Building the model under a strategy, Keras hands in averaged, that is float, ids.
        labels = tf.gather(tf.convert_to_tensor(self.labels), tf.cast(y, tf.int64), axis=1)
        return tf.transpose(labels), None

    def relabel(self, features):
        """Solves the transport from pictures to labels, for each head.

        Args:
            features: (N, D) array, in the order of the ids.
        """
        kernel, bias = self.heads.kernel.numpy(), self.heads.bias.numpy()
        block = max(1, 2**20 // self.num_clusters)
        present, labels = self.labels.numpy(), []
        for head in range(self.num_heads):
            part = slice(head * self.num_clusters, (head + 1) * self.num_clusters)

            def log_probabilities(part=part, head=head):
                for start in range(0, len(features), block):
                    logits = features[start : start + block] @ kernel[:, part] + bias[part]
                    # Pictures that look alike share every label, and the argmax would give all of them
                    # the same: a hair's breadth for the one that they have keeps them balanced.
                    mine = tf.one_hot(present[head, start : start + block], self.num_clusters)
                    yield tf.nn.log_softmax(logits) + TIE / self.lam * tf.cast(mine, logits.dtype)

            plan = sinkhorn(
                log_probabilities,
                lam=self.lam,
                tolerance=float(np.clip(self.tolerance / self.num_images, 1e-6, 1e-5)),
            )
            labels.append(plan.assignments)
        self.labels.assign(np.stack(labels))

    def default_callbacks(self, images):
        return [Relabel(images, when=("quadratic", self.relabellings))]

    def prediction(self, images):
        return {"clusters": self(images)}

    def preview(self, x, y, y_pred=None):
        labels = self.labels.numpy()[0]  # of the first head
        said = [""] * len(x)
        if y_pred is not None:
            said = [f", predicted {k}" for k in y_pred[:, 0].argmax(axis=-1)]
        return [[(x[i], f"image {y[i]}, label {labels[y[i]]}{said[i]}")] for i in range(len(x))]
