"""k-means, PCA whitening and nearest centroids, for an array or for rows that are spread over workers."""

import numpy as np

from keras_ssl.solvers.shares import Share, share_of, slices


def whiten(features, dimensions=256, reference=None):
    """PCA-whitens features and L2-normalizes each of them.

    Args:
        features: (N, D) float array, or a `shares.Share` of one.
        dimensions: int, maximum number of dimensions; the result has fewer if the reference spans fewer.
        reference: (M, D) float array or `Share` from which the mean and the principal directions are
            computed, such as the features of the training set; by default the features themselves.

    Returns:
        (N, d) float32 array with d <= dimensions, or a `Share` of it; one column of zeros if the reference is
        constant.

    Reference: Jégou & Chum, "Negative Evidences and Co-occurrences in Image Retrieval: The Benefit of
    PCA and Whitening", ECCV 2012.

    Example:
        >>> whiten(np.random.default_rng(0).normal(size=(50, 8)), 4).shape
        (50, 4)
    """
    reference = features if reference is None else reference
    mean, directions, variances = _principal(reference, dimensions)
    # Directions that contain only rounding errors would be scaled up to the size of the others.
    kept = variances > 1e-7 * variances[0]
    basis = directions[:, kept] / np.sqrt(variances[kept])

    def unit(rows):
        found = (rows - mean) @ basis
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)

    if not kept.any():
        return _map(features, lambda rows: np.zeros((len(rows), 1)), 1)
    return _map(features, unit, basis.shape[1])


def pca(features, dimensions):
    """Projects features on their principal directions.

    Args:
        features: (N, D) float array, or a `shares.Share` of one.
        dimensions: int, maximum number of dimensions; at most N and D.

    Returns:
        (N, d) float32 array, or a `Share` of it, with the direction of the largest variance first.

    Example:
        >>> pca(np.array([[0.0, 2.0], [0.0, 6.0]]), 1).tolist()
        [[-2.0], [2.0]]
    """
    mean, directions, _ = _principal(features, dimensions)
    return _map(features, lambda rows: (rows - mean) @ directions, directions.shape[1])


def _principal(features, dimensions):
    """Computes the mean (D,), principal directions (D, d) and variances (d,) of all rows, in float64."""
    share = share_of(features)
    array, width = share.own, share.own.shape[1]
    # Relative to one of the rows, so that the variance of equal rows is exactly 0.
    origin = share.rows(np.array([0]))[0].astype(np.float64)
    total, covariance = np.zeros(width), np.zeros((width, width))
    for part in slices(len(array)):
        total += (array[part] - origin).sum(axis=0)
    mean = origin + share.sum(total) / share.number
    for part in slices(len(array)):
        centered = array[part] - mean
        covariance += centered.T @ centered
    covariance = share.sum(covariance) / max(1, share.number - 1)
    if not np.isfinite(covariance).all():  # on all workers
        raise ValueError("features must be finite, got NaN or infinity")
    variances, directions = np.linalg.eigh(covariance)
    number = min(dimensions, share.number, width)
    variances, directions = variances[::-1][:number], directions[:, ::-1][:, :number]
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.where(directions[largest, np.arange(number)] < 0, -1, 1)
    # All workers use the directions of one worker: another kind of machine may find the opposite ones.
    found = share.first(np.concatenate([np.maximum(variances, 0)[None], directions]))
    return mean, found[1:], found[0]


def _map(features, function, width):
    """Applies a function to blocks of rows in float64: (n, width) float32, as array or `Share`."""
    array = share_of(features).own
    found = np.empty((len(array), width), np.float32)
    for part in slices(len(array)):
        found[part] = function(array[part].astype(np.float64))
    return features.replace(found) if isinstance(features, Share) else found


def kmeans(features, num_clusters, iterations=20, seed=0):
    """Clusters features by k-means (Lloyd's algorithm), without empty clusters.

    The first centroids are random features. The nearest ones are searched exactly, by faiss; sums are in
    float64. An empty cluster gets a part of a random cluster whose members differ: the members on one side of
    a random plane through its mean (DeepCluster, section 3.3). Clusters stay empty only if the features have
    fewer distinct values than there are clusters.

    Over several workers the features stay where they are. In every iteration the workers exchange the sizes
    of the clusters and the sums of their members, so they find the same clusters as a single worker, except
    for features that are equally far from two centroids up to rounding.

    Args:
        features: (N, D) float array, or a `shares.Share` of one.
        num_clusters: int, at most N.
        iterations: int, maximum; fewer are done if the clusters no longer change.
        seed: int, for the initial centroids and the random planes.

    Returns:
        (labels, centroids): (N,) int32 and (num_clusters, D) float32 arrays; for a `Share`, the labels are
        those of its own rows, (n,).

    Raises:
        ValueError: there are fewer than two features or clusters, or more clusters than features; a feature
            is not finite.

    Example:
        >>> labels, _ = kmeans(np.array([[0.0], [0.1], [5.0], [5.1]]), 2)
        >>> bool(labels[0] == labels[1] != labels[2] == labels[3])
        True
    """
    share = share_of(features)
    share = share.replace(np.ascontiguousarray(share.own, np.float32))
    check_number(num_clusters, share.number)
    wrong = sum(np.sum(~np.isfinite(share.own[part])) for part in slices(len(share.own)))
    if wrong := int(share.sum(np.array(wrong))):
        raise ValueError(f"features must be finite, got {wrong} numbers that are NaN or infinite")
    random = np.random.default_rng(seed)
    centroids = share.rows(random.choice(share.number, num_clusters, replace=False))
    for _ in range(iterations):
        labels = nearest(share.own, centroids, 1)[1][:, 0]
        labels, _ = _fill(share, labels, centroids, random)
        sums, sizes = _sums(share, labels, num_clusters)
        means = np.where(sizes > 0, sums / np.maximum(sizes, 1), centroids).astype(np.float32)
        if (means == centroids).all():
            break
        centroids = means
    labels = nearest(share.own, centroids, 1)[1][:, 0]
    return _fill(share, labels, centroids, random)


def nearest(features, centroids, number):
    """Finds the nearest centroids of each feature.

    Args:
        features: (N, D) float32 array.
        centroids: (K, D) float32 array.
        number: int, at most K.

    Returns:
        (squared, indices): (N, number) float32 squared distances and int32 indices, nearest first.

    Example:
        >>> nearest(np.array([[1.0]]), np.array([[0.0], [3.0]]), 2)[0].tolist()
        [[1.0, 4.0]]
    """
    import faiss

    index = faiss.IndexFlatL2(centroids.shape[1])
    if faiss.get_num_gpus() > 0:  # with another build of faiss than the required one
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(np.ascontiguousarray(centroids, np.float32))
    squared, indices = index.search(np.ascontiguousarray(features, np.float32), number)
    return squared, indices.astype(np.int32)


def distances(features, labels, centroids):
    """Computes the distance of each feature to the centroid of its cluster.

    Args:
        features: (N, D) float array, or a `shares.Share` of one.
        labels: (N,) integer array; for a `Share`, the labels of its own rows.
        centroids: (K, D) float array.

    Returns:
        (N,) float64 array; for a `Share`, the distances of its own rows.

    Example:
        >>> distances(np.array([[1.0, 4.0]]), np.array([1]), np.array([[0.0, 0.0], [1.0, 1.0]])).tolist()
        [3.0]
    """
    array = share_of(features).own
    found = np.empty(len(array))
    for part in slices(len(array)):
        found[part] = np.linalg.norm(array[part] - centroids[labels[part]], axis=1)
    return found


def _sums(share, labels, number):
    """Computes the sums (number, D) and sizes (number, 1) of groups of the rows of all workers, in float64.

    Rows with the label -1 are in no group.
    """
    from scipy.sparse import csr_matrix

    width = share.own.shape[1]
    found = np.zeros((number, width + 1))
    for part in slices(len(labels), max(8192, number)):
        rows = np.flatnonzero(labels[part] >= 0)
        one = np.ones(len(rows)), labels[part][rows], np.arange(len(rows) + 1)
        # A sparse product reads each row once; np.add.at takes ten times as long.
        member = csr_matrix(one, shape=(len(rows), number)).T
        found[:, :width] += member @ share.own[part][rows].astype(np.float64)
        found[:, width] += np.bincount(one[1], minlength=number)
    found = share.sum(found)
    return found[:, :width], found[:, width:]


def fill_empty(features, labels, centroids, seed=0):
    """Fills every empty cluster with a part of another cluster, as `kmeans` does.

    Args:
        features: (N, D) float array, or a `shares.Share` of one.
        labels: (N,) integer array; for a `Share`, the labels of its own rows.
        centroids: (K, D) float array.
        seed: int.

    Returns:
        (labels, centroids): copies of the arguments, without empty clusters if possible. The centroid of a
        filled cluster is a perturbed copy of that of the divided cluster.

    Example:
        >>> labels, _ = fill_empty(np.array([[0.0], [1.0]]), np.array([0, 0]), np.zeros((2, 1)))
        >>> sorted(labels.tolist())
        [0, 1]
    """
    return _fill(share_of(features), labels, centroids, np.random.default_rng(seed))


def _fill(share, labels, centroids, random):
    sizes = share.sum(np.bincount(labels, minlength=len(centroids)))
    empty = np.flatnonzero(sizes == 0)
    if not len(empty):
        return labels, centroids
    labels, centroids = labels.copy(), centroids.copy()
    candidates = random.permutation(np.flatnonzero(sizes > 1))
    while len(empty) and len(candidates):
        divided, candidates = np.split(candidates, [len(empty)])
        steps = random.normal(size=(len(divided), centroids.shape[1]))
        moving, groups = _moves(share, labels, divided, steps)
        moved = share.sum(np.bincount(groups, minlength=len(divided)))
        succeeded = np.flatnonzero((moved > 0) & (moved < sizes[divided]))
        old, new, empty = divided[succeeded], *np.split(empty, [len(succeeded)])
        centroids[new] = centroids[old] + 1e-4 * steps[succeeded]
        centroids[old] -= 1e-4 * steps[succeeded]
        target = np.full(len(divided), -1)
        target[succeeded] = new
        kept = target[groups] >= 0
        labels[moving[kept]] = target[groups[kept]]
        sizes[new], sizes[old] = moved[succeeded], sizes[old] - moved[succeeded]
        both = np.stack([old, new], axis=1).ravel()
        candidates = np.concatenate([candidates, both[sizes[both] > 1]])
    return labels, centroids


def _moves(share, labels, divided, steps):
    """Finds this worker's rows of clusters to divide, on the positive side of a plane through the mean.

    Args:
        divided: (C,) integer array, the clusters to divide.
        steps: (C, D) array, the normals of the planes.

    Returns:
        (rows, groups): (m,) integer arrays, the rows, and for each the index of its cluster in `divided`.
    """
    group = np.full(labels.max(initial=divided.max()) + 1, -1)
    group[divided] = np.arange(len(divided))
    groups = group[labels]
    sums, sizes = _sums(share, groups, len(divided))
    means, rows, found = sums / sizes, np.flatnonzero(groups >= 0), []
    for part in slices(len(rows)):
        own = groups[rows[part]]
        # Offsets sum to zero, so unless all are zero, some lie on either side. Each row is summed by itself:
        # the rounding of a matrix product depends on the row and could separate equal features.
        offsets = share.own[rows[part]] - means[own]
        found.append((offsets * steps[own]).sum(axis=1) > 0)
    rows = rows[np.concatenate(found)] if found else rows
    return rows, groups[rows]


def check_number(num_clusters, num_images):
    """Validates the number of clusters.

    Args:
        num_clusters, num_images: int.

    Raises:
        ValueError: fewer than two images, fewer than two clusters, or more clusters than images.
    """
    if num_images < 2:
        raise ValueError(f"num_images must be at least 2 to be clustered, got {num_images}")
    if not 2 <= num_clusters <= num_images:
        raise ValueError(
            f"num_clusters must be in 2..{num_images}, the number of images, got {num_clusters}"
        )
