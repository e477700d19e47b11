"""Colorization: which colours did the gray picture have?"""

import keras
import tensorflow as tf

from keras_ssl import encoders, layers, losses, metrics, plotting
from keras_ssl.ops import augment, lab
from keras_ssl.pretext import PretextModel
from keras_ssl.training import optimizers

COARSER = 4  # colours are predicted at a quarter of the resolution, as in the paper
REBALANCING, TEMPERATURE = 0.5, 0.38  # lambda of section 2.2, T of section 2.3
MEASURED = 5_000  # pictures that the colours of a data set are measured on


@keras.saving.register_keras_serializable(package="keras_ssl")
class Colorization(PretextModel):
    """Gives a gray picture its colours back.

    Grass is green and sky is blue: to know a colour one must know what one sees. The encoder gets the
    picture without colours, three equal channels; a decoder predicts the colours at a quarter of the
    resolution, since the details are in the gray picture anyway.

    - `target="rgb"`: regression. Gray is the mean of the channels; the loss is the squared error of the
      channels. Where an apple may be red or green it predicts their mean, a brownish gray.
    - `target="ab_bins"`: classification (the paper). The encoder sees the lightness L of Lab; for every
      place the network predicts a distribution over 262 bins of a and b. Rare colours weigh more in the
      loss (rebalancing, lambda = 0.5), for most of any picture is nearly gray. To show it, the annealed
      mean of the distribution is taken (T = 0.38), between its mean and its mode.

    How often colours are is measured on the first data set that `dataset` is called with, and saved with
    the task.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D), with named stages.
        target: "rgb" or "ab_bins".
        **kwargs: of keras.Model.

    Shapes:
        x: (B, H, W, 3) float32 in 0..255, three equal channels. y: the picture, (B, H, W, 3) float32 in
        -1..1; for "ab_bins" a and b, (B, H/4, W/4, 2) float32. Prediction: as y; for "ab_bins"
        (B, H/4, W/4, 262) float32 logits.

    Raises:
        ValueError: another `target`; an encoder for other than 3 channels or of variable size or without
            named stages.

    Reference: Zhang, Isola & Efros, "Colorful Image Colorization", ECCV 2016.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=8, blocks=(1, 1))
        >>> task = kssl.tasks.Colorization(encoder)
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    def __init__(self, encoder, target="rgb", **kwargs):
        super().__init__(encoder, **kwargs)
        if target not in ("rgb", "ab_bins"):
            raise ValueError(f'target must be "rgb" or "ab_bins", got {target!r}')
        height, width = encoders.check_pictures(encoder)
        self.target = target
        self.maps = encoders.maps(encoder)
        shape = list(self.maps.output.values())[-1].shape[1:]
        self.coarse = tuple(
            max(-(-side // COARSER), least)
            for side, least in zip((height, width), shape, strict=False)
        )
        channels = 3 if target == "rgb" else len(lab.ab_bins())
        self.decoder = layers.Decoder(shape, self.coarse, dtype=self.dtype_policy)
        # Near zero: the first guess is the gray picture, or every bin alike.
        small = keras.initializers.RandomNormal(stddev=0.01)
        self.head = keras.layers.Conv2D(
            channels, 1, kernel_initializer=small, dtype="float32", name="head"
        )
        # What is known of the data's colours, 0 until it has been measured: their mean (a and b, or each
        # channel less gray) and, for bins, how often each is.
        number = 3 if target == "rgb" else 2
        self.mean = self.add_weight(
            shape=(number,), initializer="zeros", trainable=False, name="mean"
        )
        if target == "ab_bins":
            self.prior = self.add_weight(
                shape=(channels,), initializer="zeros", trainable=False, name="prior"
            )
        self.is_measured = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="is_measured"
        )

    def pretext(self, batch, seed):
        return self.corrupt(
            augment.random_shift(batch["image"], seed, share=0.125, flip=True), seed
        )

    def corrupt(self, image, seed):
        """The picture without its colours, and the colours: (x, y) without augmentation."""
        if self.target == "rgb":
            image = tf.cast(image, tf.float32)
            gray, y = tf.reduce_mean(image, axis=-1, keepdims=True), image / 127.5 - 1
        else:
            lightness, ab = tf.split(lab.rgb_to_lab(image), [1, 2], axis=-1)
            gray, y = lightness * 2.55, tf.image.resize(ab, self.coarse, "area")
        return tf.repeat(gray, 3, axis=-1), y

    def call(self, x, training=False):
        *_, deepest = self.maps(x, training=training).values()
        y = self.head(self.decoder(deepest, training=training))
        if self.target == "ab_bins":
            return y
        return x / 127.5 - 1 + tf.image.resize(y, x.shape[1:3])

    def reconstruct(self, x, y, y_pred):
        """The pictures as the task gives them back, (B, H, W, 3) float32 in 0..255."""
        if self.target == "rgb":
            return tf.clip_by_value(127.5 * (y_pred + 1), 0, 255)
        likely = tf.nn.softmax(y_pred / TEMPERATURE)
        return self._with_colors(x, tf.tensordot(likely, tf.constant(lab.ab_bins()), 1))

    def baseline(self, x, y):
        """The mean colour of the data everywhere: what can be had without looking."""
        if self.target == "rgb":
            return tf.clip_by_value(x + 127.5 * self.mean, 0, 255)
        return self._with_colors(x, tf.broadcast_to(self.mean, tf.shape(y)))

    def _with_colors(self, x, ab):
        ab = tf.image.resize(ab, x.shape[1:3])
        return lab.lab_to_rgb(tf.concat([x[..., :1] / 2.55, ab], axis=-1))

    def late_labels(self, x, y, y_pred):
        if self.target == "rgb":
            return y, None
        # Rare colours weigh more: by the inverse of how often they are, mixed with a uniform share (section
        # 2.2). Over the data the mean of the weights is 1.
        prior, number = tf.convert_to_tensor(self.prior), self.prior.shape[0]
        weight = 1 / ((1 - REBALANCING) * prior + REBALANCING / number)
        weight /= tf.maximum(tf.reduce_sum(prior * weight), 1e-6)
        weight = tf.where(tf.reduce_sum(prior) > 0, weight, tf.ones_like(weight))
        return y, tf.gather(weight, tf.argmin(lab.distances(y), axis=-1))

    def dataset(self, images, *args, **kwargs):
        """As `PretextModel.dataset`; the first time it also measures how often which colour is."""
        data = super().dataset(images, *args, **kwargs)
        if not self.is_measured.numpy():
            self.measure(images)
        return data

    def measure(self, images):
        """Measures the colours of up to 5,000 pictures, evenly from the whole data set.

        Args:
            images: tf.data.Dataset of dicts with `image`.
        """

        @tf.function(reduce_retracing=True)
        def sums(image):
            x, y = self.corrupt(image, None)
            if self.target == "rgb":
                return tf.reduce_mean(y - (x / 127.5 - 1), axis=[1, 2]), tf.zeros((1, 1))
            bins = tf.argmin(lab.distances(y), axis=-1)
            shares = tf.reduce_mean(tf.one_hot(bins, self.prior.shape[0]), axis=[1, 2])
            return tf.reduce_mean(y, axis=[1, 2]), shares

        every = -(-int(images.cardinality()) // MEASURED)
        batches = images.shard(every, 0).batch(250)
        means, shares = zip(*[sums(batch["image"]) for batch in batches], strict=True)
        self.mean.assign(tf.reduce_mean(tf.concat(means, axis=0), axis=0))
        if self.target == "ab_bins":
            # Smoothed over neighbouring bins, as in the paper.
            spread = tf.exp(-lab.distances(tf.constant(lab.ab_bins())) / (2 * 5.0**2))
            spread /= tf.reduce_sum(spread, axis=1, keepdims=True)
            share = tf.reduce_mean(tf.concat(shares, axis=0), axis=0)
            self.prior.assign(tf.linalg.matvec(spread, share, transpose_a=True))
        self.is_measured.assign(1.0)

    def prediction(self, images):
        x, y = self.corrupt(images, None)
        picture = self.reconstruct(x, y, self(x, training=False))
        return {"picture": tf.cast(tf.round(picture), tf.uint8)}

    def preview(self, x, y, y_pred=None):
        if self.target == "rgb":
            target = 127.5 * (y + 1)
        else:
            target = self._with_colors(x, y)
        columns = [(x, "input"), (target, "target")]
        if y_pred is not None:
            columns.append((self.reconstruct(x, y, y_pred), "prediction"))
        return plotting.side_by_side(columns)

    def default_loss(self):
        return keras.losses.MeanSquaredError() if self.target == "rgb" else losses.ColorBins()

    def default_metrics(self):
        return [metrics.PSNR()] if self.target == "rgb" else []

    def default_optimizer(self, steps, learning_rate=1e-3):
        return optimizers.adam_cosine(learning_rate, steps)
