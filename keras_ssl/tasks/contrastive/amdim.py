"""AMDIM: finds the local features of the other view of an image among those of all images."""

import warnings

import keras
import tensorflow as tf

from keras_ssl import encoders, layers, losses
from keras_ssl.arguments import check_fraction, check_integers
from keras_ssl.layers.residual_projection import NearIdentity
from keras_ssl.losses.local import EXCLUDED, local_scores
from keras_ssl.ops import augment, images, recipes
from keras_ssl.ops.random import split, uniform
from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.contrastive.views import cosine, preview
from keras_ssl.training import optimizers


@keras.saving.register_keras_serializable(package="keras_ssl")
class AMDIM(PretextModel):
    """Predicts the local features of one view of an image from the features of its other view.

    The vector of a whole view has to be more similar to every location of the other view than to all
    locations of all other images, on two feature maps. The same is required of a random location of the first
    map. So the vector has to describe what all locations have in common: the content of the image. Thus
    mutual information is maximized between views, and between scales.

    Shortcut: if the locations saw the whole image, each could copy the vector. So the encoder needs small
    receptive fields, as in `encoders.local_resnet`, which the command builds. Other encoders are accepted if
    they have two feature maps with several positions.

    Shortcut: colors reveal which image a view is from, as in SimCLR. So each view gets its own color jitter.
    The flip is drawn once for both views, as in the authors' code.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D) with named stages. The last two maps with
            several positions are used, the smaller one first: 5x5 and 7x7 positions for 32 pixels.
        dimensions: int, of the embeddings; 1024 in the authors' code for CIFAR.
        clip: float, c in c * tanh(score / c), the score of two embeddings.
        penalty: float, weight of the mean squared score.
        shift: float in 0..0.5, the largest shift of a view as a fraction of height and width; None for 0.125,
            or 0 if the recipe crops.
        recipe: augmentation of both views, a Recipe without flip or the name of one: "AMDIM_SMALL" for small
            images; "AMDIM", which crops, for larger ones.
        **kwargs: passed to keras.Model.

    Attributes:
        locations: (int, int), the number of positions of the smaller and of the larger map.

    Shapes:
        x: dict of `views` (B, 2, H, W, 3) float32 in 0..255 and `place` (B, 2) float32 in [0, 1), the random
        location of each view. y: (B,) int64, the ids, which are not used. Prediction: (B, 2, 2 + L1 + L2,
        dimensions) float32 embeddings: of the whole view, of its random location, and of all locations of
        both maps.

    Raises:
        ValueError: the encoder does not have two such maps, `dimensions` is less than 1, `clip` is not
            positive, `penalty` is negative, `shift` is not in 0..0.5, or `recipe` is unknown or flips.

    Warns:
        UserWarning: a convolution of the encoder pads.

    Reference: Bachman, Hjelm & Buchwalter, "Learning Representations by Maximizing Mutual Information Across
    Views", NeurIPS 2019.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.local_resnet((32, 32, 3), width=4)
        >>> task = kssl.tasks.AMDIM(encoder, dimensions=32)
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    min_batch_size = 2
    architecture = staticmethod(encoders.local_resnet)

    def __init__(
        self, encoder, dimensions=256, clip=20.0, penalty=0.05, shift=None, recipe="AMDIM_SMALL",
        **kwargs,
    ):  # fmt: skip
        super().__init__(encoder, **kwargs)
        if recipes.find(recipe).flip:
            raise ValueError(
                f"recipe must have flip=0, since AMDIM mirrors both views alike, got {recipe!r}"
            )
        check_integers(1, dimensions=dimensions)
        self.dimensions, self.recipe = dimensions, recipe
        if shift is None:
            shift = 0.125 if recipes.find(recipe).area == (1.0, 1.0) else 0.0
        self.shift = check_fraction("shift", shift, most=0.5)
        _warn_of_padding(encoder)
        self.levels = _levels(encoder)
        shapes = [output.shape[1:] for output in self.levels.outputs]
        self.locations = tuple(height * width for height, width, _ in shapes[1:])
        loss = losses.MultiscaleInfoNCE(self.locations, clip, penalty)  # checks them
        self.clip, self.penalty = loss.clip, loss.penalty
        self.heads = [
            embedding_head(shape[-1], dimensions, name)
            for shape, name in zip(
                shapes, ("global_head", "first_head", "second_head"), strict=True
            )
        ]

    def pretext(self, batch, seed):
        mirror, place, *seeds = split(seed, 6)
        image = augment.random_shift(batch["image"], mirror, 0, flip=True)
        # Both views in one call, which is traced faster than two.
        both = tf.concat([image, image], axis=0)
        shift, view = tf.concat(seeds[:2], axis=0), tf.concat(seeds[2:], axis=0)
        both = augment.random_shift(both, shift, self.shift, flip=False)
        both = augment.view(both, view, recipes.find(self.recipe))
        views = tf.stack(tf.split(both, 2), axis=1)
        return {"views": views, "place": uniform(place, 2)}, batch["id"]

    def call(self, x, training=False):
        # Both views in one batch, so that they are normalized by the same statistics.
        maps = self.levels(images.fold(x["views"]), training=training)
        vector, first, second = (
            tf.reshape(head(values, training=training), [-1, 2, locations, self.dimensions])
            for head, values, locations in zip(self.heads, maps, (1, *self.locations), strict=True)
        )
        place = tf.cast(x["place"] * self.locations[0], tf.int32)
        location = tf.gather(first, place[..., None], batch_dims=2)
        return tf.concat([vector, location, first, second], axis=2)

    def default_loss(self):
        return losses.MultiscaleInfoNCE(self.locations, self.clip, self.penalty)

    def default_metrics(self):
        arguments = self.locations, self.clip, self.penalty
        return [LocalContrast(*arguments, name=name) for name in ("accuracy", "penalty")]

    def default_optimizer(self, steps, learning_rate=2e-4):
        return optimizers.adam_cosine(learning_rate, steps)

    def preview(self, x, y, y_pred=None):
        # The similarity of the vector of one view and the mean over all locations of the other.
        similarity = None
        if y_pred is not None:
            similarity = cosine(y_pred[:, 0, 0], y_pred[:, 1, 2:].mean(axis=1))
        return preview(x["views"], similarity)


def _warn_of_padding(encoder):
    for layer in encoder._flatten_layers():
        if getattr(layer, "padding", "") == "same" and max(getattr(layer, "kernel_size", (1,))) > 1:
            warnings.warn(
                f"{layer.name!r} pads its input, so that locations may see the whole image and copy the "
                "vector: build the encoder with keras_ssl.encoders.local_resnet",
                stacklevel=3,
            )
            return


def _levels(encoder):
    """Builds a model from images to a (B, 1, 1, D) vector and the last two maps with several positions."""
    maps = encoders.maps(encoder).output.values()
    spatial = [output for output in maps if None in output.shape[1:3] or max(output.shape[1:3]) > 1]
    if len(spatial) < 2 or any(None in output.shape[1:3] for output in spatial):
        sizes = [f"{output.shape[1]}x{output.shape[2]}" for output in maps]
        raise ValueError(
            "encoder must have at least two stages whose maps have several positions and a fixed size, got "
            f"maps of {', '.join(sizes)}: use keras_ssl.encoders.local_resnet"
        )
    larger, smaller = spatial[-2:]
    vector = keras.layers.Reshape((1, 1, encoder.output_shape[-1]), dtype="float32")(encoder.output)
    return keras.Model(encoder.input, [vector, smaller, larger], name="levels")


def embedding_head(inputs, outputs, name):
    """Builds the head of a feature map, from (B, h, w, inputs) to (B, h, w, outputs), in float32.

    It is a residual block of 1x1 convolutions and batch normalization, synchronized over replicas: with the
    statistics of each replica alone, images of the same replica could be recognized. It starts as a
    normalized copy of the features: its last convolution at zero and its shortcut as the identity, if there
    are enough outputs.

    Args:
        inputs: int, channels of the map.
        outputs: int, dimensions of the embedding.
        name: str.

    Returns:
        keras.Model.

    Example:
        >>> embedding_head(16, 32, "head").output_shape
        (None, None, None, 32)
    """

    def convolution(filters, **kwargs):
        return keras.layers.Conv2D(filters, 1, use_bias=False, dtype="float32", **kwargs)

    maps = keras.Input((None, None, inputs))
    x = convolution(outputs, activation="relu", name="hidden")(maps)
    x = convolution(outputs, kernel_initializer="zeros", name="residual")(x)
    shortcut = convolution(outputs, kernel_initializer=_identity_like, name="shortcut")(maps)
    x = keras.layers.Add(dtype="float32")([x, shortcut])
    x = layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, synchronized=True, dtype="float32", name="normalization"
    )(x)
    return keras.Model(maps, x, name=name)


def _identity_like(shape, dtype=None):
    """Initializes a 1x1 convolution by ones on the diagonal and small numbers elsewhere."""
    inputs, outputs = shape[-2:]
    if outputs < inputs:
        return keras.initializers.GlorotUniform()(shape, dtype)
    # Not zero: batch normalization would enlarge the gradient of a constant channel 300 times.
    return tf.reshape(NearIdentity()((inputs, outputs), dtype), shape)


@keras.saving.register_keras_serializable(package="keras_ssl")
class LocalContrast(keras.metrics.MeanMetricWrapper):
    """Measures how well the locations of the same image are found among those of all images.

    `accuracy` measures how often a location has a higher score than all locations of other images. `penalty`
    is the part of the loss that keeps scores small: if it dominates the loss, `clip` is too large.

    Args:
        locations, clip, penalty: as in `losses.MultiscaleInfoNCE`.
        name: str, which of the two is averaged: "accuracy" or "penalty".
        **kwargs: passed to keras.metrics.Metric.

    Shapes:
        y_true: not used. y_pred: as in `losses.MultiscaleInfoNCE`.
    """

    def __init__(self, locations, clip=20.0, penalty=0.05, name="accuracy", **kwargs):
        super().__init__({"accuracy": self.found, "penalty": self.penalized}[name], name, **kwargs)
        self.loss = losses.MultiscaleInfoNCE(locations, clip, penalty)

    def found(self, y_true, y_pred):
        """Returns the fraction of the locations of each image that are found, (B,)."""
        scores, own = local_scores(y_pred, self.loss.locations)
        own, fractions = own[:, :, None], []
        for raw in scores:
            positive = tf.reduce_sum(tf.where(own, raw, 0.0), axis=1)
            negative = tf.reduce_max(tf.where(own, EXCLUDED, raw), axis=[1, 2])
            fractions.append(
                tf.reduce_mean(tf.cast(positive > negative[:, None], tf.float32), axis=1)
            )
        return tf.add_n(fractions) / len(fractions)

    def penalized(self, y_true, y_pred):
        """Returns the penalty of each image, (B,)."""
        return self.loss.penalties(local_scores(y_pred, self.loss.locations)[0])

    def get_config(self):
        config = self.loss.get_config()
        config = {name: config[name] for name in ("locations", "clip", "penalty")}
        return {"name": self.name, "dtype": self.dtype, **config}
