"""Queue of keys from earlier batches."""

import keras
import tensorflow as tf

from keras_ssl.arguments import check_integers, check_positive
from keras_ssl.training import distribute

BLOCK = 4096  # keys; 4 MB of similarities with a batch of 256


@keras.saving.register_keras_serializable(package="keras_ssl")
class Queue(keras.layers.Layer):
    """Keeps the keys of the last batches as further negatives (MoCo).

    It is a ring: new keys replace the oldest ones, whatever the size of the batch. It starts with random unit
    vectors. On several replicas, each replica appends the keys of all replicas, so that all have the same
    queue. It is saved with the task, and in checkpoints.

    Args:
        size: int, number of keys.
        dimensions: int, length of a key.
        seed: int, of the first keys.
        **kwargs: passed to keras.layers.Layer.

    Raises:
        ValueError: `size` or `dimensions` is less than 1.

    Reference: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020,
    section 3.2.

    Example:
        >>> queue = Queue(size=3, dimensions=2)
        >>> queue.append(tf.constant([[1.0, 0.0], [0.0, 1.0]]))
        >>> queue.keys()[:2].numpy().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    def __init__(self, size, dimensions, seed=0, **kwargs):
        super().__init__(**{"autocast": False, **kwargs})
        check_integers(1, size=size, dimensions=dimensions)
        self.size, self.dimensions, self.seed = size, dimensions, seed
        first = tf.random.stateless_normal((size, dimensions), (seed, 0))
        self.ring = self.add_weight(
            name="ring", shape=(size, dimensions), dtype="float32", trainable=False, autocast=False,
            initializer=lambda shape, dtype: tf.math.l2_normalize(first, axis=-1),
        )  # fmt: skip
        self.next = self.add_weight(
            name="next", shape=(), dtype="int32", trainable=False, initializer="zeros"
        )
        self.built = True  # or Keras warns when it loads a task with a queue

    def keys(self):
        """Returns the keys, without gradient: (size, dimensions) float32."""
        return tf.stop_gradient(tf.convert_to_tensor(self.ring))

    def soft_maximum(self, queries, temperature):
        """Computes log(sum(exp(similarity / temperature))) over the keys, and the maximum, of each query.

        It goes through the keys in blocks that fit in the processor's cache, and computes the gradient in the
        same pass: computing all similarities at once would take longer than the network. In mixed precision
        the products are in 16 bits.

        Args:
            queries: (B, dimensions) float32 tensor of unit vectors.
            temperature: float, divides the similarities; in float16 at least 1e-4.

        Returns:
            (soft, largest): (B,) float32 with gradient, of similarity / temperature; (B,) float32 without
            gradient, of the similarity.

        Raises:
            ValueError: a query has another length than `dimensions`, or `temperature` is not positive.

        Example:
            >>> queue = Queue(size=4, dimensions=2)
            >>> queue.soft_maximum(tf.zeros((1, 2)), 0.5)[0].numpy().round(4)     # ln 4
            array([1.3863], dtype=float32)
        """
        check_positive("temperature", temperature)
        self._check_width("queries", queries)

        @tf.custom_gradient
        def over_blocks(queries, keys):
            scaled = tf.cast(queries / temperature, self.compute_dtype)
            maxima, sums, means = [], [], []
            for start in range(0, self.size, BLOCK):
                block = tf.cast(keys[start : start + BLOCK], self.compute_dtype)
                logits = tf.cast(tf.matmul(scaled, block, transpose_b=True), tf.float32)
                maxima.append(tf.reduce_max(logits, axis=-1))
                weights = tf.exp(logits - maxima[-1][:, None])
                sums.append(tf.reduce_sum(weights, axis=-1))
                means.append(tf.cast(tf.matmul(tf.cast(weights, block.dtype), block), tf.float32))
            largest = tf.reduce_max(maxima, axis=0)
            scale = tf.exp(tf.stack(maxima) - largest)
            total = tf.reduce_sum(scale * tf.stack(sums), axis=0)
            mean = tf.reduce_sum(scale[..., None] * tf.stack(means), axis=0) / total[:, None]

            def gradient(soft, largest):
                return soft[:, None] * mean / temperature, None

            return (largest + tf.math.log(total), largest * temperature), gradient

        soft, largest = over_blocks(queries, self.keys())
        return soft, tf.stop_gradient(largest)

    def append(self, keys):
        """Replaces the oldest keys.

        Compute the similarities with `keys()` first; otherwise the positive is among the negatives.

        Args:
            keys: (B, dimensions) tensor, the keys of this replica. If there are more than `size`, the last
                ones are kept.

        Raises:
            ValueError: a key has another length than `dimensions`.
        """
        self._check_width("keys", keys)
        keys = distribute.all_gather(tf.cast(tf.stop_gradient(keys), tf.float32))
        first, number = tf.convert_to_tensor(self.next), tf.shape(keys)[0]
        kept = tf.minimum(number, self.size)
        rows = (first + number - kept + tf.range(kept)) % self.size
        ring = tf.tensor_scatter_nd_update(self.keys(), rows[:, None], keys[number - kept :])
        self.ring.assign(ring)
        self.next.assign((first + number) % self.size)

    def _check_width(self, name, vectors):
        if not vectors.shape.is_compatible_with((None, self.dimensions)):
            raise ValueError(
                f"{name} must be (B, {self.dimensions}) like the keys in the queue, got {vectors.shape}"
            )

    def call(self, keys):
        """Returns the keys of earlier batches and appends those of this one."""
        earlier = self.keys()
        self.append(keys)
        return earlier

    def get_config(self):
        config = {"size": self.size, "dimensions": self.dimensions, "seed": self.seed}
        return {**super().get_config(), **config}
