"""Exemplar with triplets: finds the same patch, transformed differently, in the batch."""

import keras
import tensorflow as tf

from keras_ssl import encoders, losses
from keras_ssl.ops.random import split
from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.similarity import exemplars
from keras_ssl.training import distribute


@keras.saving.register_keras_serializable(package="keras_ssl")
class ExemplarTriplet(PretextModel):
    """Embeds two transformations of a patch closer to each other than to other patches of the batch.

    `Exemplar` has a classifier with one class per patch. Here the embeddings are compared instead: two
    transformations of a patch should be more similar to each other, by a margin, than the first one is to any
    other patch of the batch. There is no classifier, so the number of images is unlimited.

    The seed patches and the transformations are the same as in `Exemplar` (`keras_ssl.exemplars`).

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D) with global average pooling.
        patch: int, side of a patch in pixels, or None for a third of the image, but at least 24, or the
            whole image if that is smaller.
        margin: float in (0, 2], of the cosine similarities.
        dimensions: int, of the embedding.
        seed: int, of the seed patches.
        noise: float in 0..255, the standard deviation of Gaussian noise on the transformed patches, in
            the units of the pixels; 0 in the paper.
        **kwargs: passed to keras.Model.

    Shapes:
        x: (B, 2, patch, patch, 3) float32 in 0..255, two transformations. y: (B,) int64, the ids, which
        `late_labels` replaces by the positions in the batch. Prediction: (B, N) float32 cosine
        similarities of the first transformations with the second transformations of all N patches of the
        batch, over all replicas.

    Raises:
        ValueError: the patch is larger than the image, or too small for the encoder; the encoder does not
            take 3 channels; `margin` is not in (0, 2]; `dimensions` is below 1; `noise` is not in
            0..255.

    Reference: Doersch & Zisserman, "Multi-task Self-Supervised Visual Learning", ICCV 2017; Kolesnikov, Zhai
    & Beyer, "Revisiting Self-Supervised Visual Representation Learning", CVPR 2019; Dosovitskiy et al., PAMI
    2016.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=8, blocks=(1, 1))
        >>> task = kssl.tasks.ExemplarTriplet(encoder)
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    min_batch_size = 2  # a single patch has no others to compare with

    def __init__(
        self, encoder, patch=None, margin=0.5, dimensions=128, seed=0, noise=0.0, **kwargs
    ):
        super().__init__(encoder, **kwargs)
        if not 0 < margin <= 2:
            raise ValueError(f"margin must be in (0, 2], got {margin!r}")
        if dimensions < 1:
            raise ValueError(f"dimensions must be at least 1, got {dimensions!r}")
        exemplars.check_noise(noise)
        self.patch = exemplars.check_patch(encoder, patch)
        self.margin, self.dimensions, self.seed = margin, dimensions, seed
        self.noise = noise
        self.head = keras.layers.Dense(dimensions, dtype="float32", name="head")

    def pretext(self, batch, seed):
        image, ids = batch["image"], tf.cast(batch["id"], tf.int64)
        fixed = tf.stack([tf.fill(tf.shape(ids), tf.constant(self.seed, tf.int64)), ids], axis=1)
        corners = exemplars.strong_corners(image, fixed, self.patch)
        views = [
            exemplars.transform(image, corners, s, self.patch, self.noise) for s in split(seed, 2)
        ]
        return tf.stack(views, axis=1), ids

    def call(self, x, training=False):
        embedding = self.head(encoders.on_patches(self.encoder, x, training))
        embedding = tf.math.l2_normalize(embedding, axis=-1)
        others = distribute.all_gather(embedding[:, 1])
        return tf.matmul(embedding[:, 0], others, transpose_b=True)

    def late_labels(self, x, y, y_pred):
        return distribute.first_row(y_pred) + tf.range(tf.shape(y_pred)[0]), None

    def preview(self, x, y, y_pred=None):
        nearest = [""] * len(x)
        if y_pred is not None:
            nearest = [f", nearest {y[k]}" for k in y_pred.argmax(axis=-1)]
        return [
            [(first, f"patch {y[i]}{nearest[i]}"), (second, f"patch {y[i]}")]
            for i, (first, second) in enumerate(x)
        ]

    def default_loss(self):
        return losses.Triplet(self.margin)
