"""Inpainting: predicts the content of a masked region, as in context encoders."""

import keras
import tensorflow as tf

from keras_ssl import encoders, layers, losses, metrics, plotting
from keras_ssl.ops import augment, masks
from keras_ssl.ops.random import split
from keras_ssl.training import adversarial as adversary
from keras_ssl.training import optimizers

MASKS = {"center": masks.center, "blocks": masks.blocks, "irregular": masks.irregular}
LARGEST_SIDE = 8  # maximum side of the feature map for the channel-wise fully connected layer


@keras.saving.register_keras_serializable(package="keras_ssl")
class Inpainting(adversary.AdversarialModel):
    """Predicts the content of a masked region of the image: the context encoder.

    To fill the hole, the network has to recognize what the surroundings belong to. The encoder gets only
    the image, whose hole is filled with the mean color of the other pixels, and no mask. A channel-wise
    fully connected layer propagates information across the image, and a decoder predicts the pixels.
    There are no skip connections: all information passes through the encoder's last feature map.

    - *Reconstruction loss*: the squared error. With the central hole, it is computed in the hole and, with
      ten times the weight, in a band around it; with other holes, in the whole image, as in the authors'
      code. The prediction fits its surroundings, but is blurred, since it is the mean of all plausible
      contents.
    - *Adversarial loss*: a discriminator favors plausible contents. It sees the same pixels as the
      reconstruction loss: the central rectangle or, with other holes, the whole output of the network.
    - *Holes at random positions* (`mask="blocks"`) or *of arbitrary shape* (`"irregular"`): if the hole is
      always in the center, the features describe only its boundary (section 3.3 of the paper).

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D), with named stages.
        mask: "center" or "irregular", which hide a quarter of the image, or "blocks", at most a quarter.
        adversarial: float in 0..1, weight of the adversarial loss; the reconstruction loss has the weight 1 -
            adversarial. 0 for no discriminator.
        overlap: int, width in pixels of the band around the hole, whose errors have ten times the weight.
            With None, it is 4/128 of the height for the central hole, as in the paper; for other holes, all
            visible pixels count with the weight of the hole.
        filters: int, of the discriminator's first convolution.
        **kwargs: passed to keras.Model.

    Shapes:
        x: (B, H, W, 3) float32 in 0..255, with the hole. y: (B, H, W, 4) float32, the image in -1..1
        and the mask, 1 in the hole. Prediction: (B, H, W, 3) float32, about -1..1, trained in the hole and
        in the band.

    Raises:
        ValueError: `mask` is unknown; `adversarial` is not in 0..1; `overlap` is below 0; `filters` is
            below 1; the encoder does not take 3 channels of fixed size, or has no named stages.

    Reference: Pathak, Kraehenbuehl, Donahue, Darrell & Efros, "Context Encoders: Feature Learning by
    Inpainting", CVPR 2016.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=8, blocks=(1, 1))
        >>> task = kssl.tasks.Inpainting(encoder, mask="center")
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    discriminator_rate = 0.1  # section 3.2 of the paper

    def __init__(
        self, encoder, mask="irregular", adversarial=0.001, overlap=None, filters=16, **kwargs
    ):
        super().__init__(encoder, adversarial, **kwargs)
        if mask not in MASKS:
            raise ValueError(f"mask must be one of {', '.join(MASKS)}, got {mask!r}")
        height, width = encoders.check_image_shape(encoder)
        if overlap is None and mask == "center":
            overlap = max(1, round(height / 32))
        if overlap is not None and overlap < 0:
            raise ValueError(f"overlap must be at least 0 pixels, got {overlap!r}")
        self.mask, self.overlap, self.filters = mask, overlap, filters
        self.maps = encoders.maps(encoder)
        shape = list(self.maps.output.values())[-1].shape[1:]
        # As in the paper's encoder, down to a map that is small enough for a fully connected layer.
        self.narrow = []
        half = -(-height // 2), -(-width // 2)
        while max(shape[:2]) > LARGEST_SIDE or shape[0] > half[0] or shape[1] > half[1]:
            layer = keras.layers.Conv2D(
                2 * shape[-1], 4, 2, "same", activation="relu", dtype=self.dtype_policy
            )
            layer.build((None, *shape))
            self.narrow.append(layer)
            shape = layer.compute_output_shape((None, *shape))[1:]
        self.connect = layers.ChannelwiseDense(dtype=self.dtype_policy)
        self.decoder = layers.Decoder(shape, half, dtype=self.dtype_policy)
        small = keras.initializers.RandomNormal(stddev=0.01)  # predicts gray first, not noise
        self.head = keras.layers.Conv2DTranspose(
            3, 4, 2, "same", kernel_initializer=small, dtype="float32", name="head"
        )
        self.connect.build((None, *shape))
        self.decoder.build()
        self.head.build((None, *half, self.decoder.filters))
        if adversarial:
            size = self._crop_center(tf.zeros((1, height, width, 3))).shape[1:3]
            self.discriminator = adversary.discriminator(
                *size, filters=filters, dtype=self.dtype_policy
            )

    def pretext(self, batch, seed):
        shift, hole = split(seed, 2)
        image = augment.random_shift(batch["image"], shift, fraction=0.125, flip=True)
        return self.corrupt(image, hole)

    def corrupt(self, image, seed):
        """Masks a region of each image: returns (x, y) without augmentation."""
        hidden = MASKS[self.mask](seed, *image.shape[1:3])
        return self._hide(image, hidden)

    def _hide(self, image, hidden):
        image = tf.cast(image, tf.float32)
        visible = tf.reduce_sum(1 - hidden, axis=[1, 2], keepdims=True)
        mean = tf.reduce_sum((1 - hidden) * image, axis=[1, 2], keepdims=True) / visible
        x = tf.where(hidden > 0, mean, image)
        return x, tf.concat([image / 127.5 - 1, hidden], axis=-1)

    def call(self, x, training=False):
        *_, deepest = self.maps(x, training=training).values()
        for layer in self.narrow:
            deepest = layer(deepest)
        deepest = tf.nn.relu(self.connect(deepest))
        image = self.head(self.decoder(deepest, training=training))
        return image[:, : x.shape[1], : x.shape[2]]  # odd sizes are rounded up by the decoder

    def discriminator_inputs(self, x, y, y_pred):
        image, hidden = y[..., :3], y[..., 3:]
        trained = hidden + masks.band(hidden, self.overlap) > 0
        fake = tf.where(trained, y_pred, image)
        return [self._crop_center(image)], [self._crop_center(fake)]

    def _crop_center(self, image):
        """Crops the central hole and its band; images with other holes stay as they are."""
        if self.mask != "center":
            return image
        corners = []
        for side in image.shape[1:3]:
            start = (side - side // 2) // 2
            end = start + side // 2 + self.overlap
            corners.append(slice(max(start - self.overlap, 0), min(end, side)))
        return image[:, corners[0], corners[1]]

    def reconstruct(self, x, y, y_pred):
        """Returns the images with filled holes, (B, H, W, 3) float32 in 0..255."""
        return tf.where(y[..., 3:] > 0, tf.clip_by_value(127.5 * (y_pred + 1), 0, 255), x)

    def baseline(self, x, y):
        """Returns the images with the mean color in the hole, a reconstruction without a network."""
        return x

    def prediction(self, images):
        """Returns the images with their center masked and filled by the network."""
        seed = tf.zeros((tf.shape(images)[0], 2), tf.int64)
        x, y = self._hide(images, masks.center(seed, *images.shape[1:3]))
        image = self.reconstruct(x, y, self(x, training=False))
        return {"image": tf.cast(tf.round(image), tf.uint8)}

    def preview(self, x, y, y_pred=None):
        columns = [(x, "input"), (127.5 * (y[..., :3] + 1), "target")]
        if y_pred is not None:
            columns.append((self.reconstruct(x, y, y_pred), "prediction"))
        return plotting.side_by_side(columns)

    def default_loss(self):
        return losses.Hole(None, weight=1.0) if self.overlap is None else losses.Hole(self.overlap)

    def default_metrics(self):
        return [metrics.PSNR()]

    def default_optimizer(self, steps, learning_rate=1e-3):
        return optimizers.adam_cosine(learning_rate, steps, beta_1=0.5)
