"""Jigsaw++: predicts the permutation of tiles, some of which come from another image."""

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
    """Predicts the permutation of the tiles of an image, some of which are from another image.

    The network has to find out which tiles do not belong to the image, by their content, and to order the
    others without them. That is harder than `Jigsaw`, and low-level statistics help less (section 4.1 of
    the paper):

    - *Replaced tiles*: up to `max_replaced` tiles come from another image of the batch. The permutation
      must be determined by the other tiles. Two permutations that differ in at most `max_replaced`
      positions could not be distinguished, so the set has a larger minimum Hamming distance.
    - *Grayscale images*, 70 % of all: they have less chromatic aberration, and replaced tiles cannot be
      detected by color alone.
    - *Random gaps, normalized tiles, channel jitter, random crops*: as in `Jigsaw`, against continuing
      edges, similar brightness and contrast, chromatic aberration, and JPEG's 8x8 blocks.

    The second part of the paper is *knowledge transfer*: the features of the trained encoder are
    clustered, and a new encoder learns to predict the clusters. For this, train a `DeepCluster` task with
    `callbacks.Relabel(images, when="once", teacher=task.encoder)`.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D) with global average pooling, since it
            is trained on tiles and used on whole images.
        grid: 2 or 3, tiles per row and per column; 3 in the paper.
        num_permutations: int; by default 701 for nine tiles as in the paper, all 24 for four.
        max_replaced: int, maximum number of replaced tiles, which is drawn from 0 to this number; by default
            2 of nine as in the paper, 1 of four.
        tile: int, side of a tile in pixels, or None for 64/75 of a cell; a cell is the image's side
            divided by `grid`.
        jitter: int, the largest shift of a channel in pixels, or None for 2/64 of a tile (0 below 32
            pixels).
        normalize: bool, whether to normalize each channel of each tile.
        gray: float in 0..1, the fraction of images that are converted to grayscale.
        crop: float in (0, 1], the smallest fraction of the area that a random crop keeps; 1 for no crop.
        permutations: (N, grid * grid) integer array, the tile at each position, instead of
            `num_permutations` with large distances.
        hidden: int, units of the layer that combines the tiles.
        tile_units: int, units of the layer that each tile's features pass through first, with the same
            weights for all tiles; by default a quarter of the default of `hidden`, as in the authors' code
            (1,024 and 4,096).
        **kwargs: passed to keras.Model.

    Shapes:
        x: (B, grid * grid, tile, tile, 3) float32, in the order of the permutation. y: (B,) int32, the
        index of the permutation. Prediction: (B, N) float32 logits. In a batch of a single image no tile
        is replaced.

    Raises:
        ValueError: `grid` is not 2 or 3, or too fine for the image; the permutations are invalid, too
            many, or too similar for `max_replaced`; `max_replaced` is below 0 or not below the number of
            tiles; a tile is larger than its cell, or too small for the encoder; `gray` is not in 0..1, or
            positive without three channels; `crop` is not in (0, 1]; `hidden` or `tile_units` is below 1.

    Reference: Noroozi, Vinjimoor, Favaro & Pirsiavash, "Boosting Self-Supervised Learning via Knowledge
    Transfer", CVPR 2018.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=8, blocks=(1, 1))
        >>> task = kssl.tasks.JigsawPlus(encoder, grid=2)
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    weight_decay = 5e-4  # as in the authors' code
    whole_batches = True  # replaced tiles come from other images of the batch

    def __init__(
        self, encoder, grid=3, num_permutations=None, max_replaced=None, tile=None, jitter=None,
        normalize=True, gray=0.7, permutations=None, crop=0.5, hidden=512, tile_units=128, **kwargs,
    ):  # fmt: skip
        super().__init__(encoder, **kwargs)
        tile, jitter = puzzles.check_tiles(encoder, grid, tile, jitter)
        if max_replaced is None:
            max_replaced = {2: 1, 3: 2}[grid]
        if not 0 <= max_replaced < grid * grid:
            raise ValueError(
                f"max_replaced must be in 0..{grid * grid - 1}, since not all tiles can be replaced, got "
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
                f"{closest}, or the label is ambiguous, got {max_replaced}: use fewer than "
                f"{len(self.permutations)} permutations"
            )
        puzzles.check_gray(encoder, gray)
        augment.check_crop(crop)
        self.grid, self.max_replaced, self.tile, self.jitter = grid, max_replaced, tile, jitter
        self.normalize, self.gray, self.crop, self.hidden = normalize, gray, crop, hidden
        self.tile_units = tile_units
        self.tile_layer, self.merge_layer, self.head = puzzles.build_layers(
            tile_units, hidden, len(self.permutations), self.dtype_policy
        )

    def pretext(self, batch, seed):
        image = batch["image"]
        crop, cut, gray, permutation, other, mixed, number, order = split(seed, 8)
        if self.crop < 1:
            image = augment.random_crop(image, crop, self.crop)
        x = patches.tiles(image, cut, self.grid, self.tile, self.jitter)
        tiles, batch_size = self.grid * self.grid, tf.shape(x)[0]

        step = 1 + integer(other, tf.maximum(batch_size - 1, 1))
        others = tf.gather(x, (tf.range(batch_size) + step) % batch_size)  # of another image
        others = tf.gather(others, tf.argsort(uniform(mixed, tiles)), axis=1, batch_dims=1)
        rank = tf.argsort(tf.argsort(uniform(order, tiles)))  # a random order of the tiles
        replaced = rank < integer(number, self.max_replaced + 1)[:, None]
        replaced &= batch_size > 1
        x = tf.where(replaced[..., None, None, None], others, x)

        # Replaced tiles become gray together with the image; otherwise their color would reveal them.
        x = tf.cast(x, tf.float32)
        if self.gray:
            x = patches.gray(x, uniform(gray, 1)[:, 0] < self.gray)
        x = patches.normalize(x) if self.normalize else x
        y = integer(permutation, len(self.permutations))
        return tf.gather(x, tf.gather(self.permutations, y), axis=1, batch_dims=1), y

    def call(self, x, training=False):
        features = self.tile_layer(encoders.on_patches(self.encoder, x, training))
        merged = tf.reshape(features, [-1, features.shape[1] * features.shape[2]])
        return self.head(self.merge_layer(merged))

    def preview(self, x, y, y_pred=None):
        return puzzles.preview(x, y, self.permutations, y_pred)
