"""Entropic optimal transport between a whole data set and its clusters."""

import math
import os
import warnings
from typing import NamedTuple

import keras
import numpy as np

from keras_ssl.arguments import check_integer
from keras_ssl.solvers import gibbs
from keras_ssl.solvers.shares import share_of

SAMPLED_ITERATIONS = 15  # maximum number of first iterations, which read a sample of the blocks
SAMPLE_ERROR = 0.1  # error below which all blocks are read
HISTORY = 10  # number of residuals that Anderson acceleration combines
FARTHEST = 2 * gibbs.MAX_POTENTIAL_SHIFT  # limit of plain steps and of accelerations


class Transport(NamedTuple):
    """Result of `sinkhorn`.

    Attributes:
        assignments: (N,) int32 array, the column that receives most of each row's mass.
        column_potentials: (K,) float64 array with mean 0, in the units of the scores.
        iterations: int.
        error: float, the sum over the columns of |column sum - marginal|, as a fraction of the mass.
        converged: bool, whether the error is within the tolerance.
        plan: function without arguments that computes the transport plan, a (N, K) array.

    For a `Share`, `assignments` and `plan` have its own rows only.
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
    scratch=None,
):
    """Solves entropic optimal transport by Sinkhorn's algorithm, for large N x K in little memory.

    Finds the plan Q >= 0 with row sums `rows` and column sums `columns` that maximizes
    sum(Q * scores) + entropy(Q) / lam. It has the form Q = diag(u) exp(lam * scores) diag(v), and
    u follows from v, so the search is for the K numbers log v.

    Only one N x K matrix, the kernel, is held in memory, provided that `scores` is a function that computes
    blocks of rows on demand; with `scratch`, the kernel is on disk. Each iteration reads every block once and
    uses it for both matrix products while it is in the cache. Three things make the algorithm fast and
    stable:

    - The kernel is exp(lam * scores + log v), each row divided by its largest entry. It is recomputed
      when log v has moved by more than 20, so that float32 does not underflow at large `lam`, where
      exp(lam * scores) alone is zero in whole rows.
    - Sinkhorn's iteration is log v <- log v + log(columns / column sums). Anderson acceleration
      combines the last ten of them, which takes about five times fewer iterations.
    - An accelerated step that increases the error is replaced by Sinkhorn's plain step, which never increases
      it.

    Under a strategy (call it in `strategy.scope()`) the blocks are distributed over the devices of this
    process. With several workers, each holds the kernel of its own rows (`shares.Share`). Devices and workers
    exchange only column sums, K numbers in each iteration.

    Args:
        scores: (N, K) float array, or a function without arguments that returns an iterable of
            (n, K) blocks of its rows, called again whenever the kernel is recomputed; or a `Share` of
            either. For SeLa the log-probabilities of the network. Blocks of about a million entries are
            fastest.
        rows: (N,) positive marginals; for a `Share`, the marginals of its own rows; or None for 1 / N each.
        columns: (K,) positive marginals with the same sum, or None for 1 / K each.
        lam: float, inverse temperature (1 / lam is the weight of the entropy); a large one approaches
            exact optimal transport.
        tolerance: float, the error to stop at: the sum over the columns of |column sum - marginal|, as
            a fraction of the mass. The row sums are exact. Float32 reaches about 1e-6.
        max_iterations: int.
        dtype: "float32", "float64", or "bfloat16" for half the memory and three digits.
        verbose: 1 shows the iterations and their errors, 0 does not.
        scratch: str, a folder with space for N x K numbers of `dtype`, if they do not fit into memory, or
            None. Each iteration then reads them from this folder, in order and ahead; one device per process
            computes.

    Returns:
        Transport.

    Raises:
        ValueError: `scores` have the wrong shape or are not finite, the marginals are not positive or differ
            in their sum, `lam` or `tolerance` is not positive, `max_iterations` is not a positive integer, or
            the folder `scratch` does not exist.

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
    _check_arguments(lam, tolerance, max_iterations, dtype, scratch)
    # Far from the solution, a sample of the rows is good enough and takes an eighth of the work. The full
    # kernel is computed once the potentials are nearly right.
    share = share_of(scores)
    sample = max_iterations > SAMPLED_ITERATIONS
    kernel = gibbs.Kernel(share.own, lam, dtype, sample, share.sum, scratch)
    rows, columns = _marginals(rows, columns, *kernel.shape, share)
    mass = math.fsum(columns)
    kernel.set_row_marginals(rows, mass)
    potentials, solver = np.zeros(len(columns)), _Anderson(weight=np.sqrt(columns / mass))
    progress = keras.utils.Progbar(max_iterations, verbose=verbose, stateful_metrics=["error"])

    for iteration in range(1, max_iterations + 1):
        potentials = kernel.center(potentials)
        sums = kernel.column_sums(potentials)
        if not np.isfinite(sums).all():
            raise ValueError(
                "scores must be finite, got NaN or infinity, or rows of only -infinity"
            )
        # Rounded in the same way on all kinds of machines, so that no worker stops before the others.
        error = math.fsum(np.abs(sums - columns)) / mass
        progress.update(iteration, [("error", error)], finalize=False)
        if kernel.every > 1:
            if error <= max(SAMPLE_ERROR, tolerance) or iteration == SAMPLED_ITERATIONS:
                kernel.use_all_rows()
                solver.restart()
                continue
        elif error <= tolerance or iteration == max_iterations:
            break
        # A column without mass is raised by no more than the kernel can represent.
        reached = np.maximum(sums, columns * np.exp(-FARTHEST))
        potentials = share.first(solver.step(potentials, np.log(columns / reached), error))
    progress.update(iteration, [("error", error)], finalize=True)

    if error > tolerance:
        warnings.warn(
            f"sinkhorn stopped at max_iterations {max_iterations} with an error of {error:.2g}, more "
            f"than tolerance {tolerance:g}: give more iterations, a smaller lam or a larger tolerance",
            stacklevel=2,
        )
    return _transport(kernel, potentials, lam, iteration, float(error), bool(error <= tolerance))


def _transport(kernel, potentials, lam, iterations, error, converged):
    """Builds the result, which references the kernel's blocks but not the copies on the replicas."""
    blocks, row_blocks, scale = kernel.blocks, kernel.row_blocks, kernel.column_scale(potentials)

    def plan():
        parts = zip(blocks, row_blocks, strict=True)
        return np.concatenate([gibbs.plan(block, row, scale) for block, row in parts])

    assignments = np.concatenate([gibbs.assign(block, scale) for block in blocks])
    centered = (potentials - potentials.mean()) / lam
    return Transport(assignments, centered, iterations, error, converged, plan)


class _Anderson:
    """Anderson acceleration of v <- v + residual, with two safeguards.

    First, if a combined step has increased the error, it is replaced by the plain step, which never increases
    it. Second, the correction that acceleration adds to the plain step is limited to the maximum length of a
    plain step. Otherwise, where nearly all mass of a row is in one column, residuals hardly change with the
    potentials, so that steps of thousands would follow, which diverge.

    Args:
        weight: (K,) array, weights of the residual's entries.
    """

    def __init__(self, weight):
        self.weight = weight
        self.restart()

    def restart(self):
        """Discards the previous steps."""
        self.steps, self.residuals, self.error, self.plain = [], [], np.inf, None

    def step(self, potentials, residual, error):
        """Returns the next potentials, which minimize the residual if it is linear."""
        if error > self.error:
            plain = self.plain
            self.restart()
            return plain
        self.error, self.plain = error, potentials + residual
        self.steps = [*self.steps, potentials][-HISTORY:]
        self.residuals = [*self.residuals, residual][-HISTORY:]
        if len(self.steps) == 1:
            return self.plain
        by_step, by_residual = np.diff(self.steps, axis=0), np.diff(self.residuals, axis=0)
        weighted = by_residual * self.weight
        # Normal equations of the few unknowns: least squares on K equations would take longer than a sweep.
        normal, target = weighted @ weighted.T, weighted @ (residual * self.weight)
        mix = np.linalg.lstsq(normal, target, rcond=1e-12)[0]
        more = mix @ (by_step + by_residual)
        return self.plain - more * min(1.0, FARTHEST / max(np.ptp(more), 1e-300))


def _check_arguments(lam, tolerance, max_iterations, dtype, scratch):
    if scratch is not None and not os.path.isdir(scratch):
        raise ValueError(f"scratch: there is no folder {str(scratch)!r}")
    for name, value in (("lam", lam), ("tolerance", tolerance)):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value!r}")
    check_integer("max_iterations", max_iterations, minimum=1)
    if dtype not in ("float32", "float64", "bfloat16"):
        raise ValueError(f'dtype must be "float32", "float64" or "bfloat16", got {dtype!r}')


def _marginals(rows, columns, n, k, share):
    every = int(share.sum(np.array(n)))
    rows = np.full(n, 1 / every) if rows is None else np.asarray(rows, np.float64)
    columns = np.full(k, 1 / k) if columns is None else np.asarray(columns, np.float64)
    for name, marginal, length in (("rows", rows, n), ("columns", columns, k)):
        if marginal.shape != (length,):
            raise ValueError(f"{name} must be ({length},), got shape {marginal.shape}")
        if not (np.isfinite(marginal).all() and (marginal > 0).all()):
            least, most = marginal.min(), marginal.max()
            raise ValueError(f"{name} must be positive and finite, got {least} to {most}")
    total = float(share.sum(np.array(rows.sum())))
    if not np.isclose(total, columns.sum(), rtol=1e-6):
        raise ValueError(
            f"rows and columns must have the same sum, got {total} and {columns.sum()}"
        )
    return rows, columns
