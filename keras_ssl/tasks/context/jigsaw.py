"""Jigsaw: predicts the permutation of the tiles of an image."""

import keras
import tensorflow as tf

from keras_ssl import encoders
from keras_ssl.ops import augment, patches
from keras_ssl.ops.random import integer, split, uniform
from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.context import puzzles
from keras_ssl.tasks.context.permutations import check_permutations
from keras_ssl.tasks.context.permutations import permutations as choose


@keras.saving.register_keras_serializable(package="keras_ssl")
class Jigsaw(PretextModel):
    """Predicts which of a set of permutations was applied to the tiles of the image.

    To order the tiles, the network has to know the parts of objects and their spatial arrangement. Each
    tile is encoded separately, and only the features are combined (a context-free network), so that the
    encoder cannot compare low-level statistics of two tiles. Other shortcuts are removed as well (section
    4.2 of the paper):

    - *Random gaps*: each tile is cropped at a random position within its cell of the grid, so that edges
      do not continue from one tile to the next.
    - *Normalized tiles*: adjacent tiles have similar brightness and contrast. Each channel of each tile is
      normalized to the same mean and standard deviation.
    - *Channel jitter and grayscale images*: a lens focuses green differently from red and blue, and the
      color fringes reveal where in the image a tile was. Each channel is shifted independently by a few
      pixels, and a fraction of the images is converted to grayscale.
    - *Random crops*, resized to the size of the image: JPEG works on blocks of 8x8 pixels, and the
      position of a tile within its block reveals where in the image it was. A random scale removes this
      relation. (The paper crops its puzzles from resized images, which has the same effect.)
    - *Many distant permutations per image*: the permutations have large Hamming distances, and each image
      gets a different one in every epoch, so that the position of a tile cannot be memorized
      (`keras_ssl.permutations`).

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D) with global average pooling, since it
            is trained on tiles and used on whole images.
        grid: 2 or 3, tiles per row and per column; 3 in the paper.
        num_permutations: int, at most the factorial of the number of tiles; by default 100 for nine
            tiles, all 24 for four.
        tile: int, side of a tile in pixels, or None for 64/75 of a cell as in the paper; a cell is the
            image's side divided by `grid`.
        jitter: int, the largest shift of a channel in pixels, or None for 2/64 of a tile as in the
            paper (0 below 32 pixels).
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
        x: (B, grid * grid, tile, tile, C) float32, in the order of the permutation. y: (B,) int32, the
        index of the permutation. Prediction: (B, N) float32 logits.

    Raises:
        ValueError: `grid` is not 2 or 3, or too fine for the image; `num_permutations` is more than there
            are, or `permutations` are invalid; a tile is larger than its cell, or too small for the
            encoder; `gray` is not in 0..1, or positive without three channels; `crop` is not in (0, 1];
            `hidden` or `tile_units` is below 1.

    Reference: Noroozi & Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw
    Puzzles", ECCV 2016.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=8, blocks=(1, 1))
        >>> task = kssl.tasks.Jigsaw(encoder, grid=2)
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    weight_decay = 5e-4  # as in the authors' code

    def __init__(
        self, encoder, grid=3, num_permutations=None, tile=None, jitter=None, normalize=True,
        gray=0.3, permutations=None, crop=0.5, hidden=512, tile_units=128, **kwargs,
    ):  # fmt: skip
        super().__init__(encoder, **kwargs)
        tile, jitter = puzzles.check_tiles(encoder, grid, tile, jitter)
        if permutations is None:
            number = {2: 24, 3: 100}[grid] if num_permutations is None else num_permutations
            permutations = choose(number, grid * grid)
        puzzles.check_gray(encoder, gray)
        augment.check_crop(crop)
        self.permutations = check_permutations(permutations, grid * grid)
        self.num_permutations = len(self.permutations)
        self.grid, self.tile, self.jitter = grid, tile, jitter
        self.normalize, self.gray, self.crop, self.hidden = normalize, gray, crop, hidden
        self.tile_units = tile_units
        self.tile_layer, self.merge_layer, self.head = puzzles.build_layers(
            tile_units, hidden, len(self.permutations), self.dtype_policy
        )

    def pretext(self, batch, seed):
        image, (crop, cut, gray, permutation) = batch["image"], split(seed, 4)
        if self.crop < 1:
            image = augment.random_crop(image, crop, self.crop)
        x = patches.tiles(image, cut, self.grid, self.tile, self.jitter)
        if self.gray:
            x = patches.gray(x, uniform(gray, 1)[:, 0] < self.gray)
        x = patches.normalize(x) if self.normalize else tf.cast(x, tf.float32)
        y = integer(permutation, len(self.permutations))
        return tf.gather(x, tf.gather(self.permutations, y), axis=1, batch_dims=1), y

    def call(self, x, training=False):
        features = self.tile_layer(encoders.on_patches(self.encoder, x, training))
        merged = tf.reshape(features, [-1, features.shape[1] * features.shape[2]])
        return self.head(self.merge_layer(merged))

    def preview(self, x, y, y_pred=None):
        return puzzles.preview(x, y, self.permutations, y_pred)
