"""Super-resolution: predicts an image from its downsampled version."""

import keras
import tensorflow as tf

from keras_ssl import encoders, layers, metrics, plotting
from keras_ssl.ops import augment, images
from keras_ssl.training import adversarial as adversary
from keras_ssl.training import optimizers


@keras.saving.register_keras_serializable(package="keras_ssl")
class SuperResolution(adversary.AdversarialModel):
    """Predicts an image from its downsampled version.

    To restore sharp edges and texture, the network has to recognize the content. The encoder gets the small
    image at its own size, not upsampled. A decoder with skip connections to every stage predicts the
    difference from the bicubically upsampled image. Most of that is local, so expect the early stages to
    improve most.

    Augmentation is limited to shifts by whole pixels and flips: interpolation would remove the details that
    have to be predicted.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D) with global average pooling and named
            stages; it is trained on images that are `scale` times smaller.
        scale: 2 or 4.
        adversarial: float in 0..1, weight of the adversarial loss (0.001 in the paper); the absolute error
            has the weight 1 - adversarial. 0 for no discriminator.
        filters: int, of the discriminator's first convolution.
        **kwargs: passed to keras.Model.

    Shapes:
        x: (B, H/scale, W/scale, 3) float32 in 0..255. y and the prediction: (B, H, W, 3) float32 in
        about -1..1.

    Raises:
        ValueError: `scale` is not 2 or 4, or does not divide H and W; `adversarial` is not in 0..1;
            `filters` is below 1; the encoder cannot take the small images, does not take 3 channels of
            fixed size, or has no named stages.

    Reference: Ledig et al., "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial
    Network", CVPR 2017; absolute error: Lim et al. (EDSR), CVPRW 2017; prediction of the difference from
    the upsampled image: Kim et al. (VDSR), CVPR 2016.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=8, blocks=(1, 1))
        >>> task = kssl.tasks.SuperResolution(encoder)
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    def __init__(self, encoder, scale=2, adversarial=0.0, filters=16, **kwargs):
        super().__init__(encoder, adversarial, **kwargs)
        if scale not in (2, 4):
            raise ValueError(f"scale must be 2 or 4, got {scale!r}")
        height, width = encoders.check_image_shape(encoder)
        if height % scale or width % scale:
            raise ValueError(f"scale {scale} must divide the images' size, {height}x{width}")
        self.scale, self.filters = scale, filters
        small = height // scale, width // scale
        encoders.check_patches(encoder, *small)
        self.maps = encoders.maps(encoder)
        outputs = self.maps.call(keras.Input((*small, 3)))
        shapes = [m.shape[1:] for m in outputs.values()]
        # Skip connections from the last stage of each size, and from the small image itself: if the stem
        # downsamples, no stage keeps its details.
        sizes = {shape[:2]: name for name, shape in zip(outputs, shapes, strict=True)}
        self.skips = [name for name in reversed(list(outputs)) if name in sizes.values()][1:]
        skips = [outputs[name].shape[1:] for name in self.skips] + [(*small, 3)]
        half = height // 2, width // 2
        self.decoder = layers.Decoder(shapes[-1], half, skips, dtype=self.dtype_policy)
        near_zero = keras.initializers.RandomNormal(stddev=0.01)  # starts with the bicubic image
        self.head = keras.layers.Conv2DTranspose(
            3, 4, 2, "same", kernel_initializer=near_zero, dtype="float32", name="head"
        )
        self.decoder.build()
        self.head.build((None, *half, self.decoder.filters))
        if adversarial:
            self.discriminator = adversary.discriminator(
                height, width, filters=filters, dtype=self.dtype_policy
            )

    def pretext(self, batch, seed):
        image = augment.random_shift(batch["image"], seed, fraction=0.125, flip=True)
        return self.corrupt(image, seed)

    def corrupt(self, image, seed):
        """Downsamples images: returns (x, y) without augmentation."""
        image = tf.cast(image, tf.float32)
        x = tf.nn.avg_pool2d(image, self.scale, self.scale, "VALID")
        return tf.round(x), image / 127.5 - 1  # rounded, since small images have eight bits as well

    def call(self, x, training=False):
        # Not `maps(...)`: Keras refuses images whose size differs from that of the encoder's input.
        outputs = self.maps.call(x, training=training)
        *_, deepest = outputs.values()
        skips = [outputs[name] for name in self.skips] + [x / 127.5 - 1]
        half = x.shape[1] * self.scale // 2, x.shape[2] * self.scale // 2
        residual = self.head(self.decoder(deepest, size=half, skips=skips, training=training))
        return images.enlarge(x, self.scale) / 127.5 - 1 + residual

    def discriminator_inputs(self, x, y, y_pred):
        return [y], [y_pred]

    def reconstruct(self, x, y, y_pred):
        """Returns the predicted images, (B, H, W, 3) float32 in 0..255."""
        return tf.clip_by_value(127.5 * (y_pred + 1), 0, 255)

    def baseline(self, x, y):
        """Returns the bicubically upsampled images, a reconstruction without a network."""
        return tf.clip_by_value(images.enlarge(x, self.scale), 0, 255)

    def prediction(self, images):
        """Returns the given images, upsampled by `scale`."""
        x = tf.cast(images, tf.float32)
        image = self.reconstruct(x, None, self.call(x))
        return {"image": tf.cast(tf.round(image), tf.uint8)}

    def preview(self, x, y, y_pred=None):
        bicubic, target = self.baseline(x, y), 127.5 * (y + 1)
        columns = [(x, "input"), (bicubic, "bicubic"), (target, "target")]
        if y_pred is not None:
            columns.append((self.reconstruct(x, y, y_pred), "prediction"))
        return plotting.side_by_side(columns)

    def default_loss(self):
        return keras.losses.MeanAbsoluteError()

    def default_metrics(self):
        return [metrics.PSNR()]

    def default_optimizer(self, steps, learning_rate=1e-3):
        return optimizers.adam_cosine(learning_rate, steps)
