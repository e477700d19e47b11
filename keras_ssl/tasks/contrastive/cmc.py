"""CMC: embeds the lightness and the colors of an image alike."""

import contextlib
import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_ssl import encoders, layers, losses
from keras_ssl.arguments import check_integer, check_integers
from keras_ssl.ops import augment, lab, recipes
from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.contrastive import memory

VIEWS = ("lightness", "colors")


@keras.saving.register_keras_serializable(package="keras_ssl")
class CMC(PretextModel):
    """Embeds two views of an image, its lightness and its colors, closer to each other than to other images.

    Both views share the content of the image; noise and color casts are in only one of them. The views are
    the channels L and ab of CIE Lab. Each has a network of half the width, and both together are the encoder:
    their features are concatenated.

    Every view is compared with a memory bank of the *other* view, in which the embedding of the same image is
    the positive and the embeddings of random other images are negatives.

    The loss is the softmax over the image and the drawn images, an option of the authors' code. For the
    paper's loss, noise-contrastive estimation, use `compile(loss=losses.NCE(weights=(1, 1)))`; see
    docs/contrastive.md.

    Only images of the training set can be evaluated: other images would be compared with the rows of training
    images with the same ids.

    Augmentation is a random crop and a flip, before the image is split into its views. Colors are not
    changed: grayscale would erase a view.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D) of two halves, as built by
            `encoders.color_halves`.
        num_images: int N, images in the data set; their ids are 0 to N - 1.
        negatives: int, images drawn from the banks in each step; 16384 in the paper.
        temperature: float.
        momentum: float in [0, 1], of the banks.
        dimensions: int, of the embeddings.
        recipe: augmentation of the image, a Recipe or the name of one, without grayscale.
        storage: "float32" or "bfloat16", of the banks.
        seed: int, of the banks.
        **kwargs: passed to keras.Model.

    Shapes:
        x: dict of `image` (B, H, W, 3) float32 in 0..255 and `id` (B,) int64. y: (B,) int64, the ids, which
        are not used. Prediction: (B, 2, 1 + negatives) float32 log-odds of lightness and of colors, see
        `layers.MemoryBank`.

    Raises:
        ValueError: the encoder does not have two halves, a number is out of range, `recipe` is unknown or
            converts to grayscale, `storage` is unknown; in `dataset`, there are more images than
            `num_images`.
        tf.errors.InvalidArgumentError: during training, an id is not in 0..N-1.

    Warns:
        UserWarning: the first images of a dataset have no colors.

    Reference: Tian, Krishnan & Isola, "Contrastive Multiview Coding", ECCV 2020.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.color_halves((32, 32, 3), width=4, blocks=(1, 1))
        >>> task = kssl.tasks.CMC(encoder, num_images=360, negatives=64)
        >>> task.compile("adam")
        >>> pixels = np.random.default_rng(0).integers(0, 256, (360, 32, 32, 3), np.uint8)
        >>> images = kssl.data.from_array(pixels)  # in color, other than the digits
        >>> history = task.fit(task.dataset(images, batch_size=60), verbose=0)
    """

    architecture = staticmethod(encoders.color_halves)
    weight_decay = 1e-4

    def __init__(
        self, encoder, num_images, negatives=4096, temperature=0.07, momentum=0.5, dimensions=128,
        recipe="CMC", storage="float32", seed=0, **kwargs,
    ):  # fmt: skip
        super().__init__(encoder, **kwargs)
        check_integers(2, num_images=num_images)
        check_integer("seed", seed, 0)
        if recipes.find(recipe).gray:
            raise ValueError(
                f"recipe must have gray=0, since a gray image has no colors to compare, got {recipe!r}"
            )
        encoders.check_halves(encoder)
        self.num_images, self.negatives, self.temperature = num_images, negatives, temperature
        self.momentum, self.dimensions = momentum, dimensions
        self.recipe, self.storage, self.seed = recipe, storage, seed
        half = encoder.output_shape[-1] // 2
        self.heads = [layers.projection(half, dimensions, 1, name=f"{view}_head") for view in VIEWS]
        self.banks = [
            layers.MemoryBank(
                num_images,
                dimensions,
                negatives,
                temperature,
                momentum,
                storage,
                2 * seed + k,
                name=f"{view}_bank",
            )
            for k, view in enumerate(VIEWS)
        ]

    def pretext(self, batch, seed):
        ids = memory.known_ids(batch, self.num_images)
        return {
            "image": augment.view(batch["image"], seed, recipes.find(self.recipe)),
            "id": ids,
        }, ids

    def call(self, x, training=False):
        halves = tf.split(self.encoder(x["image"], training=training), 2, axis=-1)
        embeddings = [
            tf.math.l2_normalize(head(half), axis=-1)
            for head, half in zip(self.heads, halves, strict=True)
        ]
        # Each view is scored against the bank of the other view.
        odds = [
            bank(query[:, None], x["id"], training=training)
            for bank, query in zip(self.banks[::-1], embeddings, strict=True)
        ]
        if training:
            for bank, embedding in zip(self.banks, embeddings, strict=True):
                bank.write(x["id"], embedding)
        return tf.concat(odds, axis=1)

    def dataset(self, images, *args, **kwargs):
        made = super().dataset(images, *args, **kwargs)  # which checks them
        memory.check_number(self.num_images, images)
        with contextlib.suppress(tf.errors.OpError):  # `made` replaces what cannot be read
            few = next(images.batch(32).as_numpy_iterator())["image"]
            if not np.ptp(few, axis=-1).any():
                warnings.warn(
                    "images have no colors, or the first ones do not: one of the two views is empty, and "
                    "its half of the encoder will not learn anything",
                    stacklevel=2,
                )
        return made

    dataset.__doc__ = PretextModel.dataset.__doc__

    def default_loss(self):
        return losses.InfoNCE(temperature=1.0, weights=(1.0, 1.0))

    def default_metrics(self):
        return [memory.BankContrast()]

    def default_optimizer(self, steps, learning_rate=0.03):
        return super().default_optimizer(steps, learning_rate)

    def preview(self, x, y, y_pred=None):
        rows = []
        for k, views in enumerate(zip(*lab.lightness_and_colors(x["image"]), strict=True)):
            odds = ["", ""] if y_pred is None else [f", log-odds {v:.1f}" for v in y_pred[k, :, 0]]
            rows.append([(v, c + o) for v, c, o in zip(views, VIEWS, odds, strict=True)])
        return rows
