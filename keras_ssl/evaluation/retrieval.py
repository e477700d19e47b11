"""Retrieval: VLAD encodings of local descriptors, mean average precision and top-k."""

import numpy as np

from keras_ssl.solvers import clustering


def vlad(descriptors, groups, centroids, power=0.5):
    """Encodes each group of local descriptors (the patches of a page) as one VLAD vector.

    For each centroid, the differences between it and the descriptors nearest to it are summed. Power
    normalization keeps frequent patterns from dominating the others.

    Args:
        descriptors: (N, D) float array.
        groups: (N,) integer array, the group of each descriptor, 0 to G - 1.
        centroids: (K, D) float array, for example from `clustering.kmeans`.
        power: float in [0, 1], of the power normalization; 1 keeps the sums as they are.

    Returns:
        (G, K * D) float32 array of vectors of length 1 (zeros for a group without descriptors).

    Raises:
        ValueError: shapes do not match, or a group is negative.

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
    """Computes mAP and top-k accuracy of retrieving encodings of the same label by cosine similarity.

    Every encoding is a query once, and all others are ranked.

    Args:
        encodings: (N, D) float array, for example one row per page.
        labels: (N,) array, for example the writer of each page.
        top: ints k; a query is a success if one of its k nearest encodings has its label.

    Returns:
        dict of floats in [0, 1]: `map`, the mean average precision, and `top1`, `top5`, ... Queries whose
        label is unique are left out.

    Raises:
        ValueError: shapes do not match, encodings are not finite, or all labels are unique.

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
    np.fill_diagonal(similarity, -np.inf)  # ranks the query itself last, where it is cut off
    order = np.argsort(-similarity, axis=1, kind="stable")[queries, :-1]
    hits = np.take_along_axis(same[queries], order, axis=1)
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    average = (precision * hits).sum(1) / hits.sum(1)
    found = {f"top{k}": float(hits[:, :k].any(1).mean()) for k in top}
    return {"map": float(average.mean()), **found}
