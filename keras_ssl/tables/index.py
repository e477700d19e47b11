"""LanceDB's index of a table, and queries to it."""

import math
import time

from keras_ssl.tables import store

EXACT_ROWS = 100_000  # up to this number, all vectors are compared in memory
KINDS = ("ivf_pq", "hnsw")
# Measured by tools/bench_search.py, for a recall@10 of 0.95: cells that a query reads, and candidates per
# neighbor that are compared again by their full vectors.
PROBES, REFINED = 20, 10
MANY_ROWS = 2_000_000  # from this number on, there are twice as many candidates
DIMENSIONS_PER_BYTE = 4  # of the compressed vectors of IVF_PQ
HNSW_ROWS = 500_000  # per graph


def build(table, kind="ivf_pq"):
    """Builds the index of a table, and replaces an existing one.

    Args:
        table: FeatureTable.
        kind: "ivf_pq", cells of vectors compressed to D / 4 bytes; or "hnsw", graphs of vectors compressed to
            D bytes, which are faster to search, larger and slower to build.

    Returns:
        float, duration in seconds.

    Raises:
        ValueError: `kind` is unknown, or the table is being updated.

    Example:
        >>> build(FeatureTable("features.lance"))                       # doctest: +SKIP
        61.5
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be of {', '.join(KINDS)}, got {kind!r}")
    store.lancedb()
    from lancedb.index import BTree

    start = time.monotonic()
    with store.locked(table.path):  # LanceDB would refuse the commit of one of the two
        table.refresh()
        table.lance.create_index("vector", config=_config(kind, table.count(), table.dimensions))
        # Among ten million rows, reading one by its id takes 3 instead of 120 ms.
        table.lance.create_index("id", config=BTree())
    return time.monotonic() - start


def _config(kind, rows, dimensions):
    from lancedb import index

    if kind == "hnsw":
        return index.HnswSq("cosine", num_partitions=max(round(rows / HNSW_ROWS), 1))
    bytes_each = _divisor(dimensions, dimensions // DIMENSIONS_PER_BYTE)
    return index.IvfPq(
        "cosine", num_partitions=max(round(math.sqrt(rows)), 1), num_sub_vectors=bytes_each
    )


def _divisor(number, most):
    """Returns the largest divisor of a number that is at most `most`, and at least 1."""
    return next((i for i in range(max(most, 1), 0, -1) if number % i == 0), 1)


def query(table, vector, number, columns):
    """Finds the nearest rows with LanceDB: by the index if there is one, or else among all rows on the disk.

    Args:
        table: FeatureTable.
        vector: (D,) float32 array.
        number: int.
        columns: list of str.

    Returns:
        list of dicts of `columns` and `cosine`, the most similar first.
    """
    refined = REFINED * (1 + (table.count() > MANY_ROWS))
    found = table.lance.search(vector).distance_type("cosine").limit(number)
    found = found.nprobes(PROBES).refine_factor(refined).select([*columns, "_distance"])
    return [{**row, "cosine": 1 - row.pop("_distance")} for row in found.to_arrow().to_pylist()]
