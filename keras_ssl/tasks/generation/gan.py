"""Bidirectional GAN (BiGAN): a generator from codes to images, and an encoder from images to codes."""

import keras
import numpy as np
import tensorflow as tf

from keras_ssl import encoders, layers, plotting
from keras_ssl.ops import augment
from keras_ssl.ops.random import normal, split
from keras_ssl.training import adversarial as adversary
from keras_ssl.training import optimizers


@keras.saving.register_keras_serializable(package="keras_ssl")
class GAN(adversary.AdversarialModel):
    """Trains a bidirectional GAN: a generator, and an encoder that inverts it.

    The generator maps random codes to images, the encoder maps images to codes. The discriminator gets pairs
    of an image and a code, and learns to distinguish two kinds: a real image with the code that the encoder
    computes from it, and a random code with the image that the generator computes from it. When it can no
    longer distinguish them, encoder and generator are inverse to each other, although neither ever gets the
    other's output (theorem 2 of the paper). The code then contains everything that is needed to generate such
    an image.

    Using the features of a discriminator instead would restrict the encoder: it could not have batch
    normalization, whose statistics would include those of generated images. In a BiGAN the encoder gets
    only real images, and may have any normalization.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D).
        codes: int, length of a code.
        filters: int, of the discriminator's first convolution and of the generator's last.
        **kwargs: passed to keras.Model.

    Shapes:
        x: dict of `image` (B, H, W, 3) in 0..255 and `noise` (B, codes) float32, standard normal. y: the
        image, (B, H, W, 3) float32 in -1..1. Prediction: dict of `code` (B, codes) of the images, and
        `image` (B, H, W, 3) in -1..1, generated from the noise.

    Metrics: those of `AdversarialModel`, and `diversity`: the root mean square distance between the generated
        images of a batch, as a fraction of the distance between the real images. It is 0 if the generator has
        collapsed.

    Raises:
        ValueError: `codes` or `filters` is below 1; the encoder does not take 3 channels of fixed size.

    Reference: Donahue, Kraehenbuehl & Darrell, "Adversarial Feature Learning", ICLR 2017; Dumoulin et al.,
    "Adversarially Learned Inference", ICLR 2017; generator: Radford, Metz & Chintala, ICLR 2016.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=8, blocks=(1, 1))
        >>> task = kssl.tasks.GAN(encoder, filters=8)
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    encodes_real = True

    def __init__(self, encoder, codes=64, filters=16, **kwargs):
        super().__init__(encoder, adversarial=1.0, **kwargs)
        if codes < 1:
            raise ValueError(f"codes must be at least 1, got {codes!r}")
        height, width = encoders.check_image_shape(encoder)
        self.codes, self.filters = codes, filters
        self.discriminator = adversary.discriminator(
            height, width, 3, filters, codes, dtype=self.dtype_policy
        )
        # Mean 0 and variance 1, like the noise: otherwise the discriminator could distinguish the pairs by
        # the scale of the codes, without the images.
        self.code = keras.layers.Dense(codes, use_bias=False, dtype="float32", name="code")
        self.whiten = layers.BatchNormalization(
            momentum=0.9, center=False, scale=False, synchronized=True, dtype="float32"
        )
        # As many upsampling steps as the discriminator has downsampling steps.
        doublings = 1
        while max(height, width) > 4 << doublings:
            doublings += 1
        shape = -(-height >> doublings), -(-width >> doublings), filters << doublings
        self.start = keras.layers.Dense(
            int(np.prod(shape)), activation="relu", dtype=self.dtype_policy, name="start"
        )
        half = -(-height // 2), -(-width // 2)
        self.decoder = layers.Decoder(shape, half, least=filters, dtype=self.dtype_policy)
        self.head = keras.layers.Conv2DTranspose(
            3, 4, 2, "same", activation="tanh", dtype="float32", name="head"
        )
        self.code.build(encoder.output_shape)
        self.whiten.build((None, codes))
        self.start.build((None, codes))
        self.decoder.build()
        self.head.build((None, *half, self.decoder.filters))
        self.diversity = keras.metrics.Mean(name="diversity")

    def pretext(self, batch, seed):
        shift, noise = split(seed, 2)
        image = augment.random_shift(batch["image"], shift, fraction=0.125, flip=True)
        image = tf.cast(image, tf.float32)
        return {"image": image, "noise": normal(noise, self.codes)}, image / 127.5 - 1

    def encode(self, images, training=False):
        """Computes the codes of images.

        Args:
            images: (B, H, W, 3) tensor in 0..255.
            training: bool, as in Keras.

        Returns:
            (B, codes) float32 tensor.
        """
        code = self.code(self.encoder(images, training=training))
        return self.whiten(code, training=training)

    def generate(self, codes, training=False):
        """Generates images from codes.

        Args:
            codes: (B, codes) float32 tensor, standard normal for random images.
            training: bool, as in Keras.

        Returns:
            (B, H, W, 3) float32 tensor in -1..1.
        """
        x = tf.reshape(self.start(codes), [-1, *self.decoder.shape])
        height, width = self.encoder.input_shape[1:3]
        return self.head(self.decoder(x, training=training))[:, :height, :width]

    def call(self, x, training=False):
        image = self.generate(x["noise"], training)
        return {"code": self.encode(x["image"], training), "image": image}

    def discriminator_inputs(self, x, y, y_pred):
        return [y, y_pred["code"]], [y_pred["image"], x["noise"]]

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return tf.zeros(())  # encoder and generator have only the adversarial loss

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        # The mean squared distance over all pairs is proportional to the variance.
        fake, real = (tf.math.reduce_variance(p, axis=0) for p in (y_pred["image"], y))
        ratio = tf.sqrt(tf.reduce_mean(fake) / tf.maximum(tf.reduce_mean(real), 1e-6))
        self.diversity.update_state(ratio, sample_weight=tf.shape(y)[0])
        return super().compute_metrics(x, y, y_pred["image"], sample_weight)

    def prediction(self, images):
        """Returns the images that are generated from the codes of the given images."""
        image = self.generate(self.encode(images))
        return {"image": tf.cast(tf.round(127.5 * (image + 1)), tf.uint8)}

    def preview(self, x, y, y_pred=None):
        columns = [(x["image"], "real")]
        if y_pred is not None:
            reconstructed = self.generate(y_pred["code"])
            columns += [(127.5 * (reconstructed + 1), "from its code")]
            columns += [(127.5 * (y_pred["image"] + 1), "from noise")]
        return plotting.side_by_side(columns)

    def default_loss(self):
        return None

    def default_metrics(self):
        return []

    def default_optimizer(self, steps, learning_rate=1e-3):
        return optimizers.adam_cosine(learning_rate, steps, beta_1=0.5)
