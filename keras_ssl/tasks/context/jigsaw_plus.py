"""Jigsaw++: in which order are the tiles, some of which belong to another picture?"""

import keras
import tensorflow as tf

from keras_ssl import encoders
from keras_ssl.ops import augment, patches
from keras_ssl.ops.random import integer, split, uniform
from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.context import puzzles
from keras_ssl.tasks.context.permutations import check_permutations, describe
from keras_ssl.tasks.context.permutations import permutations as choose


@keras.saving.register_keras_serializable(package="keras_ssl")
class JigsawPlus(PretextModel):
    """Predicts which permutation the tiles were put in, though some were replaced by a stranger's.

    The network must find out which tiles do not belong to the picture, by what they show, and put the
    others in order without them. That is harder than `Jigsaw`, and low-level statistics help less
    (section 4.1 of the paper):

    - *Replaced tiles*: up to `max_replaced` tiles come from another picture of the batch. The
      permutation must be known without them: two permutations that differ in no more than
      `max_replaced` places could not be told apart, so the set has a larger minimum Hamming distance.
    - *Gray pictures*, 70 % of all: with less colour there is less of chromatic aberration, and nobody
      tells the stranger by its colour alone.
    - *Random gaps, normalised tiles, channel jitter, random crops*: as in `Jigsaw`, against edges that run
      on, similar brightness and contrast of neighbours, chromatic aberration, and JPEG's 8x8 blocks.

    The paper goes on to *knowledge transfer*: the features of the trained encoder are clustered, and a
    fresh encoder learns to predict the clusters. `callbacks.Relabel(images, when="once",
    teacher=task.encoder)` with a `DeepCluster` task does that.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D) that averages over the picture: it
            is trained on the tiles and used on whole pictures.
        grid: 2 or 3, tiles in a row and in a column; 3 in the paper.
        num_permutations: int; by default 701 for nine tiles as in the paper, all 24 for four.
        max_replaced: int, the number of replaced tiles is drawn from 0 to this; by default 2 of nine as
            in the paper, 1 of four.
        tile: int, pixels, or None for 64/75 of a cell; a cell is the picture's side divided by `grid`.
        jitter: int, the largest move of a channel in pixels, or None for 2/64 of a tile (0 below 32).
        normalize: bool, the same mean and deviation for all tiles.
        gray: float in 0..1, the share of gray pictures.
        crop: float in 0..1, the smallest share of the area that a random crop keeps; 1 for no crop.
        permutations: (N, grid * grid) integer array, which tile comes to which place, instead of the
            set of `num_permutations`.
        hidden: int, units of the layer that compares the tiles.
        **kwargs: of keras.Model.

    Shapes:
        x: (B, grid * grid, tile, tile, 3) float32, in the order of the permutation. y: (B,) int32, the
        number of the permutation. Prediction: (B, N) float32 logits. A batch of a single picture has no
        stranger: none of its tiles is replaced.

    Raises:
        ValueError: a `grid` other than 2 or 3 or too fine for the picture; permutations that are
            invalid, too many, or too close for `max_replaced`; `max_replaced` below 0 or not below the
            number of tiles; a tile larger than its cell, or one that cannot go through the encoder;
            `gray` without three channels or not in 0..1; `crop` not in 0..1.

    Reference: Noroozi, Vinjimoor, Favaro & Pirsiavash, "Boosting Self-Supervised Learning via Knowledge
    Transfer", CVPR 2018.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=8, blocks=(1, 1))
        >>> task = kssl.tasks.JigsawPlus(encoder, grid=2)
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    whole_batches = True  # strangers come from the batch

    def __init__(
        self, encoder, grid=3, num_permutations=None, max_replaced=None, tile=None, jitter=None,
        normalize=True, gray=0.7, permutations=None, crop=0.5, hidden=512, **kwargs,
    ):  # fmt: skip
        super().__init__(encoder, **kwargs)
        tile, jitter = puzzles.check_tiles(encoder, grid, tile, jitter)
        if max_replaced is None:
            max_replaced = {2: 1, 3: 2}[grid]
        if not 0 <= max_replaced < grid * grid:
            raise ValueError(
                f"max_replaced must be in 0..{grid * grid - 1}, below the number of tiles, got "
                f"{max_replaced!r}"
            )
        if permutations is None:
            number = {2: 24, 3: 701}[grid] if num_permutations is None else num_permutations
            permutations = choose(number, grid * grid)
        self.permutations = check_permutations(permutations, grid * grid)
        self.num_permutations = len(self.permutations)
        closest = describe(self.permutations)["minimum"]
        if len(self.permutations) > 1 and closest <= max_replaced:
            raise ValueError(
                f"max_replaced must be below the minimum Hamming distance of the permutations, "
                f"{closest}, or the answer is not unique; got {max_replaced}: take fewer permutations "
                f"than {len(self.permutations)}"
            )
        puzzles.check_gray(encoder, gray)
        augment.check_crop(crop)
        self.grid, self.max_replaced, self.tile, self.jitter = grid, max_replaced, tile, jitter
        self.normalize, self.gray, self.crop, self.hidden = normalize, gray, crop, hidden
        self.compare = keras.layers.Dense(
            hidden, activation="relu", dtype=self.dtype_policy, name="compare"
        )
        self.head = keras.layers.Dense(len(self.permutations), dtype="float32", name="head")

    def pretext(self, batch, seed):
        image = batch["image"]
        crop, cut, gray, which, other, mixed, number, order = split(seed, 8)
        if self.crop < 1:
            image = augment.random_crop(image, crop, self.crop)
        x = patches.tiles(image, cut, self.grid, self.tile, self.jitter)
        tiles, batch_size = self.grid * self.grid, tf.shape(x)[0]

        step = 1 + integer(other, tf.maximum(batch_size - 1, 1))
        stranger = tf.gather(x, (tf.range(batch_size) + step) % batch_size)
        stranger = tf.gather(stranger, tf.argsort(uniform(mixed, tiles)), axis=1, batch_dims=1)
        rank = tf.argsort(tf.argsort(uniform(order, tiles)))  # a random order of the tiles
        replaced = rank < integer(number, self.max_replaced + 1)[:, None]
        replaced &= batch_size > 1
        x = tf.where(replaced[..., None, None, None], stranger, x)

        # The strangers become gray together with the picture, or their colour would betray them.
        x = tf.cast(x, tf.float32)
        if self.gray:
            x = patches.gray(x, uniform(gray, 1)[:, 0] < self.gray)
        x = patches.normalize(x) if self.normalize else x
        y = integer(which, len(self.permutations))
        return tf.gather(x, tf.gather(self.permutations, y), axis=1, batch_dims=1), y

    def call(self, x, training=False):
        features = encoders.on_patches(self.encoder, x, training)
        together = tf.reshape(features, [-1, features.shape[1] * features.shape[2]])
        return self.head(self.compare(together))

    def preview(self, x, y, y_pred=None):
        return puzzles.puzzles(x, y, self.permutations, y_pred)
