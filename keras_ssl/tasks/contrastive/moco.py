"""MoCo: finds the key of the other view of an image among a queue of keys of earlier batches."""

import keras
import tensorflow as tf

from keras_ssl import layers, losses, metrics
from keras_ssl.arguments import check_integers, check_positive
from keras_ssl.ops import recipes
from keras_ssl.ops.random import split, uniform
from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.contrastive.views import preview, two_views
from keras_ssl.training import distribute
from keras_ssl.training.momentum import check_momentum, follow, twin


@keras.saving.register_keras_serializable(package="keras_ssl")
class MoCo(PretextModel):
    """Finds the other view of an image among the keys of earlier batches, which a queue keeps.

    The query is the embedding of one view; its positive is the key of the other view, its negatives are all
    keys in the queue. So the number of negatives does not depend on the batch. The keys come from a momentum
    encoder, which changes so slowly that old keys remain comparable with new ones (section 3.2).

    Shortcut: a query and its key are normalized by the statistics of the same batch, the keys in the queue
    by those of others, which would give the positive away. So the keys are computed in random groups of
    images that share statistics with no query (shuffled batch normalization, section 3.3). In the paper each
    GPU is a group; here the number of groups does not depend on the number of devices.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D).
        queue: int, number of keys in the queue; 65536 for ImageNet.
        momentum: float in [0, 1], of the key encoder; 0.999 for ImageNet.
        temperature: float; 0.07 in version 1, 0.2 in version 2.
        dimensions: int, of the embedding.
        depth: int, dense layers of the head: 1 in version 1, 2 in version 2.
        symmetric: bool, whether each view is also the query for the other, at twice the cost.
        groups: int, groups of keys with their own batch statistics; 1 leaves the shortcut open.
        recipe: augmentation of both views, a Recipe or the name of one: "MOCO_SMALL" for small images,
            "MOCO_V1" or "MOCO_V2" for images of about 224 pixels.
        **kwargs: passed to keras.Model.

    Shapes:
        x: dict of `views` (B, 2, H, W, 3) float32 in 0..255 and `order` (B,) float32, random numbers for
        the groups. y: (B,) int64, the ids, which are not used. Prediction: (B, Q, 3) float32 cosine
        similarities of Q queries, 2 if `symmetric` and else 1: with the positive, the soft maximum over the
        queue, t * log(sum(exp(similarity / t))) with the temperature t, and the maximum.

    Raises:
        ValueError: `momentum` is not in [0, 1], `temperature` is not positive, a number is less than 1, or
            `recipe` is unknown; in `dataset`, a batch has more images than the queue has keys.

    Reference: He, Fan, Wu, Xie & Girshick, "Momentum Contrast for Unsupervised Visual Representation
    Learning", CVPR 2020; Chen, Fan, Girshick & He, "Improved Baselines with Momentum Contrastive Learning",
    2020 (version 2).

    Example:
        >>> import keras_ssl as kssl
        >>> task = kssl.tasks.MoCo(kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1, 1)), queue=256)
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    weight_decay = 5e-4

    def __init__(
        self, encoder, queue=4096, momentum=0.99, temperature=0.1, dimensions=128, depth=1,
        symmetric=False, groups=8, recipe="MOCO_SMALL", **kwargs,
    ):  # fmt: skip
        super().__init__(encoder, **kwargs)
        recipes.find(recipe)
        check_integers(1, queue=queue, dimensions=dimensions, depth=depth, groups=groups)
        self.temperature = check_positive("temperature", temperature)
        self.momentum = check_momentum(momentum)
        self.queue, self.dimensions, self.depth = queue, dimensions, depth
        self.symmetric, self.groups, self.recipe = symmetric, groups, recipe
        self.head = layers.projection(encoder.output_shape[-1], dimensions, depth, name="head")
        self.key_encoder, self.key_head = _of_groups(twin(encoder)), twin(self.head)
        self.earlier = layers.Queue(queue, dimensions, name="queue")

    def pretext(self, batch, seed):
        views, order = split(seed, 2)
        views = two_views(batch["image"], views, self.recipe, self.recipe)
        return {"views": views, "order": uniform(order, 1)[:, 0]}, batch["id"]

    def call(self, x, training=False):
        if training:
            follow(self.key_encoder, self.encoder, self.momentum)
            follow(self.key_head, self.head, self.momentum)
        views, earlier = tf.unstack(x["views"], 2, axis=1), self.earlier.keys()
        pairs = [views, views[::-1]] if self.symmetric else [views]
        similarities, keys = [], []
        for first, second in pairs:
            query = self.head(self.encoder(first, training=training), training=training)
            query = tf.math.l2_normalize(query, axis=-1)
            keys.append(tf.math.l2_normalize(self._keys(second, x["order"]), axis=-1))
            positive = tf.reduce_sum(query * keys[-1], axis=-1)
            # Over a long queue each pass takes as long as the network: so not all similarities are returned.
            negative = tf.matmul(query / self.temperature, earlier, transpose_b=True)
            soft, largest = tf.reduce_logsumexp(negative, axis=-1), tf.reduce_max(negative, axis=-1)
            soft, largest = (self.temperature * x for x in (soft, tf.stop_gradient(largest)))
            similarities.append(tf.stack([positive, soft, largest], axis=-1))
        if training:
            # Once, after all similarities: the positive must not be among the negatives.
            self.earlier.append(tf.reshape(tf.stack(keys, axis=1), [-1, self.dimensions]))
        return tf.stack(similarities, axis=1)

    def _keys(self, images, order):
        """Computes the keys of this replica's images, in random groups of those of all replicas."""
        everyone, order = distribute.all_gather(images), tf.argsort(distribute.all_gather(order))
        number, replicas, index = tf.shape(everyone)[0], 1, 0
        context = tf.distribute.get_replica_context()
        if context is not None:
            replicas, index = context.num_replicas_in_sync, context.replica_id_in_sync_group
        # Each replica computes some of the groups. The last ones are filled up with images of the first.
        own, size = -(-self.groups // replicas), -(-number // self.groups)
        places = (index * own + tf.range(own))[:, None] * size + tf.range(size)
        rows = tf.gather(order, places % number)

        def next_group(k, keys):
            group = tf.gather(everyone, rows[k])
            return k + 1, keys.write(k, self.key_head(self.key_encoder(group, training=True)))

        # Not tf.map_fn, which leaves a changed variable scope behind after an error.
        keys = tf.TensorArray(tf.float32, own, element_shape=(None, self.dimensions))
        _, keys = tf.while_loop(
            lambda k, keys: k < own, next_group, (0, keys), parallel_iterations=1
        )
        keys = keys.stack()
        keys = distribute.all_gather(tf.reshape(keys, [-1, self.dimensions]))
        mine = distribute.first_row(images) + tf.range(tf.shape(images)[0])
        return tf.stop_gradient(tf.gather(keys, tf.gather(tf.argsort(order), mine)))

    def dataset(self, images, batch_size, *args, **kwargs):
        if isinstance(batch_size, int) and batch_size > self.queue:
            raise ValueError(
                f"batch_size must be at most {self.queue}, the length of the queue, got {batch_size}: choose "
                "a larger queue"
            )
        return super().dataset(images, batch_size, *args, **kwargs)

    dataset.__doc__ = PretextModel.dataset.__doc__

    def default_loss(self):
        return QueueInfoNCE(self.temperature)

    def default_metrics(self):
        return [QueueContrast(name) for name in metrics.CONTRAST]

    def preview(self, x, y, y_pred=None):
        return preview(x["views"], None if y_pred is None else y_pred[:, 0, 0])


def _of_groups(network):
    """Restricts the batch normalization of a key encoder to the statistics of each group.

    Moving averages would depend on the order of the groups, and are not used.
    """
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum, layer.synchronized = 1.0, False
        elif isinstance(layer, keras.Model):
            _of_groups(layer)
    return network


@keras.saving.register_keras_serializable(package="keras_ssl")
class QueueInfoNCE(losses.InfoNCE):
    """`losses.InfoNCE` of MoCo's predictions: the soft maximum has the same loss as all its negatives."""

    def call(self, y_true, y_pred):
        return super().call(y_true, y_pred[..., :2])


@keras.saving.register_keras_serializable(package="keras_ssl")
class QueueContrast(metrics.Contrast):
    """`metrics.Contrast` of MoCo's predictions."""

    def largest(self, y_true, y_pred):
        return y_pred[..., 0], y_pred[..., 2]
