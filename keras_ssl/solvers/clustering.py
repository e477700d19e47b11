"""k-means, PCA whitening and nearest centroids."""

import numpy as np


def whiten(features, dimensions=256, reference=None):
    """PCA-whitens features and L2-normalizes each of them.

    Args:
        features: (N, D) float array.
        dimensions: int, maximum number of dimensions; the result has fewer if the reference spans fewer.
        reference: (M, D) float array from which the mean and the principal directions are computed,
            such as the features of the training set; by default the features themselves.

    Returns:
        (N, d) float32 array with d <= dimensions; one column of zeros if the reference is constant.

    Reference: Jégou & Chum, "Negative Evidences and Co-occurrences in Image Retrieval: The Benefit of
    PCA and Whitening", ECCV 2012.

    Example:
        >>> whiten(np.random.default_rng(0).normal(size=(50, 8)), 4).shape
        (50, 4)
    """
    from sklearn.decomposition import PCA

    features = np.asarray(features, np.float64)
    reference = features if reference is None else np.asarray(reference, np.float64)
    if (reference == reference[0]).all():
        return np.zeros((len(features), 1), np.float32)
    pca = PCA(min(dimensions, *reference.shape), random_state=0).fit(reference)
    # Directions with nothing but rounding errors would be scaled up to the size of the others.
    variances = pca.explained_variance_
    kept = variances > 1e-7 * variances[0]
    whitened = pca.transform(features)[:, kept] / np.sqrt(variances[kept])
    norms = np.linalg.norm(whitened, axis=1, keepdims=True)
    return (whitened / np.maximum(norms, 1e-12)).astype(np.float32)


def kmeans(features, num_clusters, iterations=20, seed=0):
    """Clusters features by k-means (faiss), without empty clusters.

    An empty cluster gets a copy of the centroid of a random cluster whose members differ. The two
    centroids are moved apart by a small random step, and the members are divided between them
    (DeepCluster, section 3.3). Clusters stay empty only if the features have fewer distinct values
    than there are clusters.

    Args:
        features: (N, D) float array.
        num_clusters: int, at most N.
        iterations: int.
        seed: int, for the initial centroids and the random steps.

    Returns:
        (labels, centroids): (N,) int32 and (num_clusters, D) float32 arrays.

    Raises:
        ValueError: there are fewer than two features or clusters, or more clusters than features.

    Example:
        >>> labels, _ = kmeans(np.array([[0.0], [0.1], [5.0], [5.1]]), 2)
        >>> bool(labels[0] == labels[1] != labels[2] == labels[3])
        True
    """
    import faiss

    features = np.ascontiguousarray(features, np.float32)
    check_number(num_clusters, len(features))
    search = faiss.Kmeans(
        features.shape[1],
        num_clusters,
        niter=iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(features),
        gpu=faiss.get_num_gpus() > 0,  # of another build of faiss than that of the requirements
    )
    search.train(features)
    labels = nearest(features, search.centroids, 1)[1][:, 0]
    return fill_empty(features, labels, search.centroids, seed)


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
    index.add(np.ascontiguousarray(centroids, np.float32))
    squared, indices = index.search(np.ascontiguousarray(features, np.float32), number)
    return squared, indices.astype(np.int32)


def fill_empty(features, labels, centroids, seed=0):
    """Splits another cluster for every empty one, the last step of `kmeans`.

    Args:
        features: (N, D) float array.
        labels: (N,) integer array.
        centroids: (K, D) float array.
        seed: int.

    Returns:
        (labels, centroids): copies of the arguments, without empty clusters if that is possible.

    Example:
        >>> labels, _ = fill_empty(np.array([[0.0], [1.0]]), np.array([0, 0]), np.zeros((2, 1)))
        >>> sorted(labels.tolist())
        [0, 1]
    """
    random = np.random.default_rng(seed)
    labels, centroids = labels.copy(), centroids.copy()
    sizes = np.bincount(labels, minlength=len(centroids))
    candidates = list(random.permutation(np.flatnonzero(sizes > 1)))
    for empty in np.flatnonzero(sizes == 0):
        while candidates:
            cluster = candidates.pop(0)
            members = np.flatnonzero(labels == cluster)
            offsets = features[members] - features[members].mean(0)
            step = random.normal(size=features.shape[1])
            # The offsets sum to zero: unless all are zero, some lie on either side.
            moves = offsets @ step > 0
            if not moves.any():
                continue
            centroids[empty] = centroids[cluster] + 1e-4 * step
            centroids[cluster] -= 1e-4 * step
            labels[members[moves]] = empty
            candidates += [c for c in (cluster, empty) if (labels == c).sum() > 1]
            break
    return labels, centroids


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
