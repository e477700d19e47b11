"""Colorization: predicts the colors of a grayscale image."""

import keras
import tensorflow as tf

from keras_ssl import encoders, layers, losses, metrics, plotting
from keras_ssl.ops import augment, lab
from keras_ssl.pretext import PretextModel
from keras_ssl.training import optimizers, pipeline

DOWNSAMPLING = 4  # colors are predicted at a quarter of the resolution, as in the paper
REBALANCING, TEMPERATURE = 0.5, 0.38  # lambda of section 2.2, T of section 2.3
MIN_COLOR = 5.0  # images with no larger a or b anywhere are left out, as in the authors' code
MEASURED_IMAGES = 5_000  # maximum number of images for the frequencies of the colors


@keras.saving.register_keras_serializable(package="keras_ssl")
class Colorization(PretextModel):
    """Predicts the colors of a grayscale image.

    Grass is green and sky is blue: to predict a color, the network has to recognize what is shown. The
    encoder gets the image without colors, as three equal channels. A decoder predicts the colors at a quarter
    of the resolution, since the grayscale image already contains the details.

    - `target="rgb"`: regression. Gray is the mean of the channels, and the loss is the squared error of
      the channels. For an apple that may be red or green it predicts the mean, a brownish gray.
    - `target="ab_bins"`: classification, as in the paper. The encoder gets the lightness L of Lab. For
      every pixel of the low resolution the network predicts a distribution over 262 bins of a and b. Rare
      colors have larger weights in the loss (class rebalancing, lambda = 0.5), since most pixels are
      nearly gray, and images that are gray everywhere have no weight. Colors are reconstructed by the
      annealed mean of the distribution (T = 0.38), which is between its mean and its mode.

    The frequencies of the colors are measured on the first data set that is passed to `dataset`, and saved
    with the task.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D), with named stages.
        target: "rgb" or "ab_bins".
        **kwargs: passed to keras.Model.

    Shapes:
        x: (B, H, W, 3) float32 in 0..255, three equal channels. y: the image, (B, H, W, 3) float32 in
        -1..1; for "ab_bins" its a and b, (B, H/4, W/4, 2) float32. Prediction: as y; for "ab_bins"
        (B, H/4, W/4, 262) float32 logits.

    Raises:
        ValueError: `target` is unknown; the encoder does not take 3 channels of fixed size, or has no
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
        height, width = encoders.check_image_shape(encoder)
        self.target = target
        self.maps = encoders.maps(encoder)
        shape = list(self.maps.output.values())[-1].shape[1:]
        self.coarse = tuple(
            max(-(-side // DOWNSAMPLING), least)
            for side, least in zip((height, width), shape, strict=False)
        )
        channels = 3 if target == "rgb" else len(lab.ab_bins())
        self.decoder = layers.Decoder(shape, self.coarse, dtype=self.dtype_policy)
        # Near zero: the initial prediction is the grayscale image, or equal probabilities.
        small = keras.initializers.RandomNormal(stddev=0.01)
        self.head = keras.layers.Conv2D(
            channels, 1, kernel_initializer=small, dtype="float32", name="head"
        )
        # Statistics of the data's colors, 0 until they are measured: the mean (of a and b, or of each
        # channel minus gray) and, for bins, the frequencies.
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
            augment.random_shift(batch["image"], seed, fraction=0.125, flip=True), seed
        )

    def corrupt(self, image, seed):
        """Converts images to grayscale: returns (x, y) without augmentation."""
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
        """Returns the images in the predicted colors, (B, H, W, 3) float32 in 0..255."""
        if self.target == "rgb":
            return tf.clip_by_value(127.5 * (y_pred + 1), 0, 255)
        probabilities = tf.nn.softmax(y_pred / TEMPERATURE)
        return self._with_colors(x, tf.tensordot(probabilities, tf.constant(lab.ab_bins()), 1))

    def baseline(self, x, y):
        """Returns the images in the mean color of the data set, a reconstruction without a network."""
        if self.target == "rgb":
            return tf.clip_by_value(x + 127.5 * self.mean, 0, 255)
        return self._with_colors(x, tf.broadcast_to(self.mean, tf.shape(y)))

    def _with_colors(self, x, ab):
        ab = tf.image.resize(ab, x.shape[1:3])
        return lab.lab_to_rgb(tf.concat([x[..., :1] / 2.55, ab], axis=-1))

    def late_labels(self, x, y, y_pred):
        if self.target == "rgb":
            return y, None
        # Class rebalancing: the weights are inverse to the frequencies, mixed with a uniform distribution
        # (section 2.2). Their mean over the data is 1.
        prior, number = tf.convert_to_tensor(self.prior), self.prior.shape[0]
        weight = 1 / ((1 - REBALANCING) * prior + REBALANCING / number)
        weight /= tf.maximum(tf.reduce_sum(prior * weight), 1e-6)
        weight = tf.where(tf.reduce_sum(prior) > 0, weight, tf.ones_like(weight))
        weight = tf.gather(weight, tf.argmin(lab.distances(y), axis=-1))
        # The colors of a gray photograph are lost: it would teach that its objects are gray.
        has_color = tf.reduce_any(tf.abs(y) > MIN_COLOR, axis=[1, 2, 3], keepdims=True)
        return y, weight * tf.cast(has_color[..., 0], weight.dtype)

    def dataset(self, images, *args, **kwargs):
        """Creates the training data as `PretextModel.dataset` does; the first call measures the colors."""
        data = super().dataset(images, *args, **kwargs)
        if not self.is_measured.numpy():
            self.measure(images)
        return data

    def measure(self, images):
        """Measures the colors of up to 5,000 images, evenly spaced in the data set.

        Args:
            images: tf.data.Dataset of dicts with `image`.
        """

        @tf.function(reduce_retracing=True)
        def statistics(image):
            x, y = self.corrupt(image, None)
            if self.target == "rgb":
                return tf.reduce_mean(y - (x / 127.5 - 1), axis=[1, 2]), tf.zeros((1, 1))
            bins = tf.argmin(lab.distances(y), axis=-1)
            frequencies = tf.reduce_mean(tf.one_hot(bins, self.prior.shape[0]), axis=[1, 2])
            return tf.reduce_mean(y, axis=[1, 2]), frequencies

        every = -(-int(images.cardinality()) // MEASURED_IMAGES)
        # Only these images are loaded; images that cannot be loaded are skipped, as in training.
        batches = pipeline.shard(images, (0, every)).batch(250)
        means, frequencies = zip(*[statistics(batch["image"]) for batch in batches], strict=True)
        self.mean.assign(tf.reduce_mean(tf.concat(means, axis=0), axis=0))
        if self.target == "ab_bins":
            # Smoothed over neighboring bins, as in the paper.
            kernel = tf.exp(-lab.distances(tf.constant(lab.ab_bins())) / (2 * 5.0**2))
            kernel /= tf.reduce_sum(kernel, axis=1, keepdims=True)
            frequency = tf.reduce_mean(tf.concat(frequencies, axis=0), axis=0)
            self.prior.assign(tf.linalg.matvec(kernel, frequency, transpose_a=True))
        self.is_measured.assign(1.0)

    def prediction(self, images):
        x, y = self.corrupt(images, None)
        image = self.reconstruct(x, y, self(x, training=False))
        return {"image": tf.cast(tf.round(image), tf.uint8)}

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
