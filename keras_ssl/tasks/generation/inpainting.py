"""Inpainting: what is in the hole?"""

import keras
import tensorflow as tf

from keras_ssl import encoders, layers, losses, metrics, plotting
from keras_ssl.ops import augment, masks
from keras_ssl.ops.random import split
from keras_ssl.training import adversarial as adversary
from keras_ssl.training import optimizers

MASKS = {"centre": masks.centre, "blocks": masks.blocks, "irregular": masks.irregular}
LARGEST = 8  # places in a row of the map whose places are all connected


@keras.saving.register_keras_serializable(package="keras_ssl")
class Inpainting(adversary.AdversarialModel):
    """Fills a hole in the picture: the context encoder.

    To fill it the network must know what the surroundings belong to. The encoder sees only the picture with
    the hole, filled with the mean colour of what is left of the picture, and no mask. A channel-wise
    fully connected layer carries what it found from one side of the picture to the other, a decoder
    paints. There are no skip connections: all goes through the encoder's last map.

    - *Squared error*, in a band around the hole ten times that in the hole, makes the filling fit, but
      blurs: where several fillings are possible their mean is the best guess.
    - *A discriminator* that sees the filled and the real picture asks for one that could be real.
    - *Holes at random places* (`mask="blocks"`) or *without straight edges* (`"irregular"`): with a hole that
      always lies in the middle the features are those of its border (section 3.3 of the paper).

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D), with named stages.
        mask: "centre", "blocks" or "irregular", a quarter of the picture (blocks: up to).
        adversarial: float in 0..1, weight of the adversarial loss, 1 - adversarial that of the squared
            error; 0 for no discriminator.
        overlap: int, pixels of the band around the hole, or None for 4/128 of the height.
        filters: int, of the discriminator's first convolution.
        **kwargs: of keras.Model.

    Shapes:
        x: (B, H, W, 3) float32 in 0..255, with the hole. y: (B, H, W, 4) float32, the picture in -1..1
        and the mask, 1 in the hole. Prediction: (B, H, W, 3) float32, about -1..1, which counts in the
        hole and the band.

    Raises:
        ValueError: another `mask`; `adversarial` not in 0..1; `overlap` below 0; `filters` below 1; an
            encoder for other than 3 channels or of variable size or without named stages.

    Reference: Pathak, Kraehenbuehl, Donahue, Darrell & Efros, "Context Encoders: Feature Learning by
    Inpainting", CVPR 2016.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=8, blocks=(1, 1))
        >>> task = kssl.tasks.Inpainting(encoder, mask="centre")
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    def __init__(
        self, encoder, mask="irregular", adversarial=0.001, overlap=None, filters=16, **kwargs
    ):
        super().__init__(encoder, adversarial, **kwargs)
        if mask not in MASKS:
            raise ValueError(f"mask must be one of {', '.join(MASKS)}, got {mask!r}")
        height, width = encoders.check_pictures(encoder)
        overlap = max(1, round(height / 32)) if overlap is None else overlap
        if overlap < 0:
            raise ValueError(f"overlap must be at least 0 pixels, got {overlap!r}")
        self.mask, self.overlap, self.filters = mask, overlap, filters
        self.maps = encoders.maps(encoder)
        shape = list(self.maps.output.values())[-1].shape[1:]
        # As the paper's encoder, down to a map so small that all its places can be connected.
        self.narrow = []
        half = -(-height // 2), -(-width // 2)
        while max(shape[:2]) > LARGEST or shape[0] > half[0] or shape[1] > half[1]:
            layer = keras.layers.Conv2D(
                2 * shape[-1], 4, 2, "same", activation="relu", dtype=self.dtype_policy
            )
            layer.build((None, *shape))
            self.narrow.append(layer)
            shape = layer.compute_output_shape((None, *shape))[1:]
        self.connect = layers.ChannelwiseDense(dtype=self.dtype_policy)
        self.decoder = layers.Decoder(shape, half, dtype=self.dtype_policy)
        small = keras.initializers.RandomNormal(stddev=0.01)  # from gray, not from noise
        self.head = keras.layers.Conv2DTranspose(
            3, 4, 2, "same", kernel_initializer=small, dtype="float32", name="head"
        )
        self.connect.build((None, *shape))
        self.decoder.build()
        self.head.build((None, *half, self.decoder.filters))
        if adversarial:
            self.discriminator = adversary.discriminator(
                height, width, filters=filters, dtype=self.dtype_policy
            )

    def pretext(self, batch, seed):
        shift, hole = split(seed, 2)
        image = augment.random_shift(batch["image"], shift, share=0.125, flip=True)
        return self.corrupt(image, hole)

    def corrupt(self, image, seed):
        """The picture with a hole, and what belongs there: (x, y) without augmentation."""
        hidden = MASKS[self.mask](seed, *image.shape[1:3])
        return self._hide(image, hidden)

    def _hide(self, image, hidden):
        image = tf.cast(image, tf.float32)
        left = tf.reduce_sum(1 - hidden, axis=[1, 2], keepdims=True)
        mean = tf.reduce_sum((1 - hidden) * image, axis=[1, 2], keepdims=True) / left
        x = tf.where(hidden > 0, mean, image)
        return x, tf.concat([image / 127.5 - 1, hidden], axis=-1)

    def call(self, x, training=False):
        *_, deepest = self.maps(x, training=training).values()
        for layer in self.narrow:
            deepest = layer(deepest)
        deepest = tf.nn.relu(self.connect(deepest))
        picture = self.head(self.decoder(deepest, training=training))
        return picture[:, : x.shape[1], : x.shape[2]]  # one more where the size is odd

    def compare(self, x, y, y_pred):
        picture, hidden = y[..., :3], y[..., 3:]
        return [picture], [tf.where(hidden > 0, y_pred, picture)]

    def reconstruct(self, x, y, y_pred):
        """The pictures with their holes filled, (B, H, W, 3) float32 in 0..255."""
        return tf.where(y[..., 3:] > 0, tf.clip_by_value(127.5 * (y_pred + 1), 0, 255), x)

    def baseline(self, x, y):
        """The mean colour in the hole: what can be had without a network."""
        return x

    def prediction(self, images):
        """The picture with its middle hidden and filled again."""
        seed = tf.zeros((tf.shape(images)[0], 2), tf.int64)
        x, y = self._hide(images, masks.centre(seed, *images.shape[1:3]))
        picture = self.reconstruct(x, y, self(x, training=False))
        return {"picture": tf.cast(tf.round(picture), tf.uint8)}

    def preview(self, x, y, y_pred=None):
        columns = [(x, "input"), (127.5 * (y[..., :3] + 1), "target")]
        if y_pred is not None:
            columns.append((self.reconstruct(x, y, y_pred), "prediction"))
        return plotting.side_by_side(columns)

    def default_loss(self):
        return losses.Hole(self.overlap)

    def default_metrics(self):
        return [metrics.PSNR()]

    def default_optimizer(self, steps, learning_rate=1e-3):
        return optimizers.adam_cosine(learning_rate, steps, beta_1=0.5)
