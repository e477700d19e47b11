"""Exemplar-CNN: predicts which of N seed patches a patch was transformed from."""

import keras
import tensorflow as tf

from keras_ssl import encoders
from keras_ssl.ops.random import integer, split
from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.similarity import exemplars


@keras.saving.register_keras_serializable(package="keras_ssl")
class Exemplar(PretextModel):
    """Classifies N seed patches under random transformations; each patch is a separate class.

    The features must keep what distinguishes a patch from all others, and become invariant to the
    transformations.

    The seed patch of an image is sampled once, where gradients are strong (flat patches could not be
    distinguished), and then fixed. It is transformed differently in every epoch, within the ranges of the
    paper (`keras_ssl.exemplars`). So that patches cannot be recognized by their average color, the
    transformations change contrast along the principal components, saturation, value and hue.

    The classifier has N x D weights. Beyond about ten thousand patches it dominates the training step;
    `ExemplarTriplet`, which compares patches directly, has no classifier.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D) with global average pooling, since it
            is trained on patches and used on whole images.
        num_images: int N, images in the data set, with one seed patch each; their ids are 0 to N - 1.
            16,000 in the authors' code.
        patch: int, side of a patch in pixels, or None for a third of the image as in the paper (32 of 96),
            but at least 24, or the whole image if that is smaller.
        num_transformations: int K, transformations of each seed patch (150 in the authors' code), or None for
            new ones in every epoch.
        seed: int, of the seed patches.
        noise: float in 0..255, the standard deviation of Gaussian noise on the transformed patches, in
            the units of the pixels; 0 in the paper.
        **kwargs: passed to keras.Model.

    Shapes:
        x: (B, patch, patch, 3) float32 in 0..255. y: (B,) int64, the ids. Prediction: (B, N) float32
        logits.

    Raises:
        ValueError: there are fewer than 2 images; the patch is larger than the image, or too small for the
            encoder; the encoder does not take 3 channels; `num_transformations` is below 1; `noise` is not in
            0..255; `dataset` gets more images than `num_images`.
        tf.errors.InvalidArgumentError: during training, an id is not in 0..N-1.

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

    def __init__(
        self, encoder, num_images, patch=None, num_transformations=None, seed=0, noise=0.0, **kwargs
    ):
        super().__init__(encoder, **kwargs)
        if num_images < 2:
            raise ValueError(f"num_images must be at least 2, got {num_images}")
        if num_transformations is not None and num_transformations < 1:
            raise ValueError(
                f"num_transformations must be at least 1 or None, got {num_transformations}"
            )
        exemplars.check_noise(noise)
        self.patch = exemplars.check_patch(encoder, patch)
        self.num_images, self.num_transformations = num_images, num_transformations
        self.seed, self.noise = seed, noise
        self.head = keras.layers.Dense(num_images, dtype="float32", name="head")

    def pretext(self, batch, seed):
        image, ids = batch["image"], tf.cast(batch["id"], tf.int64)
        check = tf.debugging.assert_less(
            tf.reduce_max(ids), tf.constant(self.num_images, tf.int64),
            f"the ids of the images must be below num_images, {self.num_images}",
        )  # fmt: skip
        with tf.control_dependencies([] if check is None else [check]):
            ids = tf.identity(ids)
        fixed = tf.stack([tf.fill(tf.shape(ids), tf.constant(self.seed, tf.int64)), ids], axis=1)
        corners = exemplars.strong_corners(image, fixed, self.patch)
        if self.num_transformations is not None:
            number = integer(seed, self.num_transformations)
            seed = tf.stack([tf.cast(number, tf.int64), ids], axis=1)
        # Split again, since `number` may equal the seed of the corners.
        seed = split(seed, 1)[0]
        return exemplars.transform(image, corners, seed, self.patch, self.noise), ids

    def dataset(self, images, *args, **kwargs):
        number = int(images.cardinality())
        if number > self.num_images:
            raise ValueError(
                f"images are {number}, more than the num_images={self.num_images} classes of the task"
            )
        return super().dataset(images, *args, **kwargs)

    def call(self, x, training=False):
        return self.head(encoders.on_patches(self.encoder, x[:, None], training)[:, 0])
