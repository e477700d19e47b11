"""Groups of near-duplicates in a table of features."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from keras_ssl.arguments import check_fraction
from keras_ssl.tables import index
from keras_ssl.tables.neighbors import Match, in_memory
from keras_ssl.tables.store import SHOWN, FeatureTable

BLOCK, WIDTH = 2048, 16_384  # rows and other rows compared at once: 128 MiB of cosines
EXACT_ROWS = 500_000  # above this, the index is used if there is one
NEIGHBORS = 20  # that the index proposes for each row
THREADS = 2


def duplicates(table, above=0.98):
    """Finds groups of rows whose features have a cosine above a threshold: near-duplicates.

    Two rows are in the same group if a chain of such pairs leads from one to the other. All pairs are
    compared, except in a table of more than 500,000 rows with an index, where each row is compared with its
    20 nearest neighbors.

    Args:
        table: str, path of a table that `keras-ssl extract` wrote, or a `tables.FeatureTable`.
        above: float in 0..1.

    Returns:
        list of groups, the largest first. A group is a list of at least two `tables.Match`, the image with
        most pixels first; the cosines are relative to this image.

    Raises:
        ValueError: the table is empty, or `above` is not in 0..1.
        ImportError: LanceDB is not installed.

    Example:
        >>> for group in duplicates("features.lance"):                  # doctest: +SKIP
        ...     print([match.path for match in group])
        ['/photos/a.jpg', '/photos/copies/a_small.jpg']
    """
    above = check_fraction("above", above)
    if not isinstance(table, FeatureTable):
        table = FeatureTable(table)
    table.refresh()
    kept = in_memory(table)
    ids, matrix = kept.ids, kept.unit
    by_index = len(ids) > EXACT_ROWS and table.lance.list_indices()
    pairs = _indexed_pairs(table, ids, matrix, above) if by_index else _pairs(matrix, above)
    groups = _components(pairs, len(ids))
    rows = {
        row["id"]: row
        for row in table.rows(
            [ids[i] for group in groups for i in group], [*SHOWN, "height", "width"]
        )
    }
    found = [_ordered(group, ids, matrix, rows) for group in groups]
    return sorted(found, key=lambda group: (-len(group), group[0].path, group[0].time or 0))


def _pairs(matrix, above):
    """Returns (P, 2) row numbers that connect all pairs with a cosine above the threshold, P < 2 N."""
    number = len(matrix)
    links = np.empty((0, 2), np.int64)
    for start in range(0, number, BLOCK):
        found = [links]
        for other in range(start, number, WIDTH):
            cosines = matrix[start : start + BLOCK] @ matrix[other : other + WIDTH].T
            first, second = np.nonzero(cosines > above)
            pairs = np.stack([start + first, other + second], axis=1)
            found.append(pairs[pairs[:, 0] < pairs[:, 1]])
        # A thousand copies of an image are half a million pairs, but a chain of them is enough.
        chains = _components(np.concatenate(found), number)
        ends = [np.stack([chain[:-1], chain[1:]], axis=1) for chain in chains]
        links = np.concatenate([np.empty((0, 2), np.int64), *ends])
    return links


def _indexed_pairs(table, ids, matrix, above):
    """As `_pairs`, among the nearest neighbors of each row by the index of the table."""

    def neighbors(i):
        near = index.query(table, matrix[i], NEIGHBORS, ["id"])
        near = [row["id"] for row in near if row["cosine"] > above and row["id"] != ids[i]]
        return [(i, j) for j in np.searchsorted(ids, near)]

    with ThreadPoolExecutor(THREADS) as pool:
        pairs = [pair for part in pool.map(neighbors, range(len(ids))) for pair in part]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _components(pairs, number):
    """Returns the connected components with at least two members, as a list of arrays of row numbers."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(pairs), np.int8), pairs.T), (number, number))
    _, component = connected_components(links, directed=False)
    members = np.unique(pairs)
    order = members[np.argsort(component[members], kind="stable")]
    ends = np.flatnonzero(np.diff(component[order])) + 1
    return np.split(order, ends) if len(order) else []


def _ordered(group, ids, matrix, rows):
    """Returns the matches of a group, the image with most pixels first."""

    def key(i):
        row = rows[ids[i]]
        return (-(row["height"] or 0) * (row["width"] or 0), row["path"], row["time"] or 0)

    best, *others = sorted(group, key=key)
    found = []
    for i in (best, *others):
        row = rows[ids[i]]
        # Not the product of a row with itself, which is not exactly 1 because of rounding.
        cosine = 1.0 if i == best else float(min(matrix[best] @ matrix[i], 1.0))
        found.append(Match(row["id"], row["path"], row["time"], row["label"], cosine))
    return found
