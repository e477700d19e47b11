"""Retrieval: which pages are by the same writer? Descriptors to encodings, encodings to mAP and top-k."""

import numpy as np

from keras_ssl.solvers import clustering


def vlad(descriptors, groups, centroids, power=0.5):
    """Encodes groups of local descriptors (the patches of a page) as one vector each.

    For each centroid, the differences between it and the descriptors that are nearest to it are
    summed; powers of the absolute values keep frequent patterns from drowning the rest.

    Args:
        descriptors: (N, D) float array.
        groups: (N,) integer array, the group of each descriptor, 0 to G - 1.
        centroids: (K, D) float array, for example of `clustering.kmeans`.
        power: float in 0..1; 1 keeps the sums as they are.

    Returns:
        (G, K * D) float32 array of vectors of length 1 (0 for a group without descriptors).

    Raises:
        ValueError: shapes that do not fit, or a negative group.

    Reference: Jégou et al., "Aggregating Local Image Descriptors into Compact Codes", PAMI 2012.

    Example:
        >>> vlad([[1.0], [2.0], [9.0]], [0, 0, 1], [[0.0], [10.0]], power=1).tolist()
        [[1.0, 0.0], [0.0, -1.0]]
    """
    descriptors, centroids = (np.asarray(a, np.float32) for a in (descriptors, centroids))
    groups = np.asarray(groups)
    if descriptors.ndim != 2 or groups.shape != descriptors.shape[:1] or not len(groups):
        raise ValueError(
            f"descriptors must be (N, D) and groups (N,), got {descriptors.shape} and {groups.shape}"
        )
    if centroids.ndim != 2 or centroids.shape[1] != descriptors.shape[1]:
        raise ValueError(
            f"centroids must be (K, {descriptors.shape[1]}) as the descriptors, got {centroids.shape}"
        )
    if groups.min() < 0:
        raise ValueError(f"groups must be 0 or more, got {groups.min()}")
    nearest = clustering.nearest(descriptors, centroids, 1)[1][:, 0]
    sums = np.zeros((groups.max() + 1, *centroids.shape))
    np.add.at(sums, (groups, nearest), descriptors - centroids[nearest])
    sums = sums.reshape(len(sums), -1)
    sums = np.sign(sums) * np.abs(sums) ** power
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return (sums / np.maximum(norms, 1e-12)).astype(np.float32)


def retrieval(encodings, labels, top=(1, 5)):
    """Queries with every encoding for the others of its label, by cosine similarity.

    Args:
        encodings: (N, D) float array, one per page.
        labels: (N,) array, the writer of each.
        top: ints k; a query counts where one of its k nearest has its label.

    Returns:
        dict of floats in 0..1: `map`, the mean average precision, and `top1`, `top5`, ... Queries whose
        label nothing else has are left out.

    Raises:
        ValueError: shapes that do not fit, encodings that are not finite, or no label that two share.

    Example:
        >>> retrieval([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], [0, 0, 1, 1], top=[1])
        {'map': 1.0, 'top1': 1.0}
    """
    encodings, labels = np.asarray(encodings, np.float64), np.asarray(labels)
    if encodings.ndim != 2 or labels.shape != encodings.shape[:1]:
        raise ValueError(
            f"encodings must be (N, D) and labels (N,), got {encodings.shape} and {labels.shape}"
        )
    if not np.isfinite(encodings).all():
        raise ValueError("encodings must be finite, got NaN or infinity")
    same = labels[:, None] == labels[None]
    queries = np.flatnonzero(same.sum(1) > 1)
    if not len(queries):
        raise ValueError("labels must have at least one value that two encodings share")
    unit = encodings / np.maximum(np.linalg.norm(encodings, axis=1, keepdims=True), 1e-12)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)  # the query itself comes last, and is cut off
    order = np.argsort(-similarity, axis=1, kind="stable")[queries, :-1]
    hits = np.take_along_axis(same[queries], order, axis=1)
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    average = (precision * hits).sum(1) / hits.sum(1)
    found = {f"top{k}": float(hits[:, :k].any(1).mean()) for k in top}
    return {"map": float(average.mean()), **found}
