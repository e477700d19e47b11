"""Relative patch location: where does one patch lie beside another?"""

import keras
import tensorflow as tf

from keras_ssl import encoders
from keras_ssl.ops import augment, patches
from keras_ssl.ops.random import split, uniform
from keras_ssl.pretext import PretextModel

NAMES = (
    "upper left",
    "above",
    "upper right",
    "left",
    "right",
    "lower left",
    "below",
    "lower right",
)
SIDES = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]  # row, column
COLOR = ("dropping", "projection", None)


@keras.saving.register_keras_serializable(package="keras_ssl")
class RelativePatch(PretextModel):
    """Predicts on which of eight sides of the centre patch another patch lies.

    To know that an ear is above and left of an eye, the network has to know ears and eyes: it must
    recognise parts of objects. It could also answer from what continues from patch to patch, and from
    what the lens did to the picture. Four tricks keep it from that (section 3.1 of the paper):

    - *Gap*: between two patches half a patch is left out. Lines and textures that run across a common
      border would give the side away.
    - *Jitter*: each patch is moved by a few pixels of its own, so that long lines cannot be matched
      through the gap.
    - *Colour*: a lens focuses green elsewhere than red and blue. The fringes tell where in the picture
      a patch was, and two places tell the side. `color="dropping"` keeps one channel of each patch and
      puts faint noise in place of the others; `color="projection"` takes out the green-magenta axis.
    - *Random crops*, enlarged to the size of the picture: JPEG works on blocks of 8x8 pixels, and where
      in its block a patch lies tells where in the picture. With a random scale that is no longer so. (The
      paper scales its patches down and up at random, to be robust to pixelation.)

    The paper draws one pair a picture. Here all eight neighbours are compared with the centre at once:
    eight answers for nine patches, each of which goes through the encoder once. In small pictures nine
    patches are so small that there is nothing left to recognise. With `grid=2` there are four larger
    ones, each of which is the centre once: twelve answers.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D) that averages over the picture: it
            is trained on the patches and used on whole pictures.
        grid: 3 for a centre and its eight neighbours, 2 for four patches that are the centre in turn.
        patch: int, pixels, or None for the largest of which `grid` fit side by side with their gaps (for
            3: 7 of 32 pixels and 23 of 96, for 2: 12 and 36); 96 in the paper.
        gap: int, pixels, or None for half a patch; 48 in the paper.
        jitter: int, the largest move of a patch in pixels, or None for 7/96 of a patch (at least 1) as
            in the paper.
        color: "dropping", "projection", or None where the pictures have no fringes.
        crop: float in 0..1, the smallest share of the area that a random crop keeps; 1 for no crop.
        hidden: int, units of the layer that compares two patches.
        **kwargs: of keras.Model.

    Shapes:
        x: (B, grid * grid, patch, patch, C) float32, row by row. y: (B, P) int32, the place in `NAMES` for
        each of the P = 8 or 12 pairs of `task.pairs`. Prediction: (B, P, 8) float32 logits.

    Raises:
        ValueError: a `grid` other than 2 or 3; the patches do not fit into the encoder's picture, overlap,
            or cannot go through the encoder; an unknown `color`, or one for pictures without three
            channels; `crop` not in 0..1.

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
        side = min(height, width)

        def layout(patch):
            chosen = patch // 2 if gap is None else gap
            moved = max(1, round(7 / 96 * patch)) if jitter is None else jitter
            return chosen, moved, grid * patch + (grid - 1) * chosen + 2 * moved

        if patch is None:
            patch = max((p for p in range(1, side) if layout(p)[2] <= side), default=1)
        gap, jitter, needed = layout(patch)
        if patch < 1 or gap < 0 or jitter < 0:
            raise ValueError(
                f"patch must be at least 1, gap and jitter at least 0, got patch {patch}, gap {gap}, "
                f"jitter {jitter} for pictures of {height}x{width} pixels"
            )
        if needed > side:
            raise ValueError(
                f"patch {patch}, gap {gap} and jitter {jitter} need {needed} pixels ({grid} patches, "
                f"{grid - 1} gaps, 2 jitters), but the encoder takes {height}x{width}"
            )
        if 0 < gap < 2 * jitter:
            raise ValueError(
                f"jitter {jitter} can move patches over the gap of {gap} pixels: it must be at most "
                "half the gap"
            )
        if color not in COLOR:
            raise ValueError(f"color must be one of {COLOR}, got {color!r}")
        if color and channels != 3:
            raise ValueError(f"color {color!r} needs 3 channels, the encoder takes {channels}")
        encoders.check_patches(encoder, patch, patch)
        augment.check_crop(crop)
        self.grid, self.patch, self.gap, self.jitter, self.color = grid, patch, gap, jitter, color
        places = range(grid * grid)
        self.pairs = []  # (centre, other, side of the other)
        for centre in [4] if grid == 3 else places:
            for other in places:
                side = (other // grid - centre // grid, other % grid - centre % grid)
                if other != centre:
                    self.pairs.append((centre, other, SIDES.index(side)))
        self.crop, self.hidden = crop, hidden
        self.compare = keras.layers.Dense(
            hidden, activation="relu", dtype=self.dtype_policy, name="compare"
        )
        self.head = keras.layers.Dense(8, dtype="float32", name="head")

    def pretext(self, batch, seed):
        image, (crop, place, color) = batch["image"], split(seed, 3)
        if self.crop < 1:
            image = augment.random_crop(image, crop, self.crop)
        number = self.grid * self.grid
        drawn = uniform(place, 2 + number * 2)
        span = self.grid * self.patch + (self.grid - 1) * self.gap
        height, width = image.shape[1:3]
        free = tf.constant([height, width], tf.float32) - span - 2 * self.jitter + 1
        place = self.jitter + tf.cast(drawn[:, None, :2] * free, tf.int32)
        moves = tf.reshape(drawn[:, 2:], [-1, number, 2]) * (2 * self.jitter + 1)
        moves = tf.cast(moves, tf.int32) - self.jitter
        steps = tf.range(self.grid) * (self.patch + self.gap)
        grid = tf.reshape(tf.stack(tf.meshgrid(steps, steps, indexing="ij"), -1), [number, 2])
        x = tf.cast(patches.cut(image, place + grid + moves, self.patch), tf.float32)
        if self.color == "projection":
            x = patches.project_colors(x)
        elif self.color == "dropping":
            x = patches.drop_colors(x, color)
        sides = tf.constant([[side for _, _, side in self.pairs]])
        return x, tf.tile(sides, [tf.shape(image)[0], 1])

    def call(self, x, training=False):
        features = encoders.on_patches(self.encoder, x, training)
        centres, others, _ = zip(*self.pairs, strict=True)
        pairs = [tf.gather(features, centres, axis=1), tf.gather(features, others, axis=1)]
        return self.head(self.compare(tf.concat(pairs, axis=-1)))

    def preview(self, x, y, y_pred=None):
        rows = []
        for i, tiles in enumerate(x):
            captions = [""] * len(tiles)  # as the first centre sees them
            for k, (centre, other, _) in enumerate(self.pairs):
                if centre == self.pairs[0][0]:
                    captions[other] = f"{y[i, k]}: {NAMES[y[i, k]]}"
                    captions[centre] = "centre"
                    if y_pred is not None:
                        captions[other] += f", predicted {NAMES[y_pred[i, k].argmax()]}"
            rows.append(list(zip(tiles, captions, strict=True)))
        return rows
