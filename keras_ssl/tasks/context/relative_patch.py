"""Relative patch location: predicts where one patch lies relative to another."""

import keras
import tensorflow as tf

from keras_ssl import encoders
from keras_ssl.ops import augment, patches
from keras_ssl.ops.random import split, uniform
from keras_ssl.pretext import PretextModel

# The eight positions around a patch: (row, column) relative to it, and their names in previews.
OFFSETS = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
POSITIONS = (
    "upper left",
    "above",
    "upper right",
    "left",
    "right",
    "lower left",
    "below",
    "lower right",
)
COLOR_MODES = ("dropping", "projection", None)


@keras.saving.register_keras_serializable(package="keras_ssl")
class RelativePatch(PretextModel):
    """Predicts the position of a patch relative to a neighboring patch, one of eight.

    To know that an ear is above and to the left of an eye, the network has to recognize ears and eyes,
    that is, parts of objects. There are shortcuts: structures that continue from patch to patch, similar
    colors, and chromatic aberration. These measures remove them (section 3.1 of the paper):

    - *Gap*: half a patch is left out between two patches, since lines and textures that cross a common
      border would reveal the position.
    - *Jitter*: each patch is shifted independently by a few pixels, so that long lines cannot be matched
      across the gap.
    - *Normalized patches*: gradients of brightness continue across the gap; every channel of every patch
      gets the same mean and standard deviation.
    - *Color*: a lens focuses green differently from red and blue. The color fringes reveal where in the
      image a patch was, and two locations reveal the relative position. `color="dropping"` keeps one
      channel of each patch and replaces the others by weak noise; `color="projection"` removes the
      green-magenta component.
    - *Random crops*, resized to the size of the image: JPEG works on blocks of 8x8 pixels, and the
      position of a patch within its block reveals where in the image it was. A random scale removes this
      relation. (The paper randomly downsamples and upsamples its patches, for robustness to pixelation.)
    - *All pairs, at a random place*: if one patch were always the center of the image, the label would be the
      place of the other patch, which that patch often reveals by itself: sky is at the top. So each patch of
      the grid is compared with each of its neighbors, in both orders, and the grid can move by at least the
      side of a patch.

    As in the authors' code, the patches of a grid are encoded once, and all pairs of neighbors are
    classified: a grid of 3x3 patches has 40 of them. In small images nine patches are too small to show
    parts of objects: with `grid=2` there are four larger patches, in twelve pairs.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D) with global average pooling, since it
            is trained on patches and used on whole images.
        grid: int, patches per row and per column, 2 or 3.
        patch: int, side of a patch in pixels, or None for the largest that fits, with the gaps, the jitter
            and room to move by a patch (for 3: 6 of 32 pixels and 19 of 96, for 2: 8 and 26); 96 in the
            paper.
        gap: int, pixels between two patches, or None for half a patch; 48 in the paper.
        jitter: int, the largest shift of a patch in pixels, or None for 7/96 of a patch (at least 1) as
            in the paper.
        color: "dropping", "projection", or None if the images have no chromatic aberration.
        crop: float in (0, 1], the smallest fraction of the area that a random crop keeps; 1 for no crop.
        hidden: int, units of the layer that compares two patches.
        **kwargs: passed to keras.Model.

    Attributes:
        pairs: list of (first, second, position): the indices of two patches, and the index in `POSITIONS` of
            the place of the second one relative to the first.

    Shapes:
        x: (B, grid * grid, patch, patch, C) float32, in row-major order. y: (B, P) int32, the index in
        `POSITIONS` for each of the P = 12 or 40 `pairs`. Prediction: (B, P, 8) float32 logits.

    Raises:
        ValueError: `grid` is not 2 or 3; the patches do not fit into the encoder's input, can overlap, or
            are too small for the encoder; `color` is unknown, or the images do not have three channels;
            `crop` is not in (0, 1].

    Reference: Doersch, Gupta & Efros, "Unsupervised Visual Representation Learning by Context
    Prediction", ICCV 2015.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=8, blocks=(1, 1))
        >>> task = kssl.tasks.RelativePatch(encoder, color=None)
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    def __init__(
        self, encoder, grid=3, patch=None, gap=None, jitter=None, color="dropping", crop=0.5,
        hidden=512, **kwargs,
    ):  # fmt: skip
        super().__init__(encoder, **kwargs)
        height, width, channels = encoder.input_shape[1:]
        if height is None or width is None:
            raise ValueError("encoder must have an input of fixed height and width, got None")
        if grid not in (2, 3):
            raise ValueError(f"grid must be 2 or 3, got {grid!r}")
        patch, gap, jitter = choose_layout(min(height, width), grid, patch, gap, jitter)
        check_layout(height, width, grid, patch, gap, jitter)
        if color not in COLOR_MODES:
            raise ValueError(f"color must be one of {COLOR_MODES}, got {color!r}")
        if color and channels != 3:
            raise ValueError(f"color {color!r} needs 3 channels, the encoder takes {channels}")
        encoders.check_patches(encoder, patch, patch)
        augment.check_crop(crop)
        self.grid, self.patch, self.gap, self.jitter, self.color = grid, patch, gap, jitter, color
        self.crop, self.hidden, self.pairs = crop, hidden, list_pairs(grid)
        self.pair_layer = keras.layers.Dense(
            hidden, activation="relu", dtype=self.dtype_policy, name="pair_layer"
        )
        self.head = keras.layers.Dense(len(POSITIONS), dtype="float32", name="head")

    def pretext(self, batch, seed):
        image, (crop, cut, color) = batch["image"], split(seed, 3)
        if self.crop < 1:
            image = augment.random_crop(image, crop, self.crop)
        x = patches.cut(image, self._corners(cut, *image.shape[1:3]), self.patch)
        if self.color == "projection":
            x = patches.project_colors(x)
        x = patches.normalize(x)
        # After normalization, which would amplify the noise in the other channels.
        if self.color == "dropping":
            x = patches.drop_colors(x, color)
        positions = tf.constant([[position for _, _, position in self.pairs]])
        return x, tf.tile(positions, [tf.shape(image)[0], 1])

    def _corners(self, seed, height, width):
        """Draws the (B, grid * grid, 2) upper left pixels of the patches: a random grid with jitter."""
        number = self.grid * self.grid
        random = uniform(seed, 2 + number * 2)
        side = required_side(self.grid, self.patch, self.gap, self.jitter)
        free = tf.constant([height, width], tf.float32) - side + 1
        corner = self.jitter + tf.cast(random[:, None, :2] * free, tf.int32)
        shifts = tf.reshape(random[:, 2:], [-1, number, 2]) * (2 * self.jitter + 1)
        shifts = tf.cast(shifts, tf.int32) - self.jitter
        steps = tf.range(self.grid) * (self.patch + self.gap)
        grid = tf.reshape(tf.stack(tf.meshgrid(steps, steps, indexing="ij"), -1), [number, 2])
        return corner + grid + shifts

    def call(self, x, training=False):
        features = encoders.on_patches(self.encoder, x, training)
        first, second, _ = zip(*self.pairs, strict=True)
        pairs = [tf.gather(features, first, axis=1), tf.gather(features, second, axis=1)]
        return self.head(self.pair_layer(tf.concat(pairs, axis=-1)))

    def preview(self, x, y, y_pred=None):
        # Only the pairs of the patch with the most neighbors, the center of a grid of nine.
        firsts = [first for first, _, _ in self.pairs]
        center = max(firsts, key=firsts.count)
        rows = []
        for i, tiles in enumerate(x):
            captions = [""] * len(tiles)
            captions[center] = "center"
            for k, (first, second, _) in enumerate(self.pairs):
                if first == center:
                    captions[second] = f"{y[i, k]}: {POSITIONS[y[i, k]]}"
                    if y_pred is not None:
                        captions[second] += f", predicted {POSITIONS[y_pred[i, k].argmax()]}"
            rows.append(list(zip(tiles, captions, strict=True)))
        return rows


def choose_layout(side, grid, patch=None, gap=None, jitter=None):
    """Chooses the sizes of patches, gaps and jitter that are None.

    The grid of the largest patches that fit would always be at the same place. Then the content of a patch
    could reveal where it is in the image, and so in the grid. So room is left to move the grid by a patch.

    Args:
        side: int, pixels of the shorter side of the image.
        grid, patch, gap, jitter: as in `RelativePatch`.

    Returns:
        (patch, gap, jitter): int, pixels.

    Example:
        >>> choose_layout(96, grid=3)
        (19, 9, 1)
    """
    if patch is None:
        layouts = (choose_layout(side, grid, size, gap, jitter) for size in range(1, side))
        patch = max(
            (size for size, *rest in layouts if required_side(grid, size, *rest) + size <= side),
            default=1,
        )
    gap = patch // 2 if gap is None else gap
    jitter = max(1, round(7 / 96 * patch)) if jitter is None else jitter
    return patch, gap, jitter


def required_side(grid, patch, gap, jitter):
    """Returns the side in pixels of an image that holds the patches, their gaps and the jitter."""
    return grid * patch + (grid - 1) * gap + 2 * jitter


def check_layout(height, width, grid, patch, gap, jitter):
    """Checks that the patches fit into the image, and cannot overlap unless they have no gap at all.

    Args:
        height, width: int, pixels of the image.
        grid, patch, gap, jitter: int, as in `RelativePatch`.

    Raises:
        ValueError: they do not fit, or can overlap in spite of a gap.
    """
    if patch < 1 or gap < 0 or jitter < 0:
        raise ValueError(
            f"patch must be at least 1, gap and jitter at least 0, got patch {patch}, gap {gap}, "
            f"jitter {jitter} for images of {height}x{width} pixels"
        )
    needed = required_side(grid, patch, gap, jitter)
    if needed > min(height, width):
        raise ValueError(
            f"patch {patch}, gap {gap} and jitter {jitter} need {needed} pixels ({grid} patches, "
            f"{grid - 1} gaps, 2 jitters), but the encoder takes {height}x{width}"
        )
    if 0 < gap < 2 * jitter:
        raise ValueError(
            f"jitter {jitter} can move patches across the gap of {gap} pixels: it must be at most "
            "half the gap"
        )


def list_pairs(grid):
    """Lists all ordered pairs of neighboring patches, including diagonal neighbors.

    Args:
        grid: int, patches per row and per column.

    Returns:
        list of (first, second, position): row-major indices of two patches, and where the second one lies
        relative to the first, an index of `POSITIONS`.

    Example:
        >>> list_pairs(3)[:3]
        [(0, 1, 4), (0, 3, 6), (0, 4, 7)]
    """
    pairs = []
    for first in range(grid * grid):
        for position, (down, right) in enumerate(OFFSETS):
            row, column = first // grid + down, first % grid + right
            if 0 <= row < grid and 0 <= column < grid:
                pairs.append((first, row * grid + column, position))
    return pairs
