"""The Gibbs kernel of entropic optimal transport, in blocks of rows on this worker's replicas or disk."""

import numpy as np
import tensorflow as tf

from keras_ssl.solvers.disk import DiskBlocks

BLOCK_ENTRIES = 2**20  # per block of rows: large for the matrix products, small for the cache
SAMPLE_EVERY = 8  # a sample is every eighth block
MAX_POTENTIAL_SHIFT = 20.0  # before the kernel is recomputed; float32 underflows at exp(-87)


class Kernel:
    """Holds exp(lam * scores + base), each row divided by its largest entry.

    Potentials near `base` only scale the columns. Once they have moved by more than `MAX_POTENTIAL_SHIFT`,
    the kernel is recomputed around them. Up to that point, entries that underflowed to 0 are negligible:
    relative to the largest entry of their row, far below the precision of float32.

    Args:
        scores: (N, K) float array, or a function that returns an iterable of blocks of its rows.
        lam: float, inverse temperature.
        dtype: str, dtype of the blocks in memory.
        sample: bool, start with every eighth block, if there are at least 57 blocks.
        total: function that sums an array over all workers; each worker has the kernel of its own rows.
        scratch: str, folder of the file that holds the blocks, or None for memory.

    Raises:
        ValueError: there are no blocks, or they are not float (n, K).
    """

    def __init__(self, scores, lam, dtype, sample, total, scratch=None):
        self.scratch = scratch
        self.read = scores if callable(scores) else lambda: _row_blocks(scores)
        self.dtype, self.total = dtype, total
        self.wide = tf.float64 if dtype == "float64" else tf.float32  # all except the blocks
        self.lam = tf.constant(lam, self.wide)
        self.every = SAMPLE_EVERY if sample else 1
        self._keep(None)
        enough = SAMPLE_EVERY * (SAMPLE_EVERY - 1)
        if self.every > 1 and total(np.array(len(self.lengths))) <= enough:
            self.every = 1
            self._keep(None)
        if not self.blocks:
            raise ValueError("scores must hold at least one block of rows, got none")
        if len(self.widths) > 1:
            raise ValueError(
                f"scores must have blocks of the same width, got {sorted(self.widths)}"
            )
        self.shape = sum(self.lengths), *self.widths
        self.base = np.zeros(self.shape[1])

    def _keep(self, potentials):
        """Computes the blocks, and keeps them in memory or on disk."""
        # Free all old blocks before the first new one; mixed with new ones, they would fragment the memory.
        self.shards = self.blocks = None
        computed = self._compute(potentials)
        self.blocks = list(computed) if self.scratch is None else DiskBlocks(self.scratch, computed)

    def _compute(self, potentials):
        """Yields the blocks to keep and records the shapes of all of them."""
        self.lengths, self.widths = [], set()
        for number, block in enumerate(self.read()):
            block = _checked(block)
            self.lengths.append(block.shape[0])
            self.widths.add(block.shape[1])
            if number % self.every == 0:
                yield _kernel(tf.cast(block, self.wide), self.lam, potentials, self.dtype)

    def set_row_marginals(self, rows, mass):
        """Sets the row sums of the plan, a (N,) float64 array, and their total over all workers."""
        parts = np.split(rows, np.cumsum(self.lengths)[:-1])
        self.row_blocks = [tf.constant(part[:, None], self.wide) for part in parts]
        self.mass = mass

    def center(self, potentials):
        """Shifts potentials by a constant, which changes no plan, so that they are nearest to `base`."""
        shift = potentials - self.base
        return potentials - (shift.min() / 2 + shift.max() / 2)

    def use_all_rows(self):
        """Switches from the sample to all blocks."""
        self.every, self.blocks, self.shards = 1, None, None

    def column_sums(self, potentials):
        """Computes the column sums of the plan of all workers with these potentials, a (K,) float64 array.

        While only a sample of the blocks is read, the sums are scaled to the mass of all rows.
        """
        if self.blocks is None or np.abs(potentials - self.base).max() > MAX_POTENTIAL_SHIFT:
            self._keep(tf.constant(potentials, self.wide))
            self.base = potentials
        if self.shards is None:
            sample = self.row_blocks[:: self.every]
            mass = sum(float(tf.reduce_sum(part)) for part in sample)
            self.fraction = float(self.total(np.array(mass))) / self.mass
            self.shards = sample if self.scratch else _shards(self.blocks, sample)
        scale = self.column_scale(potentials)
        if self.scratch:
            sums = _column_sums_on_disk(self.blocks, self.shards, scale)
        else:
            sums = _column_sums(self.shards, scale, self.blocks[0].dtype)
        return self.total(sums) / self.fraction

    def column_scale(self, potentials):
        """Computes the factors of the kernel's columns for these potentials: (1, K) tensor."""
        return tf.constant(np.exp(potentials - self.base)[None], self.wide)


def _row_blocks(scores):
    """Yields the scores in blocks of rows."""
    shape = getattr(scores, "shape", None)
    if shape is None:
        yield from scores
    elif len(shape) != 2:
        raise ValueError(f"scores must be (N, K), got shape {tuple(shape)}")
    else:
        step = max(1, BLOCK_ENTRIES // max(1, shape[1]))
        for start in range(0, shape[0], step):
            yield scores[start : start + step]


def _checked(block):
    block = tf.convert_to_tensor(block)
    if len(block.shape) != 2 or 0 in block.shape or not block.dtype.is_floating:
        raise ValueError(
            "scores must be float (N, K) or blocks (n, K) of its rows, got "
            f"{block.dtype.name} {tuple(block.shape)}"
        )
    return block


def _shards(blocks, row_blocks):
    """Distributes blocks and row marginals: a list of (device, blocks, row blocks) per replica."""
    strategy = tf.distribute.get_strategy()
    devices = strategy.extended.worker_devices if strategy.num_replicas_in_sync > 1 else [None]
    shards = []
    for number, device in enumerate(devices):
        with tf.device(device):
            mine = blocks[number :: len(devices)], row_blocks[number :: len(devices)]
            shards.append((device, *map(_tensor_list, mine)))
    return shards


def _tensor_list(tensors):
    # A compiled loop can index this list, which only refers to the tensors; stacking would copy them.
    dtype = tensors[0].dtype if tensors else tf.float32
    handle = tf.raw_ops.TensorListReserve(
        element_shape=[-1, -1], num_elements=len(tensors), element_dtype=dtype
    )
    for index, tensor in enumerate(tensors):
        handle = tf.raw_ops.TensorListSetItem(input_handle=handle, index=index, item=tensor)
    return handle


def _column_sums(shards, scale, storage):
    parts = []
    for device, blocks, row_blocks in shards:
        with tf.device(device):
            parts.append(_sweep(blocks, row_blocks, scale, storage))
    return sum(part.numpy() for part in parts)


def _column_sums_on_disk(blocks, row_blocks, scale):
    parts = blocks.map(lambda kernel, rows: _block_sums(kernel, rows, scale).numpy(), row_blocks)
    return sum(parts) * scale.numpy()[0].astype(np.float64)


def _unscaled_sums(kernel, rows, scale):
    """Computes the column sums of the plan of one block, divided by `scale`: (K,) float64 tensor."""
    kernel = tf.cast(kernel, scale.dtype)
    u = rows / tf.matmul(kernel, scale, transpose_b=True)
    return tf.cast(tf.reshape(tf.matmul(u, kernel, transpose_a=True), [-1]), tf.float64)


_block_sums = tf.function(_unscaled_sums, autograph=False, reduce_retracing=True)


@tf.function(autograph=False, reduce_retracing=True)
def _sweep(blocks, row_blocks, scale, storage):
    """Computes the column sums of the plan, reading each block once."""
    width = tf.shape(scale)[1]

    def item(tensors, index, columns, dtype):
        return tf.raw_ops.TensorListGetItem(
            input_handle=tensors, index=index, element_shape=[-1, columns], element_dtype=dtype
        )

    def body(index, sums):
        kernel = item(blocks, index, width, storage)
        return index + 1, sums + _unscaled_sums(
            kernel, item(row_blocks, index, 1, scale.dtype), scale
        )

    number = tf.raw_ops.TensorListLength(input_handle=blocks)
    start = tf.constant(0), tf.zeros([width], tf.float64)
    # The matrix products of several blocks run in parallel; only the small sums are sequential.
    _, sums = tf.while_loop(
        lambda index, _: index < number, body, start, parallel_iterations=4,
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None])),
    )  # fmt: skip
    return sums * tf.cast(scale[0], tf.float64)


@tf.function(autograph=False, reduce_retracing=True)
def _kernel(scores, lam, potentials, dtype):
    logarithm = lam * scores
    if potentials is not None:
        logarithm += potentials
    return tf.cast(tf.exp(logarithm - tf.reduce_max(logarithm, 1, keepdims=True)), dtype)


def assign(block, scale):
    """Finds the column with the most mass for each row of a block: (n,) int32 array."""
    # NumPy's argmax is vectorized, TensorFlow's is not
    return (tf.cast(block, scale.dtype) * scale).numpy().argmax(1).astype(np.int32)


@tf.function(autograph=False, reduce_retracing=True)
def plan(block, row, scale):
    """Computes the transport plan of one block of rows: (n, K) tensor."""
    mass = tf.cast(block, scale.dtype) * scale
    return row * mass / tf.reduce_sum(mass, 1, keepdims=True)
