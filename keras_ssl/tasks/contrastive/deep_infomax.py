"""Deep InfoMax: finds the feature map of the image that a code was computed from."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_ssl import encoders, layers, losses, metrics
from keras_ssl.arguments import check_integer, check_integers, check_not_negative
from keras_ssl.losses.infomax import image_scores
from keras_ssl.ops import augment, recipes
from keras_ssl.ops.random import split, uniform
from keras_ssl.training import adversarial as adversary
from keras_ssl.training import optimizers

STAGE = 2  # whose map has 7x7 positions that see 8x8 pixels, for 32x32 pixels and `local_resnet`
HIDDEN = (1000, 200)  # widths of the prior's discriminator (appendix A)


@keras.saving.register_keras_serializable(package="keras_ssl")
class DeepInfoMax(adversary.AdversarialModel):
    """Maximizes a bound of the mutual information of an image's code and its feature map.

    The code summarizes the whole image, and each position of a feature map summarizes a part of it. To
    distinguish the positions of its own image from those of all other images in the batch, the code has to
    contain what all parts have in common: the object, rather than the texture of a single place. No
    augmentation is needed, since the two views of an image are the whole and its parts.

    - *Local term* (`beta`): the code versus each position of the map, averaged over the positions. It gives
      better features than the global term (section 4.2 of the paper).
    - *Global term* (`alpha`): the code versus the whole map. Anything that distinguishes images can satisfy
      it, even if it is irrelevant, such as noise.
    - *Prior* (`gamma`): a discriminator distinguishes sigmoid(code) from uniform random numbers, and the
      encoder learns to fool it. So the units of the code use their whole range, independently of each other.

    Shortcut: positions that see the whole image could copy the code. So the command builds
    `encoders.local_resnet`, whose second stage sees 8 pixels; the map in the paper sees 10.

    The features come from the encoder; the code, a dense layer on top of them, is used for training only.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D), with named stages.
        bound: "JSD", "InfoNCE" or "DV": see `losses.InfoMax`. InfoNCE needs larger batches than JSD, and DV
            does not keep scores from growing.
        alpha: float, weight of the global term; it needs images of fixed size.
        beta: float, weight of the local term.
        gamma: float, weight of the prior; 0 for no discriminator.
        stage: int, number of the stage whose map is used, from 1; by default 2, or 1 if there is only one.
        dimensions: int, length of the code.
        units: int, length of the embeddings that are compared, at least `dimensions`; 2048 in the paper.
        recipe: augmentation, a Recipe or the name of one, such as "SIMCLR_SMALL"; None for no augmentation,
            as in the paper for CIFAR-10.
        **kwargs: passed to keras.Model.

    Shapes:
        x: dict of `image` (B, H, W, C) float32 in 0..255 and `prior` (B, dimensions) float32, uniform random
        numbers. y: (B,) int64, the ids, which are not used. Prediction: (B, R, units) float32, the code,
        followed by zeros; if `alpha` is not 0, a query for the whole map and the key of the map; if `beta` is
        not 0, a query for the positions and the keys of all positions.

    Raises:
        ValueError: `bound` or `recipe` is unknown; a weight is negative, or `alpha` and `beta` are both 0;
            the encoder has no such `stage`, or no named stages; a number is less than 1; `units` is less than
            `dimensions`; with `alpha`, the size of the map is not fixed.

    Reference: Hjelm, Fedorov, Lavoie-Marchildon, Grewal, Bachman, Trischler & Bengio, "Learning Deep
    Representations by Mutual Information Estimation and Maximization", ICLR 2019.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.local_resnet((32, 32, 3), width=4)
        >>> task = kssl.tasks.DeepInfoMax(encoder)
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    min_batch_size = 2
    architecture = staticmethod(encoders.local_resnet)

    def __init__(
        self, encoder, bound="JSD", alpha=0.0, beta=1.0, gamma=0.1, stage=None, dimensions=64, units=256,
        recipe=None, **kwargs,
    ):  # fmt: skip
        super().__init__(encoder, check_not_negative("gamma", gamma), task_weight=1.0, **kwargs)
        self.gamma = self.adversarial
        self.alpha, self.beta = check_not_negative("alpha", alpha), check_not_negative("beta", beta)
        if not (alpha or beta):
            raise ValueError(
                "alpha or beta must be positive, got 0 for both: nothing would be compared"
            )
        losses.InfoMax(bound)  # raises if it is unknown
        check_integers(1, dimensions=dimensions, units=units)
        if units < dimensions:
            raise ValueError(f"units must be at least dimensions, {dimensions}, got {units}")
        if recipe is not None:
            recipes.find(recipe)
        self.bound, self.stage, self.dimensions, self.units = bound, stage, dimensions, units
        self.recipe = recipe
        feature_map = _map_of(encoder, stage)
        self.map_and_features = keras.Model(encoder.input, [feature_map, encoder.output])
        self.code = keras.layers.Dense(dimensions, dtype="float32", name="code")
        self.code.build(encoder.output_shape)
        # Each term has a head for its query, the code, and one for its keys.
        if self.alpha:
            if None in feature_map.shape[1:]:
                raise ValueError(
                    f"alpha must be 0 for a map of the shape {feature_map.shape}, which cannot be "
                    "flattened: create the encoder with the height and width of the images"
                )
            self.global_heads = self._heads(math.prod(feature_map.shape[1:]), "global")
        if self.beta:
            self.local_heads = self._heads(feature_map.shape[-1], "local")
        if self.gamma:
            self.discriminator = _discriminator(dimensions, self.dtype_policy)

    def _heads(self, channels, name):
        # Normalized keys limit the scores. Codes are not normalized: nearly equal before training, they would
        # be blown up.
        return [
            layers.residual_projection(self.dimensions, self.units, False, name=f"{name}_query"),
            layers.residual_projection(channels, self.units, name=f"{name}_key"),
        ]

    def pretext(self, batch, seed):
        view, prior = split(seed, 2)
        image = tf.cast(batch["image"], tf.float32)
        if self.recipe is not None:
            image = augment.view(image, view, recipes.find(self.recipe))
        return {"image": image, "prior": uniform(prior, self.dimensions)}, batch["id"]

    def call(self, x, training=False):
        feature_map, features = self.map_and_features(x["image"], training=training)
        code = self.code(features)
        predicted = [tf.pad(code, [[0, 0], [0, self.units - self.dimensions]])[:, None]]
        terms = []
        if self.alpha:
            whole = tf.reshape(feature_map, [-1, 1, 1, math.prod(feature_map.shape[1:])])
            terms.append((self.global_heads, whole))
        if self.beta:
            terms.append((self.local_heads, feature_map))
        for heads, keys in terms:
            for head, inputs in zip(heads, (code[:, None, None], keys), strict=True):
                z = head(inputs, training=training)
                predicted.append(tf.reshape(z, [tf.shape(z)[0], -1, self.units]))
        return tf.concat(predicted, axis=1)

    def discriminator_inputs(self, x, y, y_pred):
        code = y_pred[:, 0, : self.dimensions]
        return [x["prior"]], [tf.sigmoid(code)]

    def default_loss(self):
        return WeightedInfoMax(self.bound, self.alpha, self.beta)

    def default_metrics(self):
        shown = [MapAccuracy(self._first())]
        if self.bound == "JSD":  # the other bounds do not change if a number is added to all scores
            shown.append(Divergence(self._first()))
        return shown

    def _first(self):
        """Returns the row of the prediction where the term starts that metrics and previews show."""
        return 3 if self.alpha and self.beta else 1

    def default_optimizer(self, steps, learning_rate=1e-3):
        return optimizers.adam_cosine(learning_rate, steps)

    def preview(self, x, y, y_pred=None):
        images = x["image"]
        if y_pred is None:
            return [[(image, "image")] for image in images]
        rows, query, keys = [], y_pred[:, self._first()], y_pred[:, self._first() + 1 :]
        scores = query @ keys.mean(axis=1).T
        for i, image in enumerate(images):
            row = [(image, f"own map: {scores[i, i]:.1f}")]
            others = np.delete(np.arange(len(images)), i)
            if len(others):
                best = others[scores[i, others].argmax()]
                row.append((images[best], f"best other: {scores[i, best]:.1f}"))
            rows.append(row)
        return rows


def _map_of(encoder, stage):
    """Returns the symbolic output of a stage; None for the default."""
    maps = list(encoders.maps(encoder).output.values())
    if stage is None:
        return maps[:STAGE][-1]
    check_integer("stage", stage, 1)
    if stage > len(maps):
        raise ValueError(f"stage must be at most {len(maps)}, the encoder's last, got {stage}")
    return maps[stage - 1]


def _discriminator(dimensions, dtype):
    """Builds the discriminator of codes and uniform random numbers, which are in 0..1."""
    inputs = keras.Input((dimensions,), name="code")
    x = keras.layers.Rescaling(2.0, offset=-1.0, dtype="float32")(inputs)
    for width in HIDDEN:
        x = layers.SpectralNormalization(keras.layers.Dense(width, dtype=dtype))(x)
        x = keras.layers.ReLU(dtype=dtype)(x)
    x = layers.SpectralNormalization(keras.layers.Dense(1, dtype="float32"))(x)
    return keras.Model([inputs], x, name="discriminator")


@keras.saving.register_keras_serializable(package="keras_ssl")
class WeightedInfoMax(losses.InfoMax):
    """Computes the weighted sum of `losses.InfoMax` for the global and the local term of Deep InfoMax."""

    def __init__(self, bound="JSD", alpha=0.0, beta=1.0, **kwargs):
        super().__init__(bound, **kwargs)
        self.alpha, self.beta = alpha, beta

    def call(self, y_true, y_pred):
        terms, value = y_pred[:, 1:], 0.0
        if self.alpha:
            value += self.alpha * super().call(y_true, terms[:, :2])
            terms = terms[:, 2:]
        if self.beta:
            value += self.beta * super().call(y_true, terms)
        return value

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha, "beta": self.beta}


@keras.saving.register_keras_serializable(package="keras_ssl")
class MapAccuracy(metrics.Contrast):
    """Measures how often a code has a higher mean score with its own map than with any other in the batch.

    Args:
        first: int, row of the prediction where the query is; the keys follow.
        **kwargs: passed to metrics.Contrast.
    """

    def __init__(self, first=1, **kwargs):
        super().__init__(**{"name": "accuracy", **kwargs})
        self.first = first

    def largest(self, y_true, y_pred):
        scores, own = image_scores(y_pred[:, self.first], y_pred[:, self.first + 1 :])
        scores = tf.reduce_mean(scores, axis=-1)
        values = tf.where(own, scores, -float("inf")), tf.where(own, -float("inf"), scores)
        return [tf.reduce_max(value, axis=1) for value in values]

    def get_config(self):
        return {**super().get_config(), "first": self.first}


@keras.saving.register_keras_serializable(package="keras_ssl")
class Divergence(keras.metrics.MeanMetricWrapper):
    """Estimates the Jensen-Shannon divergence of matching and other pairs in nats: 0 at chance, up to log 2.

    The estimate is a lower bound for any critic, and negative for a bad critic. It is not the mutual
    information.

    Args:
        first: int, row of the prediction where the query is; the keys follow.
        name: str.
        **kwargs: passed to keras.metrics.Metric.
    """

    def __init__(self, first=1, name="divergence", **kwargs):
        loss = losses.InfoMax("JSD")
        super().__init__(lambda y_true, y: -loss.call(y_true, y[:, first:]) / 2, name, **kwargs)
        self.first = first

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype, "first": self.first}
