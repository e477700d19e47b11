"""CMC of four views: embeds the lightness, the colors, the depth and the normals of an image alike."""

import keras
import tensorflow as tf

from keras_ssl import encoders, layers, losses
from keras_ssl.arguments import check_integer, check_integers
from keras_ssl.ops import augment, depth, lab
from keras_ssl.ops.random import integer, split
from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.contrastive import memory

VIEWS = ("lightness", "colors", "depth", "normals")  # the first one is the core
MIRRORED = (1.0, 1.0, 1.0, 1.0, -1.0, 1.0, 1.0)  # image, depth and normals: right becomes left


@keras.saving.register_keras_serializable(package="keras_ssl")
class CMCDepth(PretextModel):
    """Embeds the lightness of an image closer to its colors, depth and normals than to those of other images.

    As in `CMC`, the views share the content of the image. The lightness, the core view, is compared with each
    of the other views, but these are not compared with each other (the core view paradigm, section 3.3). The
    embedding of the lightness has to contain what it shares with any of them, such as form and distance.

    The halves of `encoder` encode the lightness and the colors; features and export use only them. Depth and
    normals have their own encoders. Each comparison has two terms: the core view is scored against the memory
    bank of the other view, and the other view against the bank of the core view.

    All views are shifted and mirrored alike, and not zoomed: an object would appear nearer while its depth
    stays the same. Normals of a mirrored scene point to the other side.

    Only images of the training set can be evaluated: other images would be compared with the rows of training
    images with the same ids.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D) of two halves, as built by
            `encoders.color_halves`.
        num_images: int N, images in the data set; their ids are 0 to N - 1.
        depth_encoder: functional keras.Model of (B, H, W, 3) maps of `ops.depth.to_image`; by default the
            architecture of `encoder`, untrained, but its halves see the map as it is instead of Lab.
        normals_encoder: such a model, of normals that are scaled to 0..255.
        near, far: float, meters, the range of depth that the depth encoder sees.
        negatives: int, images drawn from the banks in each step.
        temperature: float.
        momentum: float in [0, 1], of the banks.
        dimensions: int, of the embeddings.
        storage: "float32" or "bfloat16", of the banks.
        seed: int, of the banks.
        **kwargs: passed to keras.Model.

    Shapes:
        x: dict of `image`, `depth` and `normals`, (B, H, W, 3) float32 in 0..255, and `id` (B,) int64. y:
        (B,) int64, the ids, which are not used. Prediction: (B, 6, 1 + negatives) float32 log-odds, see
        `layers.MemoryBank`: of the lightness among colors, depth and normals, then of each of these among
        the lightness.

    Raises:
        ValueError: the encoder does not have two halves, an encoder has another input or is used twice, a
            number is out of range, or `storage` is unknown; in `dataset`, there are more images than
            `num_images`.
        tf.errors.InvalidArgumentError: during training, an id is not in 0..N-1.

    Reference: Tian, Krishnan & Isola, "Contrastive Multiview Coding", ECCV 2020, section 4.3.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.color_halves((32, 32, 3), width=4, blocks=(1, 1))
        >>> task = kssl.tasks.CMCDepth(encoder, num_images=32, negatives=16)
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.scenes(32, size=32), batch_size=16), verbose=0)
    """

    needs = ("image", "depth", "normals")
    networks = ("encoder", "depth_encoder", "normals_encoder")
    architecture = staticmethod(encoders.color_halves)
    weight_decay = 1e-4

    def __init__(
        self, encoder, num_images, depth_encoder=None, normals_encoder=None, near=0.5, far=100.0,
        negatives=4096, temperature=0.07, momentum=0.5, dimensions=128, storage="float32", seed=0, **kwargs,
    ):  # fmt: skip
        super().__init__(encoder, **kwargs)
        check_integers(2, num_images=num_images)
        check_integers(1, dimensions=dimensions)
        check_integer("seed", seed, 0)
        encoders.check_halves(encoder)
        depth.check_range(near, far)
        self.num_images, self.negatives, self.temperature = num_images, negatives, temperature
        self.near, self.far, self.momentum, self.dimensions = near, far, momentum, dimensions
        self.storage, self.seed = storage, seed
        self.depth_encoder = _like(encoder, depth_encoder, "depth_encoder")
        self.normals_encoder = _like(encoder, normals_encoder, "normals_encoder")
        if (
            encoder in (depth_encoder, normals_encoder)
            or self.depth_encoder is self.normals_encoder
        ):
            raise ValueError(
                "encoder, depth_encoder and normals_encoder must differ, got one network twice"
            )
        half = encoder.output_shape[-1] // 2
        sizes = (
            half,
            half,
            *(e.output_shape[-1] for e in (self.depth_encoder, self.normals_encoder)),
        )
        self.heads = [
            layers.projection(size, dimensions, 1, name=f"{view}_head")
            for size, view in zip(sizes, VIEWS, strict=True)
        ]
        self.banks = [
            layers.MemoryBank(
                num_images, dimensions, negatives, temperature, momentum, storage,
                len(VIEWS) * seed + k, name=f"{view}_bank",
            )
            for k, view in enumerate(VIEWS)
        ]  # fmt: skip

    def pretext(self, batch, seed):
        shift, mirror = split(seed, 2)
        columns = [tf.cast(batch[name], tf.float32) for name in ("image", "depth", "normals")]
        both = augment.random_shift(tf.concat(columns, axis=-1), shift, 0.125, flip=False)
        mirrored = integer(mirror, 2)[:, None, None, None] == 1
        both = tf.where(mirrored, both[:, :, ::-1] * MIRRORED, both)
        image, distance, normals = tf.split(both, [3, 1, 3], axis=-1)
        # No normal has the color (0, 0, 0).
        normals = tf.where(tf.math.is_finite(normals), tf.round(127.5 * (normals + 1)), 0.0)
        ids = memory.known_ids(batch, self.num_images)
        views = {"image": image, "depth": depth.to_image(distance, self.near, self.far)}
        return {**views, "normals": normals, "id": ids}, ids

    def call(self, x, training=False):
        halves = tf.split(self.encoder(x["image"], training=training), 2, axis=-1)
        geometry = [
            self.depth_encoder(x["depth"], training=training),
            self.normals_encoder(x["normals"], training=training),
        ]
        core, *others = (
            tf.math.l2_normalize(head(features), axis=-1)
            for head, features in zip(self.heads, [*halves, *geometry], strict=True)
        )
        asked = [bank(core[:, None], x["id"], training=training) for bank in self.banks[1:]]
        asked.append(self.banks[0](tf.stack(others, axis=1), x["id"], training=training))
        if training:
            for bank, embedding in zip(self.banks, [core, *others], strict=True):
                bank.write(x["id"], embedding)
        return tf.concat(asked, axis=1)

    def dataset(self, images, *args, **kwargs):
        made = super().dataset(images, *args, **kwargs)  # which checks them
        memory.check_number(self.num_images, images)
        return made

    dataset.__doc__ = PretextModel.dataset.__doc__

    def default_loss(self):
        return losses.InfoNCE(temperature=1.0, weights=(1.0,) * (2 * len(VIEWS) - 2))

    def default_metrics(self):
        return [memory.BankContrast()]

    def default_optimizer(self, steps, learning_rate=0.03):
        return super().default_optimizer(steps, learning_rate)

    def preview(self, x, y, y_pred=None):
        rows = []
        shown = *lab.lightness_and_colors(x["image"]), x["depth"], x["normals"]
        for k, pixels in enumerate(zip(*shown, strict=True)):
            odds = [""] * 3 if y_pred is None else [f", log-odds {v:.1f}" for v in y_pred[k, :3, 0]]
            captions = [view + more for view, more in zip(VIEWS, ["", *odds], strict=True)]
            rows.append(list(zip(pixels, captions, strict=True)))
        return rows


def _like(encoder, other, name):
    """Returns `other`, or else an untrained `encoder` for maps; raises ValueError if its input differs."""
    if other is None:
        return keras.models.clone_model(encoder, clone_function=_without_lab, recursive=True)
    encoders.check_encoder(other)
    if other.input_shape != encoder.input_shape:
        raise ValueError(
            f"{name} must take {encoder.input_shape[1:]} as the encoder does, got {other.input_shape[1:]}"
        )
    return other


def _without_lab(layer):
    # A depth map is gray, so a half for colors would see nothing; normals have no lightness.
    if isinstance(layer, layers.Lab):
        return keras.layers.Rescaling(1 / 127.5, offset=-1, dtype=layer.dtype_policy)
    return type(layer).from_config(layer.get_config())
