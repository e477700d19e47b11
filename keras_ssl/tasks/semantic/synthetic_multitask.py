"""Depth, normals and contours of rendered images, with features that do not reveal the rendering."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from keras_ssl import encoders, layers, losses, plotting
from keras_ssl.arguments import check_integer, check_not_negative
from keras_ssl.ops import augment, images
from keras_ssl.ops.random import integer, split
from keras_ssl.training import optimizers
from keras_ssl.training.adversarial import AdversarialModel


@keras.saving.register_keras_serializable(package="keras_ssl")
@dataclasses.dataclass(frozen=True, eq=False)
class Head:
    """A label of each pixel that is predicted from the features.

    Args:
        column: str, name of the column with the labels (H, W, channels).
        channels: int, of the prediction.
        loss: keras.losses.Loss with at least one value per image.
        weight: float, of the loss.
    """

    column: str
    channels: int
    loss: keras.losses.Loss
    weight: float = 1.0

    def __eq__(self, other):
        return isinstance(other, Head) and self.get_config() == other.get_config()

    def __hash__(self):
        return hash((self.column, self.channels, self.weight))

    def get_config(self):
        return {**vars(self), "loss": keras.saving.serialize_keras_object(self.loss)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "loss": keras.saving.deserialize_keras_object(config["loss"])})


HEADS = (
    Head("depth", 1, losses.ScaleInvariantDepth(), 2.5),
    Head("normals", 3, losses.CosineDistance(), 10.0),
    Head("contours", 1, losses.BalancedCrossEntropy(), 1.0),
)


@keras.saving.register_keras_serializable(package="keras_ssl")
class SyntheticMultitask(AdversarialModel):
    """Predicts depth, normals and contours of rendered images, for which they are known exactly.

    Features of rendered images alone would also describe how rendered images differ from real ones. So a
    discriminator classifies the positions of the encoder's last feature map as rendered or real, and the
    encoder learns to make those of rendered images look real. Each batch has as many real images as rendered
    ones; the real images have no labels.

    Both are reduced to one color channel, drawn at random (section 4.1), since rendered colors differ from
    real ones.

    Differences from the paper: the depth loss is the one of Eigen et al., which subtracts half the squared
    mean error of the image; the authors' code adds half the squared mean error of the batch. Contours and
    other pixels have the same total weight in an image; the authors' code multiplies both by the ratio of
    their numbers.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D) with layers `stage1`, `stage2`, ...
        heads: sequence of `Head`, the labels to predict; by default `HEADS`: depth, normals and contours.
            `[*HEADS, Head("albedo", 3, keras.losses.MeanSquaredError())]` adds your own column.
        adversarial: float, weight of the adversarial loss; 0 trains without a discriminator.
        units: int, of the discriminator.
        **kwargs: passed to keras.Model.

    Attributes:
        needs: the columns of `heads`, `image` and `real`, which `data.paired` adds.

    Shapes:
        x: dict of `image` and `real` (B, H, W, 3) float32 in 0..255. y: dict of (B, H, W, channels) for the
        columns of the heads. Prediction: dict of the same (the logarithm of the depth in meters, normals of
        any length, and logits of contours) and of the maps `image_map` and `real_map`.

    Raises:
        ValueError: a weight is negative, `heads` is empty or has two heads for the same column, or `units` is
            below 1.

    Reference: Ren & Lee, "Cross-Domain Self-supervised Multi-task Feature Learning using Synthetic Imagery",
    CVPR 2018.

    Example:
        >>> import keras_ssl as kssl
        >>> images = kssl.data.paired(kssl.data.scenes(64, size=32), real=kssl.data.digits())
        >>> task = kssl.tasks.SyntheticMultitask(kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1, 1)))
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(images, batch_size=32), verbose=0)
    """

    needs = ("image", "depth", "normals", "contours", "real")

    def __init__(self, encoder, heads=HEADS, adversarial=0.05, units=64, **kwargs):
        check_not_negative("adversarial", adversarial)
        super().__init__(encoder, adversarial, task_weight=1.0, **kwargs)
        check_integer("units", units, 1)
        self.heads, self.units = _check_heads(heads), units
        columns = [head.column for head in self.heads]
        self.needs = ("image", *columns, "real")
        height, width = encoders.check_image_shape(encoder)
        self.maps = encoders.maps(encoder)
        shape = list(self.maps.output.values())[-1].shape[1:]
        self.decoders = [
            layers.Decoder(shape, (height, width), dtype=self.dtype_policy) for _ in columns
        ]
        self.outputs_of = [
            keras.layers.Conv2D(head.channels, 1, dtype="float32", name=head.column)
            for head in self.heads
        ]
        for decoder, output in zip(self.decoders, self.outputs_of, strict=True):
            decoder.build()
            output.build((None, height, width, decoder.filters))
        if adversarial:
            self.discriminator = _discriminator(shape[-1], units, self.dtype_policy)

    def pretext(self, batch, seed):
        one, other, shift = split(seed, 3)
        real = augment.random_shift(batch["real"], shift, 0.125, flip=True)
        x = {"image": _one_channel(batch["image"], one), "real": _one_channel(real, other)}
        return x, {head.column: tf.cast(batch[head.column], tf.float32) for head in self.heads}

    def call(self, x, training=False):
        both = tf.stack([x["image"], x["real"]], axis=1)
        *_, deepest = self.maps(images.fold(both), training=training).values()
        image_map, real_map = tf.unstack(images.unfold(deepest, 2), axis=1)
        dense = self._dense(image_map, training)
        maps = {"image_map": image_map, "real_map": real_map}
        return {**dense, **{name: tf.cast(m, tf.float32) for name, m in maps.items()}}

    def _dense(self, feature_map, training=False):
        return {
            head.column: output(decoder(feature_map, training=training))
            for head, decoder, output in zip(
                self.heads, self.decoders, self.outputs_of, strict=True
            )
        }

    def discriminator_inputs(self, x, y, y_pred):
        # Each position of the maps is an example.
        maps = (y_pred[name] for name in ("real_map", "image_map"))
        real, rendered = (tf.reshape(m, [-1, m.shape[-1]]) for m in maps)
        return [real], [rendered]

    def compile(self, *args, **kwargs):
        weights = {head.column: head.weight for head in self.heads}
        super().compile(*args, **{"loss_weights": weights, **kwargs})

    compile.__doc__ = AdversarialModel.compile.__doc__

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return super().compute_loss(x, y, self._labeled(y_pred), sample_weight, training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return super().compute_metrics(x, y, self._labeled(y_pred), sample_weight)

    def _labeled(self, y_pred):
        """Returns the predictions that have labels, without the maps."""
        return {head.column: y_pred[head.column] for head in self.heads}

    def prediction(self, images):
        """Predicts the heads for whole images: depth in meters, normals of length 1, contours in 0..1."""
        *_, deepest = self.maps(_one_channel(images), training=False).values()
        return _ready(self._dense(deepest))

    def default_loss(self):
        return {head.column: head.loss for head in self.heads}

    def default_metrics(self):
        return None

    def default_optimizer(self, steps, learning_rate=1e-3):
        return optimizers.adam_cosine(learning_rate, steps, beta_1=0.5)

    def preview(self, x, y, y_pred=None):
        rows = []
        for i in range(len(x["image"])):
            drawn = plotting.columns({name: values[i] for name, values in y.items()})
            if y_pred is not None:
                found = _ready({name: np.asarray(y_pred[name][i]) for name in y})
                guesses = plotting.columns({name: np.asarray(v) for name, v in found.items()})
                drawn += [(pixels, f"predicted {name}") for pixels, name in guesses]
            rows.append([(x["image"][i], "image"), (x["real"][i], "real"), *drawn])
        return rows


def _one_channel(image, seed=None):
    """Repeats one color channel of each image, a random one, or green: (B, H, W, 3) float32."""
    image = tf.cast(image, tf.float32)
    if seed is None:
        return tf.repeat(image[..., 1:2], 3, axis=-1)
    chosen = tf.one_hot(integer(seed, 3), 3)[:, None, None]
    return tf.repeat(tf.reduce_sum(image * chosen, axis=-1, keepdims=True), 3, axis=-1)


def _ready(found):
    """Converts predictions to the units of the columns."""
    units = {
        "depth": tf.exp,
        "contours": tf.sigmoid,
        "normals": lambda normals: tf.math.l2_normalize(normals, axis=-1),
    }
    return {name: units.get(name, tf.identity)(values) for name, values in found.items()}


def _check_heads(heads):
    heads = tuple(heads)
    names = [head.column for head in heads]
    if not heads or len(set(names)) < len(names):
        raise ValueError(f"heads must have one or more different columns, got {names}")
    return heads


def _discriminator(channels, units, dtype):
    """Builds the discriminator of positions of a feature map."""
    inputs = keras.Input((channels,), name="position")
    x = inputs
    for _ in range(2):
        x = layers.SpectralNormalization(keras.layers.Dense(units, dtype=dtype))(x)
        x = keras.layers.LeakyReLU(0.2, dtype=dtype)(x)
    x = layers.SpectralNormalization(keras.layers.Dense(1, dtype="float32"))(x)
    return keras.Model([inputs], x, name="discriminator")
