"""Geometry of features on the unit sphere: alignment and uniformity."""

import numpy as np

BLOCK = 1_000  # rows of the distance matrix at a time


def alignment(first, second, alpha=2):
    """Computes the mean distance between the features of two views of the same images.

    Args:
        first, second: (N, D) float arrays, row i of both from image i; scaled to unit length here.
        alpha: float, the power of the Euclidean distance.

    Returns:
        float, 0 for equal features, 2 for orthogonal and 4 for opposite ones (with `alpha=2`).

    Raises:
        ValueError: the arrays are not (N, D) of the same shape, or a feature is zero or not finite.

    Reference: Wang & Isola, "Understanding Contrastive Representation Learning through Alignment and
    Uniformity on the Hypersphere", ICML 2020, section 4.1.

    Example:
        >>> round(alignment([[3.0, 0.0]], [[0.0, 1.0]]), 6)
        2.0
    """
    first, second = _unit("first", first), _unit("second", second)
    if first.shape != second.shape:
        raise ValueError(
            f"first and second must have the same shape, got {first.shape} and {second.shape}"
        )
    return float(np.mean(np.linalg.norm(first - second, axis=1) ** alpha))


def uniformity(features, t=2):
    """Computes the logarithm of the mean Gaussian potential of all pairs of features.

    Args:
        features: (N, D) float array; scaled to unit length here.
        t: float, of the potential exp(-t * squared distance).

    Returns:
        float, 0 if all features are equal, and about -2 t for features that are uniform on a sphere of many
        dimensions (-3.94 for t = 2, D = 128).

    Raises:
        ValueError: there are fewer than two features, or one is zero or not finite.

    Reference: Wang & Isola, ICML 2020, section 4.1.

    Example:
        >>> round(uniformity([[1.0, 0.0], [-1.0, 0.0]]), 6)
        -8.0
    """
    features = _unit("features", features)
    number = len(features)
    if number < 2:
        raise ValueError(f"features must have at least two rows, got {number}")
    total = 0.0
    for start in range(0, number, BLOCK):
        # Squared distances of vectors of unit length; those of a row to itself are left out below.
        similarity = features[start : start + BLOCK] @ features.T
        total += np.exp(np.minimum(2 * t * (similarity - 1), 0)).sum()
    return float(np.log((total - number) / (number * (number - 1))))


def _unit(name, features):
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or not len(features):
        raise ValueError(f"{name} must be (N, D) with N > 0, got shape {features.shape}")
    length = np.linalg.norm(features, axis=1, keepdims=True)
    if not (np.isfinite(length) & (length > 0)).all():
        raise ValueError(f"{name} must be finite and not zero, got a row of length {length.min()}")
    return features / length
