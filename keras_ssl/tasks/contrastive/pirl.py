"""PIRL: embeds an image and its shuffled patches close to the memory of the image."""

import dataclasses

import keras
import tensorflow as tf

from keras_ssl import encoders, layers, losses
from keras_ssl.arguments import check_fraction, check_integers
from keras_ssl.ops import augment, images, patches, recipes
from keras_ssl.ops.random import integer, split, uniform
from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.contrastive import memory

TRANSFORMATIONS = ("jigsaw", "rotation")
ANGLES = (0, 90, 180, 270)
PATCH = 64 / 85  # side of a patch / side of its cell, as in the authors' code
MIN_PATCH = 4  # pixels
# For the image that is cut into patches: its crop keeps a larger part than the crop of a view.
WHOLE = recipes.Recipe(area=(0.6, 1.0), aspect=(3 / 4, 4 / 3))


@keras.saving.register_keras_serializable(package="keras_ssl")
class PIRL(PretextModel):
    """Embeds an image and its shuffled patches (or the rotated image) alike: pretext-invariant features.

    The tasks `Jigsaw` and `Rotation` predict the transformation, so their features change with it; here they
    should not change. The embeddings of the image and of the transformed image are both compared with a
    memory bank, in which a moving average of the image's embeddings is the positive and those of random other
    images are negatives. They are never compared with each other, so that a step needs no large batch
    (section 3.2).

    The patches are in random order: for nine patches, one of all 362,880 orders, not one of a fixed set as in
    `Jigsaw`. Each patch gets its own crop in its cell, flip and colors. The embeddings of the patches are
    concatenated in the random order, and mapped linearly to the embedding of the transformed image.

    Only the image's embedding is written to the bank, after both comparisons. Only images of the training set
    can be evaluated: other images would be compared with the rows of training images with the same ids.

    The loss is the softmax over the image and the drawn images, an option of the authors' code. For the
    paper's loss, noise-contrastive estimation, use `compile(loss=losses.NCE(weights=(0.5, 0.5)))`; see
    docs/contrastive.md.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D) with global average pooling, since it gets
            patches and whole images.
        num_images: int N, images in the data set; their ids are 0 to N - 1.
        transformation: "jigsaw", or "rotation" by a multiple of 90 degrees.
        grid: int, cells per row and column, from which the patches of "jigsaw" are cut.
        negatives: int, images drawn from the bank in each step; 32000 for ImageNet.
        temperature: float.
        momentum: float in [0, 1], of the bank.
        dimensions: int, of the embedding.
        weight: float in [0, 1], of the transformed image in the loss; the image has the weight 1 - weight.
        recipe: augmentation of image and patches, a Recipe or the name of one: "PIRL", or another such as
            "SIMCLR_SMALL".
        storage: "float32" or "bfloat16", of the bank.
        seed: int, of the bank.
        **kwargs: passed to keras.Model.

    Shapes:
        x: dict of `image` (B, H, W, 3) and `patches` (B, V, h, w, 3) float32 in 0..255, V = grid * grid or 1,
        and `id` (B,) int64. y: (B,) int64, the ids, which are not used. Prediction: (B, 2, 1 + negatives)
        float32 log-odds of the image and of the transformed image, see `layers.MemoryBank`.

    Raises:
        ValueError: a number is out of range, `transformation`, `recipe` or `storage` is unknown, the patches
            are too small for the encoder, or images to be rotated are not square; in `dataset`, there are
            more images than `num_images`.
        tf.errors.InvalidArgumentError: during training, an id is not in 0..N-1.

    Reference: Misra & van der Maaten, "Self-Supervised Learning of Pretext-Invariant Representations", CVPR
    2020.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1, 1))
        >>> task = kssl.tasks.PIRL(encoder, num_images=360, negatives=64)
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    weight_decay = 1e-4

    def __init__(
        self, encoder, num_images, transformation="jigsaw", grid=3, negatives=4096, temperature=0.07,
        momentum=0.5, dimensions=128, weight=0.5, recipe="PIRL", storage="float32", seed=0,
        **kwargs,
    ):  # fmt: skip
        super().__init__(encoder, **kwargs)
        check_integers(2, num_images=num_images, grid=grid)
        if transformation not in TRANSFORMATIONS:
            raise ValueError(
                f"transformation must be one of {', '.join(TRANSFORMATIONS)}, got {transformation!r}"
            )
        height, width = encoders.check_image_shape(encoder)
        recipes.find(recipe)
        self.patch = round(PATCH * (min(height, width) // grid))
        if transformation == "jigsaw":
            if self.patch < MIN_PATCH:
                raise ValueError(
                    f"grid={grid} gives patches of {self.patch} pixels, less than {MIN_PATCH}: choose a "
                    "smaller grid or larger images"
                )
            encoders.check_patches(encoder, self.patch, self.patch)
        elif height != width:
            raise ValueError(f"transformation 'rotation' needs square images, got {height}x{width}")
        self.weight = check_fraction("weight", weight)
        self.num_images, self.transformation, self.grid = num_images, transformation, grid
        self.negatives, self.temperature, self.momentum = negatives, temperature, momentum
        self.dimensions, self.recipe, self.storage, self.seed = dimensions, recipe, storage, seed
        self.bank = layers.MemoryBank(
            num_images, dimensions, negatives, temperature, momentum, storage, seed, name="bank"
        )
        views, inputs = grid * grid if transformation == "jigsaw" else 1, encoder.output_shape[-1]
        self.image_head = layers.projection(inputs, dimensions, depth=1, name="image_head")
        self.patch_head = layers.projection(inputs, dimensions, depth=1, name="patch_head")
        self.joint_head = layers.projection(views * dimensions, dimensions, 1, name="joint_head")

    def pretext(self, batch, seed):
        image, ids = batch["image"], memory.known_ids(batch, self.num_images)
        recipe, (first, second, third) = recipes.find(self.recipe), split(seed, 3)
        transform = self._shuffled if self.transformation == "jigsaw" else self._rotated
        x = {"image": augment.view(image, first, recipe), "id": ids}
        return {**x, "patches": transform(image, second, third, recipe)}, ids

    def _shuffled(self, image, seed, order, recipe):
        """Cuts (B, V, h, w, 3) patches, augments each one separately, and puts them in random order."""
        crop, place, colors = split(seed, 3)
        number = self.grid**2
        cut = patches.tiles(
            augment.view(image, crop, WHOLE), place, self.grid, self.patch, jitter=0
        )
        recipe = dataclasses.replace(recipe, area=(1.0, 1.0), aspect=(1.0, 1.0))
        # One seed per patch.
        seeds = tf.stack(split(colors, number), axis=1)
        changed = augment.view(images.fold(cut), images.fold(seeds), recipe)
        order = tf.argsort(uniform(order, number), axis=1)
        return tf.gather(images.unfold(changed, number), order, axis=1, batch_dims=1)

    def _rotated(self, image, seed, angle, recipe):
        """Augments and rotates each image: (B, 1, H, W, 3)."""
        view = augment.view(image, seed, recipe)
        turned = tf.stack([images.rotate(view, degrees) for degrees in ANGLES], axis=1)
        return tf.gather(turned, integer(angle, len(ANGLES))[:, None], axis=1, batch_dims=1)

    def call(self, x, training=False):
        image = self.image_head(self.encoder(x["image"], training=training))
        parts = self.patch_head(
            images.fold(encoders.on_patches(self.encoder, x["patches"], training))
        )
        joint = self.joint_head(tf.reshape(parts, [-1, x["patches"].shape[1] * self.dimensions]))
        both = tf.math.l2_normalize(tf.stack([image, joint], axis=1), axis=-1)
        odds = self.bank(both, x["id"], training=training)
        if training:
            self.bank.write(x["id"], both[:, 0])
        return odds

    def dataset(self, images, *args, **kwargs):
        made = super().dataset(images, *args, **kwargs)  # which checks them
        memory.check_number(self.num_images, images)
        return made

    dataset.__doc__ = PretextModel.dataset.__doc__

    def default_loss(self):
        return losses.InfoNCE(temperature=1.0, weights=(1 - self.weight, self.weight))

    def default_metrics(self):
        return [memory.BankContrast()]

    def default_optimizer(self, steps, learning_rate=0.03):
        return super().default_optimizer(steps, learning_rate)

    def preview(self, x, y, y_pred=None):
        rows = []
        for k, (image, parts) in enumerate(zip(x["image"], x["patches"], strict=True)):
            odds = ("", "") if y_pred is None else [f", log-odds {v:.1f}" for v in y_pred[k, :, 0]]
            what = "patch" if len(parts) > 1 else "rotated"
            transformed = [(part, f"{what} {i}{odds[1]}") for i, part in enumerate(parts, 1)]
            rows.append([(image, f"image{odds[0]}"), *transformed])
        return rows
