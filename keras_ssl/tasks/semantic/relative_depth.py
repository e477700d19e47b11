"""Relative depth: predicts which pixels are farther, as revealed by the motion of the camera."""

import keras
import tensorflow as tf

from keras_ssl import data, encoders, layers, losses, metrics, plotting
from keras_ssl.arguments import check_fraction, check_integer
from keras_ssl.ops import augment
from keras_ssl.ops.random import split, uniform
from keras_ssl.pretext import PretextModel
from keras_ssl.training import optimizers


def read_clips(folder, size):
    """Reads clips of two frames."""
    return data.from_rgbd(folder, size, frames=2)


@keras.saving.register_keras_serializable(package="keras_ssl")
class RelativeDepth(PretextModel):
    """Predicts the order of the depths of an image's pixels, which the motion to the next frame reveals.

    When the camera moves, near things move faster across the image than far things.
    `data.with_relative_depth` computes the labels from that motion (its file, `parallax.py` and
    `camera_motion.py` contain this half of the method). The network sees only one frame, so it has to
    recognize the ground and its texture, what things are and how large they are, and which of them are in
    front of others.

    Motion determines depth only up to its scale, which differs from frame to frame with the speed of the
    camera. So the label of a pixel is the percentile of its depth in the image (section 3), and the network
    predicts a number for each pixel, of which only the order counts: in each of `pairs` random pairs of
    pixels per image, the pixel farther away must have the larger number. Pairs are drawn among the pixels
    whose depth is known, so that images with few such pixels have as many pairs as others. An image without
    any such pixel has no loss.

    Image and label are shifted and flipped alike.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D), with named stages.
        pairs: int, pairs of pixels per image.
        equal: float in 0..1, the largest difference of the percentiles of two pixels that count as equally
            far.
        **kwargs: passed to keras.Model.

    Shapes:
        x: dict of `image` (B, H, W, 3) float32 in 0..255 and `pairs` (B, P, 2) int32, indices of pixels, row
        by row. y: (B, H, W, 1) float32, the percentile of depth, 0 for the nearest and 1 for the farthest
        pixels, NaN where it is unknown. Prediction: (B, H, W, 1) float32, larger for farther pixels.

    Raises:
        ValueError: `pairs` is below 1, `equal` is not in 0..1, or the encoder does not take 3 channels of
            fixed size or has no named stages.

    Reference: Jiang, Larsson, Maire, Shakhnarovich & Learned-Miller, "Self-Supervised Relative Depth Learning
    for Urban Scene Understanding", ECCV 2018; the loss: Chen et al., "Single-Image Depth Perception in the
    Wild", NIPS 2016.

    Example:
        >>> import keras_ssl as kssl
        >>> clips = kssl.data.with_relative_depth(kssl.data.scenes(64, size=32, frames=2))
        >>> task = kssl.tasks.RelativeDepth(kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1, 1)))
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(clips, batch_size=32), verbose=0)
    """

    needs = ("image", "relative_depth")
    reader = staticmethod(read_clips)

    def __init__(self, encoder, pairs=512, equal=0.02, **kwargs):
        super().__init__(encoder, **kwargs)
        size = encoders.check_image_shape(encoder)
        check_integer("pairs", pairs, minimum=1)
        self.pairs, self.equal = pairs, check_fraction("equal", equal)
        self.maps = encoders.maps(encoder)
        shape = list(self.maps.output.values())[-1].shape[1:]
        self.decoder = layers.half_size_decoder(shape, size, self.dtype_policy)
        # Near zero, so that at first all pixels are equally far. Without a bias, since differences do not
        # depend on it.
        small = keras.initializers.RandomNormal(stddev=0.01)
        self.head = keras.layers.Conv2D(
            1, 1, use_bias=False, kernel_initializer=small, dtype="float32", name="head"
        )

    def pretext(self, batch, seed):
        shift, draw = split(seed, 2)
        both = [tf.cast(batch[name], tf.float32) for name in self.needs]
        both = augment.random_shift(tf.concat(both, axis=-1), shift, fraction=0.125, flip=True)
        image, depth = both[..., :3], both[..., 3:]
        return {"image": image, "pairs": self._draw(depth, draw)}, depth

    def _draw(self, depth, seed):
        """Draws pairs of the pixels whose depth is known: their indices, (B, P, 2) int32."""
        known = tf.reshape(tf.math.is_finite(depth), [tf.shape(depth)[0], -1])
        first = tf.argsort(tf.cast(known, tf.int32), direction="DESCENDING", stable=True)
        number = tf.reduce_sum(tf.cast(known, tf.float32), axis=1, keepdims=True)
        place = tf.cast(uniform(seed, 2 * self.pairs) * number, tf.int32)
        # A product that is rounded up would be one too many.
        place = tf.minimum(place, tf.maximum(tf.cast(number, tf.int32) - 1, 0))
        return tf.reshape(tf.gather(first, place, batch_dims=1), [-1, self.pairs, 2])

    def call(self, x, training=False):
        return self.score(x["image"], training)

    def score(self, image, training=False):
        """Predicts a number for each pixel of (B, H, W, 3) images, larger for farther ones."""
        *_, deepest = self.maps(image, training=training).values()
        half = self.head(self.decoder(deepest, training=training))
        return tf.image.resize(half, image.shape[1:3])

    def late_labels(self, x, y, y_pred):
        depth = tf.reshape(y, [tf.shape(y)[0], -1])
        depth = tf.gather(depth, x["pairs"], batch_dims=1)
        difference = depth[..., 0] - depth[..., 1]
        # 1 if the first pixel of the pair is farther; the sign of NaN is NaN.
        order = tf.where(tf.abs(difference) <= self.equal, 0.0, tf.sign(difference))
        pairs = tf.cast(x["pairs"], tf.float32)
        return tf.concat([pairs, order[..., None]], axis=-1), None

    def prediction(self, images):
        return {"relative_depth": _percentile(self.score(images))}

    def preview(self, x, y, y_pred=None):
        def drawn(depth):
            return [plotting.columns({"depth": row})[0][0] for row in depth]

        columns = [(x["image"], "image"), (drawn(y), "relative depth")]
        if y_pred is not None:
            columns.append((drawn(y_pred), "predicted"))
        return plotting.side_by_side(columns)

    def default_loss(self):
        return losses.DepthRanking()

    def default_metrics(self):
        return [metrics.OrderedPairs()]

    def default_optimizer(self, steps, learning_rate=1e-3):
        return optimizers.adam_cosine(learning_rate, steps)


def _percentile(score):
    """Converts numbers (B, H, W, 1) to ranks in 0..1, in the unit of the labels."""
    flat = tf.reshape(score, [tf.shape(score)[0], -1])
    rank = tf.argsort(tf.argsort(flat, stable=True), stable=True)
    largest = tf.cast(tf.maximum(tf.shape(flat)[1] - 1, 1), tf.float32)
    return tf.reshape(tf.cast(rank, tf.float32) / largest, tf.shape(score))
