"""Adversarial features: a generator makes pictures from codes, the encoder finds the code of a picture."""

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
    """Learns to generate pictures, and to encode them: a bidirectional GAN.

    A generator turns random codes into pictures, the encoder turns pictures into codes. The discriminator
    sees pairs of picture and code and must tell (picture, its code by the encoder) from (picture by the
    generator, its code). When it no longer can, encoder and generator are inverse to one another, though
    neither has ever seen the other's output (theorem 2 of the paper): the code says all that it
    takes to generate such a picture.

    Why this one and not a discriminator whose features are kept: any encoder serves as it is, with its
    own normalisation, on real pictures only; a discriminator that is the encoder would have to be
    without batch normalisation, or its statistics would be those of generated pictures too.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D).
        codes: int, length of a code.
        filters: int, of the discriminator's first convolution and of the generator's last.
        **kwargs: of keras.Model.

    Shapes:
        x: dict of `image` (B, H, W, 3) in 0..255 and `noise` (B, codes) float32, standard normal. y: the
        picture, (B, H, W, 3) float32 in -1..1. Prediction: dict of `code` (B, codes) of the pictures and
        `picture` (B, H, W, 3) in -1..1, generated of the noise.

    Metrics: beside those of `AdversarialModel` `diversity`, how far the generated pictures of a batch lie
        apart (root mean square over pairs) as a share of the real ones: 0 where the generator has
        collapsed.

    Raises:
        ValueError: `codes` or `filters` below 1; an encoder for other than 3 channels or of variable size.

    Reference: Donahue, Kraehenbuehl & Darrell, "Adversarial Feature Learning", ICLR 2017; Dumoulin et al.,
    "Adversarially Learned Inference", ICLR 2017; generator: Radford, Metz & Chintala, ICLR 2016.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=8, blocks=(1, 1))
        >>> task = kssl.tasks.GAN(encoder, filters=8)
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    makes_real = True

    def __init__(self, encoder, codes=64, filters=16, **kwargs):
        super().__init__(encoder, adversarial=1.0, **kwargs)
        if codes < 1:
            raise ValueError(f"codes must be at least 1, got {codes!r}")
        height, width = encoders.check_pictures(encoder)
        self.codes, self.filters = codes, filters
        self.discriminator = adversary.discriminator(
            height, width, 3, filters, codes, dtype=self.dtype_policy
        )
        # Mean 0 and variance 1, as those of the noise: else the discriminator would tell the pairs by the
        # size of the codes, and never need to look at the pictures.
        self.code = keras.layers.Dense(codes, use_bias=False, dtype="float32", name="code")
        self.whiten = keras.layers.BatchNormalization(
            momentum=0.9, center=False, scale=False, synchronized=True, dtype="float32"
        )
        # As many doublings as the discriminator has halvings.
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
        image = augment.random_shift(batch["image"], shift, share=0.125, flip=True)
        image = tf.cast(image, tf.float32)
        return {"image": image, "noise": normal(noise, self.codes)}, image / 127.5 - 1

    def encode(self, images, training=False):
        """Codes of pictures.

        Args:
            images: (B, H, W, 3) tensor in 0..255.
            training: bool, as in Keras.

        Returns:
            (B, codes) float32 tensor.
        """
        code = self.code(self.encoder(images, training=training))
        return self.whiten(code, training=training)

    def generate(self, codes, training=False):
        """Pictures from codes.

        Args:
            codes: (B, codes) float32 tensor, standard normal for random pictures.
            training: bool, as in Keras.

        Returns:
            (B, H, W, 3) float32 tensor in -1..1.
        """
        x = tf.reshape(self.start(codes), [-1, *self.decoder.shape])
        height, width = self.encoder.input_shape[1:3]
        return self.head(self.decoder(x, training=training))[:, :height, :width]

    def call(self, x, training=False):
        picture = self.generate(x["noise"], training)
        return {"code": self.encode(x["image"], training), "picture": picture}

    def compare(self, x, y, y_pred):
        return [y, y_pred["code"]], [y_pred["picture"], x["noise"]]

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return tf.zeros(())  # all that encoder and generator learn comes through the discriminator

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        # The squares of all pairs' distances are to one another as the variances.
        made, real = (tf.math.reduce_variance(p, axis=0) for p in (y_pred["picture"], y))
        share = tf.sqrt(tf.reduce_mean(made) / tf.maximum(tf.reduce_mean(real), 1e-6))
        self.diversity.update_state(share, sample_weight=tf.shape(y)[0])
        return super().compute_metrics(x, y, y_pred["picture"], sample_weight)

    def prediction(self, images):
        """The picture generated anew from its own code."""
        picture = self.generate(self.encode(images))
        return {"picture": tf.cast(tf.round(127.5 * (picture + 1)), tf.uint8)}

    def preview(self, x, y, y_pred=None):
        columns = [(x["image"], "real")]
        if y_pred is not None:
            again = self.generate(y_pred["code"])
            columns += [(127.5 * (again + 1), "from its code")]
            columns += [(127.5 * (y_pred["picture"] + 1), "from noise")]
        return plotting.side_by_side(columns)

    def default_loss(self):
        return None

    def default_metrics(self):
        return []

    def default_optimizer(self, steps, learning_rate=1e-3):
        return optimizers.adam_cosine(learning_rate, steps, beta_1=0.5)
