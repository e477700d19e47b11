"""Geometry of features: their spread, their effective rank, alignment and uniformity."""

import math

import numpy as np


def feature_std(features):
    """Computes the standard deviation of features over the images, relative to their norm.

    Args:
        features: (N, D) float array.

    Returns:
        float in [0, 1]: the square root of the variance, summed over the dimensions and divided by the mean
        squared norm. 0 if all images have the same features or features are not finite; 1 if their mean
        is 0.

    Raises:
        ValueError: `features` is not an (N, D) array with N and D of at least 1.

    Example:
        >>> round(feature_std([[1.0, 1.0], [1.0, -1.0]]) ** 2, 3)
        0.5
    """
    features = _normalized(features)
    return float(np.sqrt(np.square(features - features.mean(axis=0)).mean(axis=0).sum()))


def effective_rank(features):
    """Computes the effective rank of features: the exponential of the entropy of their singular values.

    Args:
        features: (N, D) float array, centered first.

    Returns:
        float: k if features vary in k directions by equal amounts, between 1 and k if the amounts differ. 0
        if all images have the same features or features are not finite.

    Raises:
        ValueError: `features` is not an (N, D) array with N and D of at least 1.

    Reference: Roy & Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007;
    Garrido et al., "RankMe", ICML 2023, where it predicts the accuracy of linear probes.

    Example:
        >>> round(effective_rank([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]), 3)
        2.0
    """
    features = _normalized(features)
    values = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    # Equal features differ by rounding errors in float32, which have a high rank.
    values = values[values > np.finfo(np.float32).eps * math.sqrt(len(features))]
    if not len(values):
        return 0.0
    parts = values / values.sum()
    return float(np.exp(-(parts * np.log(parts)).sum()))


def alignment(features, other, alpha=2):
    """Computes the alignment of two views of each image: the mean power of their features' distance.

    Args:
        features, other: (N, D) float arrays, row i of both from the same image; L2-normalized first.
        alpha: float, the power of the Euclidean distance.

    Returns:
        float, 0 if the views of each image have the same direction; 2 if they are orthogonal and 4 if they
        are opposite, for alpha = 2.

    Raises:
        ValueError: the arrays are not (N, D) of the same shape, or have a row that is 0 or not finite.

    Reference: Wang & Isola, "Understanding Contrastive Representation Learning through Alignment and
    Uniformity on the Hypersphere", ICML 2020.

    Example:
        >>> round(alignment([[1.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [3.0, 0.0]]), 3)
        1.0
    """
    features, other = _unit("features", features), _unit("other", other)
    if features.shape != other.shape:
        raise ValueError(
            f"features and other must have the same shape, got {features.shape} and {other.shape}"
        )
    return float((np.linalg.norm(features - other, axis=1) ** alpha).mean())


def uniformity(features, t=2):
    """Computes the uniformity of features on the sphere: the logarithm of the mean Gaussian potential.

    Args:
        features: (N, D) float array with N of at least 2, L2-normalized first. All pairs are compared: a
            few thousand images are enough.
        t: float, exp(-t * squared distance) is the potential of a pair.

    Returns:
        float, 0 if all features have the same direction, and negative otherwise. For t = 2, features that are
        uniform on the sphere have -1.58 in 2 dimensions, -2.08 in 3 and -3.88 in 64; in more dimensions the
        value approaches -4.

    Raises:
        ValueError: the array is not (N, D) with N of at least 2, or has a row that is 0 or not finite.

    Reference: Wang & Isola, ICML 2020, as in `alignment`.

    Example:
        >>> round(uniformity([[1.0, 0.0], [-1.0, 0.0]]), 3)                  # one pair, at distance 2
        -8.0
    """
    features = _unit("features", features)
    if len(features) < 2:
        raise ValueError("features must have at least two rows, got 1")
    total, number = 0.0, len(features)
    for start in range(0, number, 1024):
        similarity = features[start : start + 1024] @ features.T
        potential = np.exp(-t * np.maximum(2 - 2 * similarity, 0))
        rows = np.arange(len(potential))
        potential[rows, start + rows] = 0  # a row and itself are not a pair
        total += potential.sum()
    return float(np.log(total / (number * (number - 1))))


def _unit(name, features):
    """Returns rows of length 1, in float64."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"{name} must be a (N, D) array, got shape {features.shape}")
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    if not (np.isfinite(norms).all() and norms.all()):
        raise ValueError(f"{name} must be finite and no row 0, got one of length {norms.min()}")
    return features / norms


def _normalized(features):
    """Scales features to a mean squared norm of 1, in float64; returns zeros if that is impossible."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features must be a (N, D) array, got shape {features.shape}")
    largest = np.abs(features).max()
    if not (np.isfinite(largest) and largest > 0):
        return np.zeros_like(features)
    features = features / largest  # so that squares of large values do not overflow
    return features / np.sqrt(np.square(features).sum(axis=1).mean())
