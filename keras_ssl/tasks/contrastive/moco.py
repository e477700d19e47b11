"""MoCo: finds the key of the other view of an image among a queue of keys of earlier batches."""

import warnings

import keras
import tensorflow as tf

from keras_ssl import layers, losses, metrics
from keras_ssl.arguments import (
    check_bool,
    check_fraction,
    check_integers,
    check_positive,
    is_integer,
)
from keras_ssl.layers.batch_normalization import grouped
from keras_ssl.ops import recipes
from keras_ssl.ops.random import split, uniform
from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.contrastive.views import preview, two_views
from keras_ssl.training import distribute
from keras_ssl.training.momentum import follow, twin


@keras.saving.register_keras_serializable(package="keras_ssl")
class MoCo(PretextModel):
    """Finds the other view of an image among the keys of earlier batches, which a queue keeps.

    The query is the embedding of one view; its positive is the key of the other view, its negatives are all
    keys in the queue. So the number of negatives does not depend on the batch. The keys come from a momentum
    encoder, which changes so slowly that old keys remain comparable with new ones (section 3.2).

    Shortcut: a query and its key are normalized by the statistics of the same batch, and the keys in the
    queue by those of other batches, which would reveal the positive. So in training, queries and keys are
    normalized in groups of images. The groups of the keys are random, so that a key shares its statistics
    with few of the images that its query shares them with (shuffled batch normalization, section 3.3). In the
    paper each GPU is a group; here the number of groups does not depend on the number of devices. The
    encoder's normalization has to be `layers.BatchNormalization`, as in `encoders.resnet`; Keras' batch
    normalization cannot be split into groups.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D).
        queue: int, number of keys in the queue; 65536 for ImageNet.
        momentum: float in [0, 1], of the key encoder; 0.999 for ImageNet.
        temperature: float; 0.07 in version 1, 0.2 in version 2.
        dimensions: int, of the embedding.
        depth: int, dense layers of the head: 1 in version 1, 2 in version 2.
        symmetric: bool, whether each view is also the query for the other, at twice the cost.
        groups: int, parts of the batch with their own batch statistics, each of several images; 1 leaves the
            shortcut open. Each of R replicas computes groups / R of them, rounded up.
        recipe: augmentation of both views, a Recipe or the name of one: "MOCO_SMALL" for small images,
            "MOCO_V1" or "MOCO_V2" for images of about 224 pixels.
        **kwargs: passed to keras.Model.

    Shapes:
        x: dict of `views` (B, 2, H, W, 3) float32 in 0..255 and `order` (B,) float32, random numbers for the
        groups. y: (B,) int64, the ids, which are not used. Prediction: (B, Q, 3) float32 cosine similarities
        of Q queries (2 if `symmetric`, else 1): with the positive, the soft maximum over the queue, t *
        log(sum(exp(similarity / t))) with the temperature t, and the maximum over the queue.

    Raises:
        ValueError: `momentum` is not in [0, 1], `temperature` is not positive, a number is less than 1,
            `symmetric` is not a bool, or `recipe` is unknown; in `dataset`, a batch gives more keys than the
            queue holds.

    Warns:
        UserWarning: the encoder has a batch normalization that cannot be split into groups.

    Reference: He, Fan, Wu, Xie & Girshick, "Momentum Contrast for Unsupervised Visual Representation
    Learning", CVPR 2020; Chen, Fan, Girshick & He, "Improved Baselines with Momentum Contrastive Learning",
    2020 (version 2).

    Example:
        >>> import keras_ssl as kssl
        >>> task = kssl.tasks.MoCo(kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1, 1)), queue=256)
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    weight_decay = 5e-4  # of the authors' notebook for CIFAR-10; 1e-4 for ImageNet
    min_batch_size = 2  # all groups of a single image are the same

    def __init__(
        self, encoder, queue=4096, momentum=0.99, temperature=0.1, dimensions=128, depth=1,
        symmetric=False, groups=8, recipe="MOCO_SMALL", **kwargs,
    ):  # fmt: skip
        super().__init__(encoder, **kwargs)
        recipes.find(recipe)
        check_integers(1, queue=queue, dimensions=dimensions, depth=depth, groups=groups)
        self.temperature = check_positive("temperature", temperature)
        self.momentum = check_fraction("momentum", momentum)
        self.queue, self.dimensions, self.depth = queue, dimensions, depth
        self.symmetric = check_bool("symmetric", symmetric)
        self.groups, self.recipe = groups, recipe
        self.head = layers.projection(encoder.output_shape[-1], dimensions, depth, name="head")
        self.key_encoder, self.key_head = twin(encoder), twin(self.head)
        self.earlier = layers.Queue(queue, dimensions, name="queue")
        if groups > 1:
            _warn_of_whole_batches(encoder)

    def pretext(self, batch, seed):
        views, order = split(seed, 2)
        views = two_views(batch["image"], views, self.recipe, self.recipe)
        return {"views": views, "order": uniform(order, 1)[:, 0]}, batch["id"]

    def call(self, x, training=False):
        return self.contrast(x, training)[1]

    def contrast(self, x, training=False):
        """Returns the queries of the first view, (B, dimensions) unit vectors, and the prediction."""
        if training:
            follow(self.key_encoder, self.encoder, self.momentum)
            follow(self.key_head, self.head, self.momentum)
        views = tf.unstack(x["views"], 2, axis=1)
        pairs = [views, views[::-1]] if self.symmetric else [views]
        similarities, queries, keys = [], [], []
        for first, second in pairs:
            queries.append(tf.math.l2_normalize(self._queries(first, training), axis=-1))
            keys.append(tf.math.l2_normalize(self._keys(second, x["order"]), axis=-1))
            positive = tf.reduce_sum(queries[-1] * keys[-1], axis=-1)
            soft, largest = self.earlier.soft_maximum(queries[-1], self.temperature)
            similarities.append(tf.stack([positive, self.temperature * soft, largest], axis=-1))
        if training:
            # Once, after all similarities: the positive must not be among the negatives.
            self.earlier.append(tf.reshape(tf.stack(keys, axis=1), [-1, self.dimensions]))
        return queries[0], tf.stack(similarities, axis=1)

    def _queries(self, images, training):
        """Computes the queries of this replica's images; in training, in groups in the order of the batch."""
        if not training or self.groups == 1:
            return self.head(self.encoder(images, training=training), training=training)
        own, number = self._own_groups()[0], tf.shape(images)[0]
        # The last group is filled up with the first images; their second embeddings are not used.
        images = tf.gather(images, tf.range(own * -(-number // own)) % number)
        with grouped(own, rows=number):
            return self.head(self.encoder(images, training=True), training=True)[:number]

    def _keys(self, images, order):
        """Computes the keys of this replica's images, in random groups of the images of all replicas."""
        everyone, order = distribute.all_gather(images), tf.argsort(distribute.all_gather(order))
        # Each replica computes some of the groups. The last groups are filled up with images of the first
        # ones.
        (own, index), number = self._own_groups(), tf.shape(everyone)[0]
        size = -(-number // self.groups)
        places = (index * own * size + tf.range(own * size)) % number
        with grouped(own, moves=False):
            group = tf.gather(everyone, tf.gather(order, places))
            keys = self.key_head(self.key_encoder(group, training=True))
        keys = distribute.all_gather(keys)
        mine = distribute.first_row(images) + tf.range(tf.shape(images)[0])
        return tf.stop_gradient(tf.gather(keys, tf.gather(tf.argsort(order), mine)))

    def _own_groups(self):
        """Returns how many groups each replica computes, and the index of this replica."""
        context = tf.distribute.get_replica_context()
        if context is None:
            return self.groups, 0
        own = -(-self.groups // context.num_replicas_in_sync)
        return own, context.replica_id_in_sync_group

    def dataset(self, images, batch_size, *args, **kwargs):
        keys = 1 + self.symmetric  # per image
        if is_integer(batch_size) and keys * int(batch_size) > self.queue:
            raise ValueError(
                f"batch_size must be at most {self.queue // keys}, since each image adds {keys} of "
                f"{self.queue} keys to the queue, got {batch_size}: choose a larger queue"
            )
        return super().dataset(images, batch_size, *args, **kwargs)

    dataset.__doc__ = PretextModel.dataset.__doc__

    def default_loss(self):
        return QueueInfoNCE(self.temperature)

    def default_metrics(self):
        return [QueueContrast(name) for name in metrics.CONTRAST]

    def default_optimizer(self, steps, learning_rate=0.3):
        return super().default_optimizer(steps, learning_rate)

    def preview(self, x, y, y_pred=None):
        return preview(x["views"], None if y_pred is None else y_pred[:, 0, 0])


def _warn_of_whole_batches(encoder):
    for layer in encoder._flatten_layers():
        ours = isinstance(layer, layers.BatchNormalization)
        if not isinstance(layer, keras.layers.BatchNormalization) or (
            ours and layer.supported(len(layer.input.shape))
        ):
            continue
        mend = (
            "with float32 variables, the last axis and no renorm"
            if ours
            else "with keras_ssl.layers.BatchNormalization, which has the same weights and can be split into "
            "groups"
        )
        warnings.warn(
            f"{layer.name!r} normalizes the queries over the whole batch, whose statistics give the "
            f"positive away: build the encoder {mend}",
            stacklevel=3,
        )
        return


@keras.saving.register_keras_serializable(package="keras_ssl")
class QueueInfoNCE(losses.InfoNCE):
    """`losses.InfoNCE` for MoCo's predictions: the soft maximum gives the same loss as all its negatives."""

    def call(self, y_true, y_pred):
        return tf.reduce_mean(super().call(y_true, y_pred[..., :2]), axis=-1)


@keras.saving.register_keras_serializable(package="keras_ssl")
class QueueContrast(metrics.Contrast):
    """`metrics.Contrast` for MoCo's predictions."""

    def largest(self, y_true, y_pred):
        return y_pred[..., 0], y_pred[..., 2]
