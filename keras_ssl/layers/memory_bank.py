"""Memory bank: an embedding of every image of the data set, as negatives."""

import functools

import keras
import tensorflow as tf

from keras_ssl.arguments import check_fraction, check_integer, check_integers, check_positive
from keras_ssl.training import distribute

STORAGE = ("float32", "bfloat16")


@keras.saving.register_keras_serializable(package="keras_ssl")
class MemoryBank(keras.layers.Layer):
    """Keeps for every image a moving average of the embeddings that the network computed for it.

    An embedding is compared with the bank's row of the same image and with the rows of random other images,
    so that the number of negatives does not depend on the batch. The scores are the log-odds of
    noise-contrastive estimation: ln(N P(i) / m), for an embedding that is either of image i or one of m draws
    from all N images with the probability 1 / N each. P(i) = exp(similarity / t) / Z, and the constant Z is
    estimated from the first batch, as N times the mean of exp(similarity / t), and then kept.

    Rows that are written in an epoch are read only from the next epoch on. Otherwise the positive, which is
    written once per epoch, would always be a row of the last epoch, while more and more negatives were rows
    of the current one. The network could then tell them apart by what all embeddings of an epoch have in
    common, which is a shortcut. A new epoch starts when a batch is written most of whose images were already
    written in this epoch. This batch has been scored before, so its rows were two epochs old; all other rows
    are one epoch old. In an evaluation after the first epoch the rows are still random.

    The bank starts with random unit vectors. On several replicas, each replica writes the embeddings of all
    replicas, so that all have the same bank. It is saved with the task and in checkpoints, not in exports.
    For ImageNet's 1.28 million images with 128 dimensions, the rows to read and the rows to write take 1.3 GB
    on each device together, or half of that in bfloat16; for CIFAR's 50,000 images they take 52 MB. The rows
    are not divided among devices. The bank is written in place; XLA makes a second copy.

    Args:
        size: int N, images in the data set; their ids are 0 to N - 1.
        dimensions: int, length of an embedding.
        negatives: int m, rows drawn in each step, with replacement; all queries of a step share them.
        temperature: float, t.
        momentum: float in [0, 1], of the moving average.
        storage: "float32" or "bfloat16", of the embeddings.
        seed: int, for the initial embeddings and the drawn negatives.
        **kwargs: passed to keras.layers.Layer.

    Raises:
        ValueError: `size`, `dimensions` or `negatives` is less than 1, `temperature` is not positive,
            `momentum` is not in [0, 1], `storage` is unknown, or `seed` is negative.

    Reference: Wu, Xiong, Yu & Lin, "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination", CVPR 2018, section 3.

    Example:
        >>> bank = MemoryBank(size=10, dimensions=2, negatives=5)
        >>> ids, embeddings = tf.constant([3, 7]), tf.constant([[1.0, 0.0], [0.0, 1.0]])
        >>> bank(embeddings[:, None], ids).shape
        TensorShape([2, 1, 6])
        >>> bank.write(ids, embeddings)
    """

    def __init__(
        self, size, dimensions, negatives=4096, temperature=0.07, momentum=0.5, storage="float32",
        seed=0, **kwargs,
    ):  # fmt: skip
        super().__init__(**{"autocast": False, **kwargs})
        check_integers(1, size=size, dimensions=dimensions, negatives=negatives)
        check_integer("seed", seed, 0)
        if storage not in STORAGE:
            raise ValueError(f"storage must be one of {', '.join(STORAGE)}, got {storage!r}")
        self.size, self.dimensions, self.negatives = size, dimensions, negatives
        self.temperature = check_positive("temperature", temperature)
        self.momentum = check_fraction("momentum", momentum)
        self.storage, self.seed = storage, seed
        state = functools.partial(self.add_weight, trainable=False, autocast=False)
        # In even epochs the first `size` rows are read and the others written, in odd ones the reverse.
        self.rows = state((2 * size, dimensions), self._first_rows, storage, name="rows")
        # The last epoch in which an image was written; int64, since GPUs have kernels for it.
        self.written = state((size,), "zeros", "int64", name="written")
        self.epoch = state((), "ones", "int64", name="epoch")
        # ln(Z / N): the logarithm of the mean of exp(similarity / temperature) in the first batch.
        self.log_mean = state((), "zeros", "float32", name="log_mean")
        self.batches = state((), "zeros", "int32", name="batches")
        self.built = True  # or Keras warns when it loads a task with a bank

    def _first_rows(self, shape, dtype):
        rows = tf.random.stateless_normal(shape, (self.seed, -1))  # the draws have 0, 1, ...
        return tf.cast(tf.math.l2_normalize(rows, axis=-1), dtype)

    def read(self, ids):
        """Returns the embeddings of images that were written in the last epoch, without gradient.

        Args:
            ids: (B,) integer tensor.

        Returns:
            (B, dimensions) float32 tensor.
        """
        ids = tf.cast(ids, tf.int64) + self.size * (tf.convert_to_tensor(self.epoch) % 2)
        # Not `tf.gather` of a tensor: TensorFlow would copy the bank in every step.
        return tf.stop_gradient(tf.cast(tf.gather(self.rows.value, ids), tf.float32))

    def call(self, queries, ids, training=False):
        """Computes the log-odds that an embedding is of the image, and not of a random one.

        Args:
            queries: (B, Q, dimensions) float32 tensor of unit vectors, Q for each image.
            ids: (B,) integer tensor, the images.
            training: bool, whether to keep the estimate of Z from the first batch.

        Returns:
            (B, Q, 1 + negatives) float32 tensor: column 0 is for the image, the others for the drawn images,
            with -1e9 where the image itself was drawn, so that the loss of this column is 0.

        Raises:
            ValueError: a query has another length than `dimensions`.
        """
        if len(queries.shape) != 3 or queries.shape[-1] != self.dimensions:
            raise ValueError(
                f"queries must be (B, Q, {self.dimensions}) like the rows of the bank, got {queries.shape}"
            )
        queries, ids = tf.cast(queries, tf.float32), tf.cast(ids, tf.int32)
        batches = tf.convert_to_tensor(self.batches)
        seed = tf.stack([tf.constant(self.seed, tf.int64), tf.cast(batches, tf.int64)])
        drawn = tf.random.stateless_uniform(
            (self.negatives,), seed, maxval=self.size, dtype=tf.int32
        )
        rows = self.read(tf.concat([ids, drawn], 0))
        own, others = tf.split(rows, [tf.shape(ids)[0], self.negatives])
        positive = tf.reduce_sum(queries * own[:, None], axis=-1, keepdims=True)
        scores = tf.concat([positive, tf.tensordot(queries, others, [[2], [1]])], -1)
        scores /= self.temperature
        log_mean = tf.where(batches > 0, tf.convert_to_tensor(self.log_mean), _log_mean(scores))
        if training:
            self.log_mean.assign(log_mean)
        odds = scores - log_mean - tf.math.log(float(self.negatives))
        itself = tf.pad(drawn[None] == ids[:, None], [[0, 0], [1, 0]])
        return tf.where(itself[:, None], -1e9, odds)

    def write(self, ids, embeddings):
        """Updates the moving averages of the embeddings of images, and normalizes them again.

        Write after scoring: otherwise the first batch of an epoch finds its own embeddings.

        Args:
            ids: (B,) integer tensor, the images of this replica, each at most once in the whole batch.
            embeddings: (B, dimensions) float32 tensor of unit vectors.

        Raises:
            ValueError: an embedding has another length than `dimensions`.
        """
        if len(embeddings.shape) != 2 or embeddings.shape[-1] != self.dimensions:
            raise ValueError(
                f"embeddings must be (B, {self.dimensions}) like the rows of the bank, got "
                f"{embeddings.shape}"
            )
        ids = distribute.all_gather(tf.cast(ids, tf.int64))
        new = distribute.all_gather(tf.cast(tf.stop_gradient(embeddings), tf.float32))
        again = tf.gather(self.written.value, ids) == tf.convert_to_tensor(self.epoch)
        # Most, since an image that cannot be read is replaced by another image of the same epoch.
        ends = 2 * tf.math.count_nonzero(again) > tf.size(ids, tf.int64)
        self.epoch.assign_add(tf.cast(ends, tf.int64))
        epoch = tf.convert_to_tensor(self.epoch)
        mixed = self.momentum * self.read(ids) + (1 - self.momentum) * new
        rows = tf.cast(tf.math.l2_normalize(mixed, axis=-1), self.storage)
        # In place: assigning the whole bank would take longer than the step of a small network.
        for state, indices, updates in (
            (self.rows, ids + self.size * ((epoch + 1) % 2), rows),
            (self.written, ids, tf.fill(tf.shape(ids), epoch)),
        ):
            tf.raw_ops.ResourceScatterUpdate(
                resource=state.value.handle, indices=indices, updates=updates
            )
        self.batches.assign_add(1)

    def get_config(self):
        names = ("size", "dimensions", "negatives", "temperature", "momentum", "storage", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _log_mean(scores):
    """Computes ln(mean(exp(score))) over the (B, Q, K) scores of all replicas, without gradient."""
    each = tf.reduce_logsumexp(tf.stop_gradient(scores), axis=[1, 2])
    everyone = distribute.all_gather(each - tf.math.log(tf.cast(tf.size(scores[0]), tf.float32)))
    return tf.reduce_logsumexp(everyone) - tf.math.log(tf.cast(tf.size(everyone), tf.float32))
