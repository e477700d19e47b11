"""Exemplar-CNN: which of N seed patches is this a transformation of?"""

import keras
import tensorflow as tf

from keras_ssl import encoders
from keras_ssl.ops.random import integer, split
from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.similarity import exemplars


@keras.saving.register_keras_serializable(package="keras_ssl")
class Exemplar(PretextModel):
    """Tells N patches apart, however they are moved, turned and recoloured: each is a class of its own.

    The features must keep what makes a patch different from all others and forget what the
    transformations change: exactly the invariances that one asks of features.

    The seed patch of a picture is taken once, where gradients are strong (a flat patch is a class that
    nothing could tell), and stays the same. It is shown under new transformations every epoch, whose
    ranges are the paper's (`keras_ssl.exemplars`). Among them, against the shortcut that a patch could be
    known by its average colour: contrast along the principal components, saturation, value and hue.

    The class layer has N x D weights. With N beyond some ten thousand it dominates the step, and
    `ExemplarTriplet`, which compares patches directly, has none.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D) that averages over the picture: it
            is trained on the patches and used on whole pictures.
        num_images: int N, pictures in the data set, one seed patch each; their ids are 0 to N - 1. The
            paper: 8,000.
        patch: int, pixels, or None for a third of the picture as in the paper (32 of 96), but at least
            24 or the whole picture where that is smaller.
        num_transformations: int K, transformations of each seed patch (the paper: 100 and more), or None
            for new ones every epoch.
        seed: int, of the seed patches.
        **kwargs: of keras.Model.

    Shapes:
        x: (B, patch, patch, 3) float32 in 0..255. y: (B,) int64, the id. Prediction: (B, N) float32
        logits.

    Raises:
        ValueError: fewer than 2 images; a patch larger than the picture, or one that cannot go through
            the encoder; an encoder for other than 3 channels; `num_transformations` below 1; more
            images to fit on than `num_images`.
        tf.errors.InvalidArgumentError: while fitting, an id that is not in 0..N-1.

    Reference: Dosovitskiy et al., "Discriminative Unsupervised Feature Learning with Exemplar
    Convolutional Neural Networks", PAMI 2016.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=8, blocks=(1, 1))
        >>> task = kssl.tasks.Exemplar(encoder, num_images=360)
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    label_name = "class"

    def __init__(self, encoder, num_images, patch=None, num_transformations=None, seed=0, **kwargs):
        super().__init__(encoder, **kwargs)
        if num_images < 2:
            raise ValueError(f"num_images must be at least 2, got {num_images}")
        if num_transformations is not None and num_transformations < 1:
            raise ValueError(
                f"num_transformations must be at least 1 or None, got {num_transformations}"
            )
        self.patch = exemplars.check_patch(encoder, patch)
        self.num_images, self.num_transformations = num_images, num_transformations
        self.seed = seed
        self.head = keras.layers.Dense(num_images, dtype="float32", name="head")

    def pretext(self, batch, seed):
        image, ids = batch["image"], tf.cast(batch["id"], tf.int64)
        known = tf.debugging.assert_less(
            tf.reduce_max(ids), tf.constant(self.num_images, tf.int64),
            f"the ids of the images must be below num_images, {self.num_images}",
        )  # fmt: skip
        with tf.control_dependencies([] if known is None else [known]):
            ids = tf.identity(ids)
        fixed = tf.stack([tf.fill(tf.shape(ids), tf.constant(self.seed, tf.int64)), ids], axis=1)
        corners = exemplars.strong_corners(image, fixed, self.patch)
        if self.num_transformations is not None:
            number = integer(seed, self.num_transformations)
            seed = tf.stack([tf.cast(number, tf.int64), ids], axis=1)
        # Split once more: a number may equal the seed of the corners.
        return exemplars.transform(image, corners, split(seed, 1)[0], self.patch), ids

    def dataset(self, images, *args, **kwargs):
        number = int(images.cardinality())
        if number > self.num_images:
            raise ValueError(
                f"images are {number}, more than the num_images={self.num_images} classes of the task"
            )
        return super().dataset(images, *args, **kwargs)

    def call(self, x, training=False):
        return self.head(encoders.on_patches(self.encoder, x[:, None], training)[:, 0])
