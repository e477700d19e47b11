"""Jigsaw: in which order are the tiles of the picture?"""

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
    """Predicts which of a set of permutations the tiles of the picture were put in.

    To put the tiles in order the network has to know what the parts of objects are and how they lie.
    Each tile goes through the encoder on its own, and only the features meet (a context-free network),
    so that the encoder cannot compare low-level statistics of two tiles. Further shortcuts are closed
    (section 4.2 of the paper):

    - *Random gaps*: each tile is cut at a random place within its cell of the grid, so that edges do
      not run on from one tile to the next.
    - *Normalised tiles*: neighbours have similar brightness and contrast; each channel of each tile gets
      the same mean and deviation.
    - *Channel jitter and gray pictures*: a lens focuses green elsewhere than red and blue, and the
      fringes tell where in the picture a tile was. Each channel is cut at its own place, a few pixels
      aside, and a share of the pictures is gray.
    - *Random crops*, enlarged to the size of the picture: JPEG works on blocks of 8x8 pixels, and where
      in its block a tile lies tells where in the picture. With a random scale that is no longer so. (The
      paper cuts its puzzles out of pictures that were scaled, which does the same.)
    - *Far permutations, many of them for each picture*: of a set with large Hamming distances a picture
      gets another one every epoch, so that the place of a tile cannot be learned by heart
      (`keras_ssl.permutations`).

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D) that averages over the picture: it
            is trained on the tiles and used on whole pictures.
        grid: 2 or 3, tiles in a row and in a column; 3 in the paper.
        num_permutations: int, at most the factorial of the number of tiles; 100 by default for nine
            tiles, all 24 for four.
        tile: int, pixels, or None for 64/75 of a cell as in the paper; a cell is the picture's side
            divided by `grid`.
        jitter: int, the largest move of a channel in pixels, or None for 2/64 of a tile as in the
            paper (0 below 32 pixels).
        normalize: bool, the same mean and deviation for all tiles.
        gray: float in 0..1, the share of gray pictures.
        crop: float in 0..1, the smallest share of the area that a random crop keeps; 1 for no crop.
        permutations: (N, grid * grid) integer array, which tile comes to which place, instead of the
            set of `num_permutations` with large distances.
        hidden: int, units of the layer that compares the tiles.
        **kwargs: of keras.Model.

    Shapes:
        x: (B, grid * grid, tile, tile, C) float32, in the order of the permutation. y: (B,) int32, the
        number of the permutation. Prediction: (B, N) float32 logits.

    Raises:
        ValueError: a `grid` other than 2 or 3 or too fine for the picture; more permutations than
            there are, or invalid ones; a tile larger than its cell, or one that cannot go through the
            encoder; `gray` without three channels or not in 0..1; `crop` not in 0..1.

    Reference: Noroozi & Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw
    Puzzles", ECCV 2016.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=8, blocks=(1, 1))
        >>> task = kssl.tasks.Jigsaw(encoder, grid=2)
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    def __init__(
        self, encoder, grid=3, num_permutations=None, tile=None, jitter=None, normalize=True,
        gray=0.3, permutations=None, crop=0.5, hidden=512, **kwargs,
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
        self.compare = keras.layers.Dense(
            hidden, activation="relu", dtype=self.dtype_policy, name="compare"
        )
        self.head = keras.layers.Dense(len(self.permutations), dtype="float32", name="head")

    def pretext(self, batch, seed):
        image, (crop, cut, gray, which) = batch["image"], split(seed, 4)
        if self.crop < 1:
            image = augment.random_crop(image, crop, self.crop)
        x = patches.tiles(image, cut, self.grid, self.tile, self.jitter)
        if self.gray:
            x = patches.gray(x, uniform(gray, 1)[:, 0] < self.gray)
        x = patches.normalize(x) if self.normalize else tf.cast(x, tf.float32)
        y = integer(which, len(self.permutations))
        return tf.gather(x, tf.gather(self.permutations, y), axis=1, batch_dims=1), y

    def call(self, x, training=False):
        features = encoders.on_patches(self.encoder, x, training)
        together = tf.reshape(features, [-1, features.shape[1] * features.shape[2]])
        return self.head(self.compare(together))

    def preview(self, x, y, y_pred=None):
        return puzzles.puzzles(x, y, self.permutations, y_pred)
