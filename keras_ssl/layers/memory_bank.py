"""Memory bank: an embedding of every image of the data set, as negatives."""

import functools

import keras
import tensorflow as tf

from keras_ssl.arguments import check_fraction, check_integer, check_integers, check_positive
from keras_ssl.training import distribute

STORAGE = ("float32", "bfloat16")


@keras.saving.register_keras_serializable(package="keras_ssl")
class MemoryBank(keras.layers.Layer):
    """Keeps an embedding of every image, a moving average of those that the network computed for it.

    An embedding is compared with the one that the bank has of the same image and with those of random other
    images, so that the number of negatives does not depend on the batch. The scores are those of
    noise-contrastive estimation: the log-odds ln(N P(i) / m) that an embedding is of image i, and not one
    of m draws from all N images with the probability 1 / N each. P(i) = exp(similarity / t) / Z, and the
    constant Z is estimated from the first batch, as N times the mean of exp(similarity / t), and then kept.

    What an epoch writes is read from the next one on. Otherwise the positive, which comes once in an epoch,
    would always be a row of the last epoch, while ever more of the negatives are of this one: the network can
    tell them apart by what all embeddings of an epoch have in common, a shortcut. An epoch ends when a batch
    is written most of whose images it has written before, after they were scored. So the rows are one
    epoch old, those of the first batch two; after the first epoch they are still random in an evaluation.

    It starts with random unit vectors. On several replicas each writes the embeddings of all, so that all
    have the same bank. It is saved with the task and in checkpoints, not in exports. ImageNet's 1.28 million
    images with 128 dimensions take 1.3 GB on each device, for what is read and what is written, or half of
    that in bfloat16; CIFAR's 50,000 take 52 MB. The rows are not divided among devices. The bank is written
    in place; compiled with XLA, a second copy is made.

    Args:
        size: int N, images in the data set; their ids are 0 to N - 1.
        dimensions: int, length of an embedding.
        negatives: int m, rows drawn in each step, with replacement; all queries of a step have the same.
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
        # The epoch that wrote an image last: int64, for which there are kernels on a GPU.
        self.written = state((size,), "zeros", "int64", name="written")
        self.epoch = state((), "ones", "int64", name="epoch")
        # Of exp(similarity / temperature), in the first batch: ln(Z / N).
        self.log_mean = state((), "zeros", "float32", name="log_mean")
        self.batches = state((), "zeros", "int32", name="batches")
        self.built = True  # or Keras warns when it loads a task with a bank

    def _first_rows(self, shape, dtype):
        rows = tf.random.stateless_normal(shape, (self.seed, -1))  # the draws have 0, 1, ...
        return tf.cast(tf.math.l2_normalize(rows, axis=-1), dtype)

    def read(self, ids):
        """Returns the embeddings of images that the last epoch wrote, without gradient.

        Args:
            ids: (B,) integer tensor.

        Returns:
            (B, dimensions) float32 tensor.
        """
        ids = tf.cast(ids, tf.int64) + self.size * (tf.convert_to_tensor(self.epoch) % 2)
        # Not `tf.gather` of a tensor, for which TensorFlow would copy the bank in every step.
        return tf.stop_gradient(tf.cast(tf.gather(self.rows.value, ids), tf.float32))

    def call(self, queries, ids, training=False):
        """Computes the log-odds that an embedding is one of the image, not of a random one.

        Args:
            queries: (B, Q, dimensions) float32 tensor of unit vectors, Q for each image.
            ids: (B,) integer tensor, the images.
            training: bool, whether to keep the estimate of Z from the first batch.

        Returns:
            (B, Q, 1 + negatives) float32 tensor: with the image in column 0, then with the drawn ones; -1e9
            where the image itself is drawn, so that its loss is 0.

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
        """Updates the embeddings of images: the moving average, normalized again.

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
        # Most, since one that cannot be read is replaced by another image of the same epoch.
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
