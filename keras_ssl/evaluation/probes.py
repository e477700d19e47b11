"""Weighted kNN and linear probe, the two standard evaluations of frozen features."""

import numpy as np

from keras_ssl.evaluation import logistic


def knn(train_features, train_labels, test_features, test_labels, k=20, temperature=0.07, top=1):
    """Computes the accuracy of a weighted kNN classifier with cosine similarity.

    Each of the k nearest training features votes for its label with weight
    exp(similarity / temperature). The paper uses k = 200.

    Args:
        train_features, test_features: (N, D) and (M, D) float arrays.
        train_labels, test_labels: (N,) and (M,) integer arrays.
        k: int, number of neighbors.
        temperature: float; a smaller one gives the nearest neighbors more weight.
        top: int, a prediction is correct if the label is among the `top` classes with the most votes.

    Returns:
        float, the accuracy on the test set, in [0, 1].

    Raises:
        ValueError: shapes do not match, features are not finite, k is not in 1..N, or `top` is below 1.

    Reference: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination", CVPR 2018, section 3.4.

    Example:
        >>> knn(np.eye(3), [0, 1, 2], np.eye(3) + 0.1, [0, 1, 2], k=1)
        1.0
    """
    arrays = checked(train_features, train_labels, test_features, test_labels)
    if not 1 <= k <= len(arrays[0]):
        raise ValueError(f"k must be in 1..{len(arrays[0])}, the number of train_features, got {k}")
    return knn_accuracies(*arrays, [(k, top)], temperature)[0]


def knn_accuracies(train, train_labels, test, test_labels, variants, temperature=0.07):
    """Computes several accuracies of kNN from one search.

    Args:
        train, test: (N, D) and (M, D) float32 arrays, which are normalized in place.
        train_labels, test_labels: (N,) and (M,) integer arrays.
        variants: list of (k, top).
        temperature: float.

    Returns:
        list of floats in [0, 1], one for each pair of `variants`.
    """
    import faiss

    for features in (train, test):
        faiss.normalize_L2(features)
    index = faiss.IndexFlatIP(train.shape[1])
    index.add(train)
    similarity, neighbors = index.search(test, max(k for k, _ in variants))
    classes, codes = np.unique(train_labels, return_inverse=True)
    # The largest similarity is subtracted first, so that small temperatures do not overflow.
    weights = np.exp((similarity - similarity[:, :1]) / temperature)
    accuracies = []
    for k, top in variants:
        votes = np.zeros((len(test), len(classes)))
        voted = np.zeros(votes.shape, bool)
        for column in range(k):
            cells = np.arange(len(test)), codes[neighbors[:, column]]
            votes[cells] += weights[:, column]
            voted[cells] = True
        accuracies.append(_accuracy(np.where(voted, votes, -np.inf), classes, test_labels, top))
    return accuracies


def linear_probe(
    train_features, train_labels, test_features, test_labels, l2=1.0, max_iterations=300, top=1
):
    """Computes the accuracy of logistic regression on standardized frozen features.

    The features may be vectors, or feature maps with about 9,000 numbers per image, as
    `extract(..., dimensions=9000)` returns them. `select_probe` chooses `l2` and the stage without the test
    set.

    Args:
        train_features, test_features: (N, D) and (M, D) float arrays.
        train_labels, test_labels: (N,) and (M,) integer arrays.
        l2: float, weight of half the squared norm of the coefficients, relative to the summed loss.
        max_iterations: int, of L-BFGS; the accuracy converges long before the weights do.
        top: int, a prediction is correct if the label is among the `top` most probable classes.

    Returns:
        float, the accuracy on the test set, in [0, 1].

    Raises:
        ValueError: shapes do not match, features are not finite, there is only one class, `l2` is
            negative, or `top` is below 1.

    Reference: Zhang, Isola & Efros, "Split-Brain Autoencoders", CVPR 2017, section 4.

    Example:
        >>> linear_probe(np.eye(3), [0, 1, 2], np.eye(3), [0, 1, 2])
        1.0
    """
    train, train_y, test, test_y = checked(train_features, train_labels, test_features, test_labels)
    return linear_accuracies(train, train_y, test, test_y, l2, [top], max_iterations)[0]


def linear_accuracies(train, train_labels, test, test_labels, l2, tops, max_iterations=300):
    """Computes several top-k accuracies of one linear probe.

    Args:
        train, test: (N, D) and (M, D) float32 arrays, which are standardized in place.
        train_labels, test_labels: (N,) and (M,) integer arrays.
        l2: float, as in `linear_probe`.
        tops: list of ints.
        max_iterations: int, as in `linear_probe`.

    Returns:
        list of floats in [0, 1], one for each of `tops`.

    Raises:
        ValueError: there is only one class, or `l2` is negative.
    """
    check_probe(train_labels, [l2])
    classes, codes = np.unique(train_labels, return_inverse=True)
    logistic.standardize(train, test)
    found = logistic.scores(logistic.fit(train, codes, l2, max_iterations), test)
    return [_accuracy(found, classes, test_labels, top) for top in tops]


def check_probe(train_labels, l2):
    """Validates the labels and the values of `l2` of a linear probe.

    Args:
        train_labels: (N,) integer array.
        l2: sequence of floats.

    Raises:
        ValueError: there is only one class, no value, or a negative one.
    """
    if len(np.unique(train_labels)) < 2:
        raise ValueError(f"train_labels must hold at least two classes, got only {train_labels[0]}")
    if not len(l2) or not min(l2) >= 0:
        raise ValueError(f"l2 must be 0 or more, got {l2[0] if len(l2) == 1 else l2}")


def checked(train_features, train_labels, test_features, test_labels):
    """Validates the arrays of a probe and copies the features.

    Args:
        train_features, test_features: (N, D) and (M, D) float arrays.
        train_labels, test_labels: (N,) and (M,) integer arrays.

    Returns:
        (train_features, train_labels, test_features, test_labels): the features as new float32 arrays.

    Raises:
        ValueError: shapes do not match, or features are not finite.
    """
    # Copies, since the probes normalize in place.
    train, test = (np.array(f, np.float32, order="C") for f in (train_features, test_features))
    train_labels, test_labels = np.asarray(train_labels), np.asarray(test_labels)
    for name, features, labels in (
        ("train", train, train_labels),
        ("test", test, test_labels),
    ):
        if features.ndim != 2 or not len(features) or labels.shape != (len(features),):
            raise ValueError(
                f"{name}_features must be (N, D) with N > 0 and {name}_labels (N,), got "
                f"{features.shape} and {labels.shape}"
            )
        if not np.isfinite(features).all():
            raise ValueError(f"{name}_features must be finite, got NaN or infinity")
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"train_features and test_features must have the same width, got {train.shape[1]} "
            f"and {test.shape[1]}"
        )
    return train, train_labels, test, test_labels


def _accuracy(scores, classes, labels, top):
    """Returns the fraction of images whose label is among the `top` best classes, if those have votes."""
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    found = np.take_along_axis(scores, best, axis=1) > -np.inf
    return float(np.mean(((classes[best] == labels[:, None]) & found).any(axis=1)))
