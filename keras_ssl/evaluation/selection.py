"""Choice of a linear probe, its stage and its regularization, on held-out training labels."""

import numpy as np

from keras_ssl.evaluation import logistic
from keras_ssl.evaluation.probes import check_probe, checked, linear_accuracies

# Relative to the summed loss, strongest first. For 10,000 labels and 9,216 features of CIFAR-10, 1,000 is
# best.
L2 = (1e4, 1e3, 1e2, 1e1, 1e0, 1e-1)


def select_probe(
    train_features, train_labels, test_features, test_labels, l2=L2, held_out=0.2, seed=0, top=1
):
    """Selects the stage and the regularization of a linear probe without the test set, and tests it once.

    A part of the training labels is held out. For each stage and each `l2`, a probe is fitted on the other
    labels and evaluated on the held-out part. The best probe is fitted again on all training labels.

    Args:
        train_features, test_features: dicts of (N, D) and (M, D) float arrays, one for each stage, as
            `extract` returns them.
        train_labels, test_labels: (N,) and (M,) integer arrays.
        l2, held_out, seed: as in `choose_l2`.
        top: int, as in `linear_probe`.

    Returns:
        dict: `stage` (str), `l2` (float), `validation` (float, the accuracy on the held-out part) and
        `accuracy` (float, on the test set), in [0, 1].

    Raises:
        ValueError: the stages differ or there are none, shapes do not match, or for the same reasons as in
            `choose_l2`.

    Reference: Kolesnikov, Zhai & Beyer, "Revisiting Self-Supervised Visual Representation Learning", CVPR
    2019, section 3, where such choices are made on held-out training images too.

    Example:
        >>> x, y = np.repeat(np.eye(2), 5, axis=0), np.repeat([0, 1], 5)
        >>> found = select_probe({"a": 0 * x, "b": x}, y, {"a": 0 * x, "b": x}, y)
        >>> found["stage"], found["accuracy"]
        ('b', 1.0)
    """
    if not train_features or list(train_features) != list(test_features):
        raise ValueError(
            "train_features and test_features must be dicts of the same stages, at least one, got "
            f"{list(train_features)} and {list(test_features)}"
        )
    choices = {
        stage: choose_l2(features, train_labels, l2, held_out, seed)
        for stage, features in train_features.items()
    }
    stage = max(choices, key=lambda name: choices[name][1])
    chosen, validation = choices[stage]
    arrays = checked(train_features[stage], train_labels, test_features[stage], test_labels)
    accuracy = linear_accuracies(*arrays, chosen, [top])[0]
    return {"stage": stage, "l2": chosen, "validation": validation, "accuracy": accuracy}


def choose_l2(features, labels, l2=L2, held_out=0.2, seed=0):
    """Chooses the regularization of a linear probe on a held-out part of the training labels.

    Features are standardized by the mean and standard deviation of the part that is not held out. Each fit
    starts from the previous one, which has a stronger regularization. After two values that are worse than
    the best one, weaker values are not tried.

    Args:
        features: (N, D) float array.
        labels: (N,) integer array.
        l2: sequence of floats, the candidates, as in `linear_probe`.
        held_out: float in (0, 1), the fraction of each class that is held out.
        seed: int, of the random choice of this part.

    Returns:
        (l2, validation): float, the best candidate (the largest one in a tie), and its accuracy on the
        held-out part, in [0, 1].

    Raises:
        ValueError: shapes do not match, features are not finite, there is only one class or too few labels
            to hold any out, `l2` is empty or negative, or `held_out` is not in (0, 1).

    Example:
        >>> choose_l2(np.repeat(np.eye(2), 5, axis=0), np.repeat([0, 1], 5), l2=[1.0, 10.0])
        (10.0, 1.0)
    """
    features, labels, _, _ = checked(features, labels, features, labels)
    candidates = [float(value) for value in l2]
    check_probe(labels, candidates)
    kept, out = split_labels(labels, held_out, seed)
    train, validation = features[kept], features[out]
    logistic.standardize(train, validation)
    codes = np.unique(labels, return_inverse=True)[1]
    best, chosen, worse, weights = -1.0, None, 0, None
    for candidate in sorted(candidates, reverse=True):
        weights = logistic.fit(train, codes[kept], candidate, start=weights)
        predicted = logistic.scores(weights, validation).argmax(1)
        accuracy = float(np.mean(predicted == codes[out]))
        if accuracy > best:
            best, chosen, worse = accuracy, candidate, 0
        elif accuracy < best:
            worse += 1
        if worse == 2:
            break
    return chosen, best


def split_labels(labels, held_out, seed):
    """Splits labels at random into two parts, stratified by class.

    Args:
        labels: (N,) integer array.
        held_out: float in (0, 1), the fraction of each class in the second part; a class of a single label
            is in the first part.
        seed: int.

    Returns:
        (kept, out): increasing integer arrays of the rows of the two parts.

    Raises:
        ValueError: `held_out` is not in (0, 1), or no label can be held out.

    Example:
        >>> kept, out = split_labels([7, 7, 7, 8, 8, 8], held_out=0.3, seed=0)
        >>> len(kept), len(out)
        (4, 2)
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must be in (0, 1), got {held_out}")
    random, rows = np.random.default_rng(seed), []
    for value in np.unique(labels):
        members = random.permutation(np.flatnonzero(np.asarray(labels) == value))
        number = max(1, round(held_out * len(members)))
        rows.append(members[: min(number, len(members) - 1)])
    out = np.sort(np.concatenate(rows))
    if not len(out):
        raise ValueError(
            f"train_labels must have at least two images of a class to hold one out, got {len(labels)} "
            f"labels of {len(rows)} classes"
        )
    return np.setdiff1d(np.arange(len(labels)), out), out
