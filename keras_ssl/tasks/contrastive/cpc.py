"""CPC: predicts the patches below from the rows of patches above them."""

import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_ssl import encoders, layers, losses, metrics
from keras_ssl.arguments import check_integers
from keras_ssl.encoders.grid import choose_grid
from keras_ssl.losses.local import predicted_scores
from keras_ssl.ops import augment, patches
from keras_ssl.ops.random import split, uniform
from keras_ssl.pretext import PretextModel
from keras_ssl.training import optimizers

COLOR_MODES = ("dropping", "gray", None)
MOST_STEPS = 5  # maximum of the default; as in the paper
SCALE = 0.1  # of predictions: large scores at the start would only make the loss large


@keras.saving.register_keras_serializable(package="keras_ssl")
class CPC(PretextModel):
    """Predicts the features of patches from the features of the rows of patches above them.

    The image is cut into a grid of overlapping patches, and the encoder computes the features of each. A
    masked convolutional network summarizes all rows down to row r in a context for each column. From this
    context the features of the patches k rows below are predicted, and each predicted patch has to be found
    among all patches of all images of the batch. Over a distance, it is possible to predict what the parts of
    an object have in common, but not their texture. There are shortcuts:

    - *Batch normalization* in the encoder makes each patch depend on all others, including those to be
      predicted (version 2). `encoders.patch_grid` has layer normalization; an encoder with batch
      normalization gets a warning.
    - *Overlap*: the next row shares pixels with the context. So `ignore` rows are left out.
    - *Color* continues from patch to patch. `color="dropping"` keeps one random channel of each patch, as in
      version 2; "gray" converts all patches, as in version 1.
    - *Lines and textures* that continue across patches: each patch is cropped at random by `jitter` pixels.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D) that was built by `encoders.patch_grid`:
            the features of an image are the mean of the features of its patches, as in the papers. Any other
            encoder with global average pooling and without batch normalization is trained on patches, too,
            but computes features of whole images, which it has never seen.
        patch, stride: int, side of a patch in pixels, and pixels from patch to patch, or None for the values
            of the encoder, or else the defaults of `patch_grid`.
        ignore: int, rows below the context that are not predicted, or None for all rows that share pixels
            with its last row; 1 for an overlap of one half.
        steps: int, rows that are predicted after the ignored ones, or None for all remaining rows, but at
            most 5.
        blocks: int, residual blocks of the context network, each of which sees one more row above and one
            more column on both sides.
        hidden: int, channels in its blocks; the paper's 256 are for features of 4,096 numbers.
        dimensions: int, of the embeddings that are compared.
        jitter: int, pixels by which the side of a patch is cropped at random, or None for a sixteenth
            (at least 1), as in version 1.
        color: "dropping", "gray", or None to keep colors.
        crop: float in (0, 1], the smallest fraction of the area that a random crop keeps; the whole image is
            mirrored at random, too.
        **kwargs: passed to keras.Model.

    Attributes:
        grid: (int, int), rows and columns of patches.

    Shapes:
        x: (B, rows * columns, side, side, C) float32, patches in row-major order, with side = patch - jitter.
        y: (B,) int64, the ids, which are not used. Prediction: (B, 1 + steps, rows, columns, dimensions)
        float32: the embedding of each patch, then its predictions from ignore + 1, ignore + 2, ... rows
        above, which are 0 in the first rows.

    Raises:
        ValueError: a number is out of range; the patches do not fit into the image, are too small for the
            encoder, or give too few rows for the steps; `color` is unknown, or the images do not have three
            channels; `crop` is not in (0, 1].

    Warns:
        UserWarning: the encoder has batch normalization, or was built for patches of another size.

    Reference: van den Oord, Li & Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018
    (version 1); Hénaff et al., "Data-Efficient Image Recognition with Contrastive Predictive Coding", ICML
    2020 (version 2).

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.patch_grid((32, 32, 3), width=4, blocks=(1,))
        >>> task = kssl.tasks.CPC(encoder, hidden=16)
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    architecture = staticmethod(encoders.patch_grid)

    def __init__(
        self, encoder, patch=None, stride=None, ignore=None, steps=None, blocks=5, hidden=256,
        dimensions=64, jitter=None, color="dropping", crop=0.7, **kwargs,
    ):  # fmt: skip
        super().__init__(encoder, **kwargs)
        height, width, channels = encoder.input_shape[1:]
        if height is None or width is None:
            raise ValueError("encoder must have an input of fixed height and width, got None")
        grid = encoders.grid_of(encoder)
        if grid is not None:
            patch = grid.patch if patch is None else patch
            stride = grid.stride if stride is None else stride
        patch, stride, ignore, jitter = choose_layout(
            min(height, width), patch, stride, ignore, jitter
        )
        if grid is not None and patch != grid.patch:
            warnings.warn(
                f"patch is {patch}, but features are computed of patches of {grid.patch} pixels: build the "
                f"encoder with encoders.patch_grid(..., patch={patch})",
                stacklevel=2,
            )
        check_integers(1, blocks=blocks, hidden=hidden, dimensions=dimensions)
        if color not in COLOR_MODES:
            raise ValueError(f"color must be one of {COLOR_MODES}, got {color!r}")
        if color and channels != 3:
            raise ValueError(f"color {color!r} needs 3 channels, the encoder takes {channels}")
        augment.check_crop(crop)
        self.grid = layers.PatchGrid(patch, stride).grid(encoder.input_shape)
        self.steps = choose_steps(self.grid[0], ignore, steps)
        self.patch_encoder = encoders.patch_part(encoder)
        encoders.check_patches(self.patch_encoder, patch - jitter, patch - jitter)
        encoders.warn_of_batch_normalization(encoder, "patch")
        self.patch, self.stride, self.ignore, self.jitter = patch, stride, ignore, jitter
        self.blocks, self.hidden, self.dimensions = blocks, hidden, dimensions
        self.color, self.crop = color, crop
        self.context = layers.causal_rows(self.grid, encoder.output_shape[-1], hidden, blocks)
        # One linear map for each step: W_k of the paper, applied to a projection of the features (version 2).
        self.target = _linear(dimensions, "target")
        self.predictors = [_linear(dimensions, f"predictor{k + 1}") for k in range(self.steps)]

    def pretext(self, batch, seed):
        image, (crop, cut, color) = batch["image"], split(seed, 3)
        if self.crop < 1:
            image = augment.random_crop(image, crop, self.crop)
        else:
            image = augment.random_shift(image, crop, 0, flip=True)
        x = patches.cut(image, self._corners(cut), self.patch - self.jitter)
        if self.color == "dropping":
            x = patches.drop_colors(x, color)
        if self.color == "gray":
            x = patches.gray(x, tf.ones(tf.shape(x)[0], tf.bool))
        return tf.cast(x, tf.float32), batch["id"]

    def _corners(self, seed):
        """Draws the (B, rows * columns, 2) upper left pixels of the patches, each inside its cell."""
        steps = [tf.range(number) * self.stride for number in self.grid]
        cells = tf.reshape(tf.stack(tf.meshgrid(*steps, indexing="ij"), axis=-1), [-1, 2])
        random = uniform(seed, 2 * self.grid[0] * self.grid[1])
        offsets = tf.cast(random * (self.jitter + 1), tf.int32)
        return cells + tf.reshape(offsets, [-1, *cells.shape])

    def call(self, x, training=False):
        features = encoders.on_patches(self.patch_encoder, x, training)
        features = tf.reshape(features, [-1, *self.grid, features.shape[-1]])
        context = self.context(features, training=training)
        slots = [self.target(features)]
        for below, predictor in enumerate(self.predictors, self.ignore + 1):
            predicted = SCALE * predictor(context[:, :-below])
            slots.append(tf.pad(predicted, [[0, 0], [below, 0], [0, 0], [0, 0]]))
        return tf.stack(slots, axis=1)

    def default_loss(self):
        return losses.PredictiveCoding(self.ignore + 1)

    def default_metrics(self):
        return [metrics.FoundPositions(self.ignore + 1)]

    def default_optimizer(self, steps, learning_rate=2e-4):
        return optimizers.adam_cosine(learning_rate, steps)

    def preview(self, x, y, y_pred=None):
        # The rows from which the last row is predicted at the shortest distance, and the last row.
        (rows, columns), first = self.grid, self.ignore + 1
        found = [""] * len(x)
        if y_pred is not None:
            scores, label = next(predicted_scores(tf.constant(y_pred), first))
            right = np.argmax(scores, axis=-1) == label.numpy()
            found = [f", {n} of {columns} found" for n in right[:, -columns:].sum(axis=1)]
        # A white line between patches.
        x = np.pad(x, [(0, 0), (0, 0), (0, 1), (0, 1), (0, 0)], constant_values=255)
        side, channels = x.shape[-2:]
        x = x.reshape(len(x), rows, columns, side, side, channels).swapaxes(3, 2)
        x = x.reshape(len(x), rows * side, columns * side, channels)
        above, below = x.copy(), x.copy()
        above[:, (rows - first) * side :] = below[:, : (rows - 1) * side] = 255
        captions = [f"to predict{text}" for text in found]
        return [
            [(top, "context"), (bottom, caption)]
            for top, bottom, caption in zip(above, below, captions, strict=True)
        ]


def choose_layout(side, patch=None, stride=None, ignore=None, jitter=None):
    """Chooses the numbers of `CPC` that are None, and checks those that are given.

    Args:
        side: int, pixels of the shorter side of the image.
        patch, stride, ignore, jitter: as in `CPC`.

    Returns:
        (patch, stride, ignore, jitter): int.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> choose_layout(256)
        (64, 32, 1, 4)
    """
    patch, stride = choose_grid(side, patch, stride)
    # The first row whose patches share no pixels with the patches of the context's last row.
    ignore = -(-patch // stride) - 1 if ignore is None else ignore
    jitter = min(max(1, round(patch / 16)), patch - 1) if jitter is None else jitter
    check_integers(0, ignore=ignore, jitter=jitter)
    if jitter >= patch:
        raise ValueError(f"jitter must be less than patch={patch}, got {jitter}")
    return patch, stride, ignore, jitter


def choose_steps(rows, ignore, steps=None):
    """Chooses the number of predicted rows if it is None, and checks it.

    Args:
        rows: int, of the grid.
        ignore, steps: as in `CPC`.

    Returns:
        int.

    Raises:
        ValueError: the grid has too few rows.

    Example:
        >>> choose_steps(7, ignore=1)
        5
    """
    most = rows - 1 - ignore
    steps = max(1, min(most, MOST_STEPS)) if steps is None else steps
    check_integers(1, steps=steps)
    if steps > most:
        raise ValueError(
            f"{rows} rows of patches are too few for ignore={ignore} and steps={steps}, which need "
            f"{1 + ignore + steps}: use a smaller patch or stride, or fewer steps"
        )
    return steps


def _linear(dimensions, name):
    return keras.layers.Conv2D(dimensions, 1, use_bias=False, dtype="float32", name=name)
