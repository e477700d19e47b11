"""An array whose rows are spread over workers, each of which holds its share."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Share:
    """Holds this worker's rows of an array, and the function that sums arrays over all workers.

    The solvers accept a share instead of an array. All workers call a solver at the same time, each with its
    own share, and get the results for their own rows. The workers exchange only sums, through `sum`.

    Args:
        own: (n, ...) array, the rows of this worker, at least one; for `transport.sinkhorn` it may be a
            function that returns blocks of them.
        ids: (n,) integer array, the indices of these rows in the whole array, ascending; None for all rows.
        number: int N, rows of all workers together; by default the rows of `own`.
        index: int, the number of this worker, from 0.
        sum: function that sums arrays of the same shape and dtype over all workers, and returns the sum, bit
            for bit the same, to every worker; by default there is only one worker.

    Raises:
        ValueError: `ids` is empty, has another length than `own`, is not ascending, or is not below `number`.

    Example:
        >>> share = Share(np.array([[1.0], [2.0]]), ids=np.array([0, 3]), number=4)
        >>> share.everywhere(np.array([7, 8])).tolist()  # rows 1 and 2 would come from another worker
        [7, 0, 0, 8]
    """

    own: np.ndarray
    ids: np.ndarray | None = None
    number: int | None = None
    index: int = 0
    sum: Callable = lambda array: array

    def __post_init__(self):
        ids = self.ids
        if self.number is None and hasattr(self.own, "shape"):
            object.__setattr__(self, "number", len(self.own))
        if ids is None:
            return
        if (not callable(self.own) and len(ids) != len(self.own)) or (np.diff(ids) <= 0).any():
            raise ValueError(f"ids must be ascending, one for each row, got {ids}")
        if len(ids) == 0 or not 0 <= ids[0] <= ids[-1] < self.number:
            raise ValueError(f"ids must be one or more of 0..{self.number - 1}, got {ids}")

    def replace(self, own):
        """Returns the share of another array: `own` has the same rows."""
        return dataclasses.replace(self, own=own)

    def first(self, array):
        """Returns the array of worker 0, on all workers."""
        return self.sum(array if self.index == 0 else np.zeros_like(array))

    def rows(self, ids):
        """Returns some rows of the whole array, (k, ...), on all workers."""
        if self.ids is None:
            return self.own[ids]
        found = np.zeros((len(ids), *self.own.shape[1:]), self.own.dtype)
        place = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        mine = self.ids[place] == ids
        found[mine] = self.own[place[mine]]
        return self.sum(found)

    def take(self, array):
        """Returns this worker's rows of an array (N, ...) that all workers have."""
        return array if self.ids is None else array[self.ids]

    def everywhere(self, own):
        """Combines the rows of all workers, (N, ...), on all workers.

        Args:
            own: (n, ...) array with an entry for each row of this worker, such as its label.
        """
        if self.ids is None or len(self.ids) == self.number:
            return own
        found = np.zeros((self.number, *own.shape[1:]), own.dtype)
        found[self.ids] = own
        return self.sum(found)


def share_of(array):
    """Returns a share that holds all rows of an array, for a single process; returns a `Share` as it is.

    Args:
        array: (N, ...) array, or a `Share`.

    Example:
        >>> share_of(np.zeros((5, 2))).number
        5
    """
    if isinstance(array, Share):
        return array
    return Share(array if callable(array) else np.asarray(array))


def slices(number, rows=8192):
    """Yields slices of consecutive rows, so that temporary arrays do not become as large as the share.

    Args:
        number: int, rows in total.
        rows: int, rows per slice.

    Example:
        >>> list(slices(5, 3))
        [slice(0, 3, None), slice(3, 5, None)]
    """
    for start in range(0, number, rows):
        yield slice(start, min(start + rows, number))
