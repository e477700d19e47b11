"""Entropic optimal transport between a whole data set and its clusters, held once in memory."""

import warnings
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

BLOCK = 2**20  # entries of a block of rows: large for the kernels, small for the cache
SAMPLE, SAMPLED = 8, 15  # of many blocks, the first (at most 15) iterations read every eighth
HISTORY = 10  # residuals that the Anderson acceleration combines
REACH = 20.0  # how far potentials may move before the kernel is made anew: float32 ends at exp(-87)


class Transport(NamedTuple):
    """What `sinkhorn` found.

    `assignments` (N,) int32, the column with the largest share of each row; `column_potentials` (K,)
    float64, in units of 1 / lam; `iterations`; `error`, the sum over the columns of |sum - marginal|
    as a share of the mass; `converged`; `plan()` makes the (N, K) array of the transported mass.
    """

    assignments: np.ndarray
    column_potentials: np.ndarray
    iterations: int
    error: float
    converged: bool
    plan: callable


def sinkhorn(
    scores,
    rows=None,
    columns=None,
    lam=25.0,
    tolerance=1e-5,
    max_iterations=1000,
    dtype="float32",
    verbose=0,
):
    """Transports the mass of N rows to K columns where the scores are high, at given marginals.

    Finds the plan Q >= 0 with row sums `rows` and column sums `columns` that maximises
    sum(Q * scores) + entropy(Q) / lam. It has the form Q = diag(u) exp(lam * scores) diag(v), and
    u follows from v, so the search is for the K numbers log v.

    One N x K matrix is held, the kernel, and nothing of its size beside it where `scores` is a
    function that makes blocks of rows as they are needed. Each iteration reads every block once, for
    both of its products, while it is in the cache. Three things make it fast and safe:

    - The kernel is exp(lam * scores + log v), divided by the largest entry of each row, and is made
      anew when log v has moved by more than 20: what underflowed to zero was far below float32's
      last digit, also at sharp temperatures. exp(lam * scores) alone would be zero in whole rows.
    - The iteration log v <- log v + log(columns / column sums) is Sinkhorn's. Anderson's acceleration
      combines the last ten of them: about five times fewer iterations.
    - A combined step that makes the error larger is taken back for Sinkhorn's own, which never does.

    Under a strategy (call it in `strategy.scope()`) the blocks are spread over the replicas' devices
    and the column sums are all-reduced.

    Args:
        scores: (N, K) float array, or a function without arguments that returns an iterable of
            (n, K) blocks of its rows (read once, and again when the kernel is made anew). For SeLa
            the log-probabilities of the network. About a million entries a block run fastest.
        rows: (N,) positive marginals, or None for 1 / N each.
        columns: (K,) positive marginals with the same sum, or None for 1 / K each.
        lam: float, inverse temperature (1 / lam is the weight of the entropy); at a large one the
            plan is that of exact optimal transport.
        tolerance: float, the error to stop at: sum over the columns of |sum - marginal|, as a share
            of the mass. The row sums are exact. Float32 reaches about 1e-6.
        max_iterations: int.
        dtype: "float32", "float64", or "bfloat16" for half the memory and three digits.
        verbose: 1 shows the iterations and their error.

    Returns:
        Transport.

    Raises:
        ValueError: scores of the wrong shape or not finite, marginals that are not positive or do
            not sum alike, or a number that is not positive.

    Warns:
        UserWarning: not converged within `max_iterations`.

    Reference: Cuturi, "Sinkhorn Distances", NeurIPS 2013. Schmitzer, "Stabilized Sparse Scaling
    Algorithms for Entropy Regularized Transport Problems", SISC 2019 (kernels around potentials).
    Walker & Ni, "Anderson Acceleration for Fixed-Point Iterations", SINUM 2011.

    Example:
        >>> distance = np.array([[1.0, 3.0], [2.0, 1.0]])                 # warehouses A, B to shops 1, 2
        >>> laptops = sinkhorn(-distance, rows=[25, 25], columns=[25, 25])
        >>> laptops.plan().round(3).tolist()
        [[25.0, 0.0], [0.0, 25.0]]
    """
    for name, value in (("lam", lam), ("tolerance", tolerance), ("max_iterations", max_iterations)):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value!r}")
    if dtype not in ("float32", "float64", "bfloat16"):
        raise ValueError(f'dtype must be "float32", "float64" or "bfloat16", got {dtype!r}')
    wide = tf.float64 if dtype == "float64" else tf.float32
    read = scores if callable(scores) else lambda: _blocks(scores)
    lengths, widths, potentials = [], set(), None

    def make_kernel(every):
        lengths.clear()
        move = None if potentials is None else tf.constant(potentials, wide)
        for number, block in enumerate(read()):
            block = _checked(block)
            lengths.append(block.shape[0])
            widths.add(block.shape[1])
            if number % every == 0:
                yield _kernel(tf.cast(block, wide), tf.constant(lam, wide), move, dtype)

    # Far from the answer a sample of the rows shows the way as well, for an eighth of the work, and
    # the large kernel is made once the potentials are nearly right.
    every = SAMPLE if max_iterations > SAMPLED else 1
    blocks = list(make_kernel(every))
    if every > 1 and len(blocks) < SAMPLE:
        every = 1
        blocks = list(make_kernel(every))
    if not blocks:
        raise ValueError("scores must hold at least one block of rows, got none")
    if len(widths) > 1:
        raise ValueError(f"scores must have blocks of the same width, got {sorted(widths)}")
    rows, columns = _marginals(rows, columns, sum(lengths), *widths)
    mass = columns.sum()
    row_blocks = [
        tf.constant(part[:, None], wide) for part in np.split(rows, np.cumsum(lengths)[:-1])
    ]
    potentials, base = np.zeros(len(columns)), np.zeros(len(columns))  # base: inside the kernel
    shards = None
    steps, residuals, best, fallback = [], [], np.inf, None
    progress = keras.utils.Progbar(max_iterations, verbose=verbose, stateful_metrics=["error"])

    for iteration in range(1, max_iterations + 1):
        potentials -= (potentials - base).min() / 2 + (potentials - base).max() / 2
        if blocks is None or np.abs(potentials - base).max() > REACH:
            # All old blocks go before the first new one comes: mixed, they leave holes in the memory.
            shards = blocks = None
            blocks, base = list(make_kernel(every)), potentials.copy()
        if shards is None:
            sample = row_blocks[::every]
            share = sum(float(tf.reduce_sum(part)) for part in sample) / mass
            shards = _shards(blocks, sample)
        scale = tf.constant(np.exp(potentials - base)[None], wide)
        sums = _column_sums(shards, scale, blocks[0].dtype) / share
        if not np.isfinite(sums).all():
            raise ValueError(
                "scores must be finite, got NaN or infinity, or rows of only -infinity"
            )
        error = np.abs(sums - columns).sum() / mass
        progress.update(iteration, [("error", error)], finalize=False)
        if every > 1 and (error <= 0.1 or iteration == SAMPLED):
            every, shards, blocks = 1, None, None
            steps, residuals, best = [], [], np.inf
            continue
        if error <= tolerance or iteration == max_iterations:
            break
        if error > best:
            potentials, steps, residuals, best = fallback.copy(), [], [], np.inf
            continue
        # A column without mass is raised as far as the kernel reaches.
        residual = np.log(columns / np.maximum(sums, columns * np.exp(-2 * REACH)))
        best, fallback = error, potentials + residual
        steps, residuals = [*steps, potentials][-HISTORY:], [*residuals, residual][-HISTORY:]
        potentials = _anderson(steps, residuals, np.sqrt(columns / mass))
    progress.update(iteration, [("error", error)], finalize=True)

    if error > tolerance:
        warnings.warn(
            f"sinkhorn stopped at max_iterations {max_iterations} with an error of {error:.2g}, more "
            f"than tolerance {tolerance:g}: give more iterations, a smaller lam or a larger tolerance",
            stacklevel=2,
        )

    def plan():
        return np.concatenate(
            [_plan(block, r, scale) for block, r in zip(blocks, row_blocks, strict=True)]
        )

    assignments = np.concatenate([_assign(block, scale) for block in blocks])
    return Transport(
        assignments, potentials / lam, iteration, float(error), bool(error <= tolerance), plan
    )


def _blocks(scores):
    """The scores in blocks of rows."""
    shape = getattr(scores, "shape", None)
    if shape is None:
        yield from scores
    elif len(shape) != 2:
        raise ValueError(f"scores must be (N, K), got shape {tuple(shape)}")
    else:
        step = max(1, BLOCK // max(1, shape[1]))
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


def _marginals(rows, columns, n, k):
    rows = np.full(n, 1 / n) if rows is None else np.asarray(rows, np.float64)
    columns = np.full(k, 1 / k) if columns is None else np.asarray(columns, np.float64)
    for name, marginal, length in (("rows", rows, n), ("columns", columns, k)):
        if marginal.shape != (length,):
            raise ValueError(f"{name} must be ({length},), got shape {marginal.shape}")
        if not (np.isfinite(marginal).all() and (marginal > 0).all()):
            raise ValueError(f"{name} must be positive, got a smallest of {marginal.min()}")
    if not np.isclose(rows.sum(), columns.sum(), rtol=1e-6):
        raise ValueError(
            f"rows and columns must have the same sum, got {rows.sum()} and {columns.sum()}"
        )
    return rows, columns


def _anderson(steps, residuals, weight):
    """The next potentials: those whose residual, were it linear, would be smallest."""
    if len(steps) == 1:
        return steps[-1] + residuals[-1]
    by_step, by_residual = np.diff(steps, axis=0), np.diff(residuals, axis=0)
    weighted = by_residual * weight
    # Of the few unknowns only: least squares on the K equations takes longer than a sweep.
    mix = np.linalg.lstsq(weighted @ weighted.T, weighted @ (residuals[-1] * weight), rcond=1e-12)[
        0
    ]
    return steps[-1] + residuals[-1] - mix @ (by_step + by_residual)


def _shards(blocks, row_blocks):
    """Per replica its device, its blocks and their row marginals, as two lists of tensors."""
    strategy = tf.distribute.get_strategy()
    devices = strategy.extended.worker_devices if strategy.num_replicas_in_sync > 1 else [None]
    shards = []
    for number, device in enumerate(devices):
        with tf.device(device):
            mine = blocks[number :: len(devices)], row_blocks[number :: len(devices)]
            shards.append((device, *map(_tensor_list, mine)))
    return shards


def _tensor_list(tensors):
    # A list that a compiled loop can index: references only, where stacking would copy the matrix.
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
    if len(parts) == 1:
        return parts[0].numpy()
    strategy = tf.distribute.get_strategy()
    split = strategy.experimental_distribute_values_from_function(
        lambda context: parts[context.replica_id_in_sync_group]
    )
    return strategy.reduce("SUM", split, axis=None).numpy()


@tf.function(autograph=False, reduce_retracing=True)
def _sweep(blocks, row_blocks, scale, storage):
    """Column sums of the plan, each block read once while it is in the cache."""

    width = tf.shape(scale)[1]

    def item(tensors, index, columns, dtype):
        return tf.raw_ops.TensorListGetItem(
            input_handle=tensors, index=index, element_shape=[-1, columns], element_dtype=dtype
        )

    def body(index, sums):
        kernel = tf.cast(item(blocks, index, width, storage), scale.dtype)
        u = item(row_blocks, index, 1, scale.dtype) / tf.matmul(kernel, scale, transpose_b=True)
        part = tf.reshape(tf.matmul(u, kernel, transpose_a=True), [width])
        return index + 1, sums + tf.cast(part, tf.float64)

    number = tf.raw_ops.TensorListLength(input_handle=blocks)
    start = tf.constant(0), tf.zeros([width], tf.float64)
    # The matrix products of several blocks run side by side; only the small sums wait in line.
    _, sums = tf.while_loop(lambda index, _: index < number, body, start, parallel_iterations=4)
    return sums * tf.cast(scale[0], tf.float64)


@tf.function(autograph=False, reduce_retracing=True)
def _kernel(scores, lam, potentials, dtype):
    logarithm = lam * scores
    if potentials is not None:
        logarithm += potentials
    return tf.cast(tf.exp(logarithm - tf.reduce_max(logarithm, 1, keepdims=True)), dtype)


def _assign(block, scale):
    # numpy's argmax is vectorised, TensorFlow's is not
    return (tf.cast(block, scale.dtype) * scale).numpy().argmax(1).astype(np.int32)


@tf.function(autograph=False, reduce_retracing=True)
def _plan(block, row, scale):
    plan = tf.cast(block, scale.dtype) * scale
    return row * plan / tf.reduce_sum(plan, 1, keepdims=True)
