"""Retrieval: VLAD encodings of local descriptors, exemplar SVMs, mean average precision and top-k."""

import numpy as np

from keras_ssl.solvers import clustering


def vlad(descriptors, groups, centroids, power=0.5):
    """Encodes each group of local descriptors (the patches of a page) as one VLAD vector.

    For each centroid, the differences between it and the descriptors nearest to it are summed. Power
    normalization keeps frequent patterns from dominating the others. With several codebooks (m-VLAD) the
    vectors of all of them are concatenated; whiten these with `clustering.whiten` and the training
    groups as `reference`, since they are correlated.

    Args:
        descriptors: (N, D) float array.
        groups: (N,) integer array, the group of each descriptor, 0 to G - 1.
        centroids: (K, D) float array, for example from `clustering.kmeans`, or (M, K, D), M codebooks, such
            as those of M different seeds.
        power: float in [0, 1], of the power normalization; 1 keeps the sums as they are.

    Returns:
        (G, K * D) or (G, M * K * D) float32 array of vectors of length 1 (zeros for a group without
        descriptors).

    Raises:
        ValueError: shapes do not match, or a group is negative.

    Reference: Jégou et al., "Aggregating Local Image Descriptors into Compact Codes", PAMI 2012; Jégou &
    Chum, ECCV 2012, and Christlein et al., "Writer Identification Using VLAD Encoded Contour-Zernike
    Moments", ICDAR 2015 (m-VLAD).

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
    if centroids.ndim not in (2, 3) or centroids.shape[-1] != descriptors.shape[1]:
        raise ValueError(
            f"centroids must be (K, {descriptors.shape[1]}) as the descriptors, or several such arrays, "
            f"got {centroids.shape}"
        )
    if groups.min() < 0:
        raise ValueError(f"groups must be 0 or more, got {groups.min()}")
    if centroids.ndim == 3:
        parts = [vlad(descriptors, groups, codebook, power) for codebook in centroids]
        return np.concatenate(parts, axis=1) / np.float32(np.sqrt(len(parts)))
    nearest = clustering.nearest(descriptors, centroids, 1)[1][:, 0]
    sums = np.zeros((groups.max() + 1, *centroids.shape))
    np.add.at(sums, (groups, nearest), descriptors - centroids[nearest])
    sums = sums.reshape(len(sums), -1)
    sums = np.sign(sums) * np.abs(sums) ** power
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return (sums / np.maximum(norms, 1e-12)).astype(np.float32)


def exemplar_svm(encodings, negatives, cost=1000.0):
    """Replaces each encoding by the direction that separates it from all negatives.

    For each encoding a linear SVM is fitted, in which the encoding is the only positive example and has the
    same weight as all negatives together. The normal of the SVM's plane is the new encoding.

    Args:
        encodings: (G, D) float array, the queries, for example from `vlad`, of length 1.
        negatives: (N, D) float array, encodings with other labels than the queries, such as all pages of the
            training set.
        cost: float, cost of a violated margin, C of the SVM.

    Returns:
        (G, D) float32 array of vectors of length 1.

    Raises:
        ValueError: shapes do not match, a value is not finite, or `cost` is not positive.

    Reference: Malisiewicz, Gupta & Efros, "Ensemble of Exemplar-SVMs for Object Detection and Beyond", ICCV
    2011; Christlein et al., "Writer Identification Using GMM Supervectors and Exemplar-SVMs", Pattern
    Recognition 2017.

    Example:
        >>> exemplar_svm([[1.0, 0.0]], [[0.0, 1.0], [0.0, -1.0]]).round(2).tolist()
        [[1.0, 0.0]]
    """
    from sklearn.svm import LinearSVC

    encodings, negatives = (np.asarray(a, np.float64) for a in (encodings, negatives))
    shapes = encodings.shape, negatives.shape
    if not all(len(s) == 2 and s[0] for s in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"encodings must be (G, D) and negatives (N, D), got {shapes[0]} and {shapes[1]}"
        )
    if not (np.isfinite(encodings).all() and np.isfinite(negatives).all()):
        raise ValueError("encodings and negatives must be finite, got NaN or infinity")
    if not cost > 0:
        raise ValueError(f"cost must be positive, got {cost}")
    labels = np.arange(len(negatives) + 1) == 0
    normals = []
    for query in encodings:
        svm = LinearSVC(C=cost, class_weight="balanced", random_state=0, dual=True, max_iter=10_000)
        normals.append(svm.fit(np.concatenate([query[None], negatives]), labels).coef_[0])
    normals = np.stack(normals)
    norms = np.linalg.norm(normals, axis=1, keepdims=True)
    return (normals / np.maximum(norms, 1e-12)).astype(np.float32)


def retrieval(encodings, labels, top=(1, 5), hard=()):
    """Computes mAP and top-k accuracy of retrieving encodings of the same label by cosine similarity.

    Every encoding is a query once, and all others are ranked.

    Args:
        encodings: (N, D) float array, for example one row per page.
        labels: (N,) array, for example the writer of each page.
        top: ints k; a query is a success if at least one of its k nearest encodings has its label (soft
            top-k of the competitions).
        hard: ints k; a query is a success only if all of its k nearest encodings have its label (hard top-k).

    Returns:
        dict of floats in [0, 1]: `map`, the mean average precision, `top1`, `top5`, ... and `hard2`, ...
        Queries whose label is unique are left out.

    Raises:
        ValueError: shapes do not match, encodings are not finite, or all labels are unique.

    Reference: Louloudis et al., "ICDAR 2013 Competition on Writer Identification", ICDAR 2013, for soft and
    hard top-k.

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
    if not all(1 <= k <= hits.shape[1] for k in hard):
        raise ValueError(f"hard must be in 1..{hits.shape[1]}, the other encodings, got {hard}")
    found |= {f"hard{k}": float(hits[:, :k].all(1).mean()) for k in hard}
    return {"map": float(average.mean()), **found}
