"""Weighted kNN and linear probe, the two standard evaluations of frozen features."""

import warnings

import numpy as np

from keras_ssl.evaluation.extract import extract


def knn(train_features, train_labels, test_features, test_labels, k=20, temperature=0.07):
    """Computes the accuracy of a weighted kNN classifier with cosine similarity.

    Each of the k nearest training features votes for its label with weight
    exp(similarity / temperature).

    Args:
        train_features, test_features: (N, D) and (M, D) float arrays.
        train_labels, test_labels: (N,) and (M,) integer arrays.
        k: int, number of neighbors.
        temperature: float; a smaller one gives the nearest neighbors more weight.

    Returns:
        float, the accuracy on the test set, in [0, 1].

    Raises:
        ValueError: shapes do not match, features are not finite, or k is not in 1..N.

    Reference: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination", CVPR 2018, section 3.4.

    Example:
        >>> knn(np.eye(3), [0, 1, 2], np.eye(3) + 0.1, [0, 1, 2], k=1)
        1.0
    """
    import faiss

    train, train_y, test, test_y = _checked(
        train_features, train_labels, test_features, test_labels
    )
    if not 1 <= k <= len(train):
        raise ValueError(f"k must be in 1..{len(train)}, the number of train_features, got {k}")
    for features in (train, test):
        faiss.normalize_L2(features)
    index = faiss.IndexFlatIP(train.shape[1])
    index.add(train)
    similarity, neighbors = index.search(test, k)
    classes, codes = np.unique(train_y, return_inverse=True)
    # The largest similarity is subtracted first, so that small temperatures do not overflow.
    weights = np.exp((similarity - similarity[:, :1]) / temperature)
    votes = np.zeros((len(test), len(classes)))
    for column in range(k):
        votes[np.arange(len(test)), codes[neighbors[:, column]]] += weights[:, column]
    return float(np.mean(classes[votes.argmax(1)] == test_y))


def linear_probe(
    train_features, train_labels, test_features, test_labels, l2=1.0, max_iterations=300
):
    """Computes the accuracy of logistic regression on standardized frozen features.

    Args:
        train_features, test_features: (N, D) and (M, D) float arrays.
        train_labels, test_labels: (N,) and (M,) integer arrays.
        l2: float, weight of half the squared norm of the coefficients, relative to the summed loss.
        max_iterations: int, of L-BFGS; the accuracy converges long before the weights do.

    Returns:
        float, the accuracy on the test set, in [0, 1].

    Raises:
        ValueError: shapes do not match, features are not finite, or there is only one class.

    Reference: Zhang, Isola & Efros, "Split-Brain Autoencoders", CVPR 2017, section 4.

    Example:
        >>> linear_probe(np.eye(3), [0, 1, 2], np.eye(3), [0, 1, 2])
        1.0
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, train_y, test, test_y = _checked(
        train_features, train_labels, test_features, test_labels
    )
    if len(np.unique(train_y)) < 2:
        raise ValueError(f"train_labels must hold at least two classes, got only {train_y[0]}")
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1 / l2, max_iter=max_iterations))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(train, train_y)
    return float(probe.score(test, test_y))


def compare(encoder, untrained, train, test, k=20, verbose=0):
    """Evaluates every stage of an encoder by kNN and linear probe, versus an untrained one and chance.

    Args:
        encoder: functional keras.Model with named stages.
        untrained: the same architecture with its initial weights.
        train, test: tf.data.Datasets of dicts with `image` and `label`.
        k: int, number of neighbors.
        verbose: 1 shows progress, 0 does not.

    Returns:
        dict: `chance` (fraction of the most frequent test label) and, for each stage, a dict of the
        accuracies `knn`, `knn_untrained`, `linear`, `linear_untrained`, all in [0, 1].

    Raises:
        ValueError: `train` or `test` has no labels.

    Example:
        >>> from keras_ssl import data, encoders
        >>> a, b = (encoders.resnet((32, 32, 3), width=4, blocks=(1,)) for _ in range(2))
        >>> sorted(compare(a, b, data.digits(), data.digits("test")))
        ['chance', 'features', 'stage1']
    """
    for name, dataset in (("train", train), ("test", test)):
        if "label" not in dataset.element_spec:
            raise ValueError(
                f"{name} has no labels: evaluation needs images in one folder per class"
            )
    results = {}
    for suffix, model in (("", encoder), ("_untrained", untrained)):
        train_features, train_others = extract(model, train, verbose=verbose)
        test_features, test_others = extract(model, test, verbose=verbose)
        labels, test_labels = train_others["label"], test_others["label"]
        last = None
        for stage in train_features:
            arrays = train_features[stage], labels, test_features[stage], test_labels
            # The features are often the last stage, averaged, and need not be probed twice.
            if last is None or not all(map(np.array_equal, arrays, last)):
                accuracies = knn(*arrays, k=min(k, len(labels))), linear_probe(*arrays)
            row = results.setdefault(stage, {})
            row[f"knn{suffix}"], row[f"linear{suffix}"] = accuracies
            last = arrays
    return {"chance": float(np.bincount(test_labels).max() / len(test_labels)), **results}


def table(results):
    """Formats the results of `compare` as rows of text.

    Args:
        results: dict that `compare` returned.

    Returns:
        list of tuples of str, the header first; accuracies are in percent.

    Example:
        >>> accuracies = dict(knn=0.5, knn_untrained=0.4, linear=0.6, linear_untrained=0.5)
        >>> table({"chance": 0.1, "stage1": accuracies})[1]
        ('stage1', '50.0', '40.0', '60.0', '50.0', '10.0')
    """
    chance = results["chance"]
    columns = ("knn", "knn_untrained", "linear", "linear_untrained")
    head = ("stage", "kNN", "untrained", "linear", "untrained", "chance")
    return [head] + [
        (stage, *(f"{100 * row[c]:.1f}" for c in columns), f"{100 * chance:.1f}")
        for stage, row in results.items()
        if stage != "chance"
    ]


def _checked(train_features, train_labels, test_features, test_labels):
    # Copies, since faiss normalizes in place.
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
