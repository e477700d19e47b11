"""Evaluation of every stage of an encoder, versus the same encoder without training."""

import numpy as np

from keras_ssl.evaluation.extract import extract
from keras_ssl.evaluation.probes import checked, knn_accuracies, linear_accuracies
from keras_ssl.evaluation.selection import choose_l2

DIMENSIONS = 9_000  # of the maps of a stage; maps of AlexNet then have 9,216 and 9,600
MANY = 200  # neighbors, as in Wu et al.
TOP = 5  # reported if there are more than ten classes
LABELS = {
    "knn": "kNN", "knn200": "kNN 200", "knn200_top5": "kNN top-5", "linear": "linear",
    "linear_top5": "linear top-5",
}  # fmt: skip


def compare(encoder, untrained, train, test, k=20, verbose=0, maps=False):
    """Evaluates every stage of an encoder by kNN and linear probe, versus an untrained encoder and chance.

    The regularization of each linear probe, and the stage that is `selected`, are chosen on a fifth of the
    training labels (`choose_l2`), never on the test set. All accuracies are on the test set.

    Args:
        encoder: functional keras.Model with named stages.
        untrained: the same architecture with its initial weights.
        train, test: tf.data.Datasets of dicts with `image` and `label`.
        k: int, number of neighbors, at most the number of training images.
        verbose: 1 shows progress, 0 does not.
        maps: bool, whether to fit the linear probes on maps of about 9,000 numbers per stage instead of their
            average.

    Returns:
        dict: `chance` (fraction of the most frequent test label) and, for each stage, a dict of

        - the accuracies `knn` (k neighbors), `knn200` (200 neighbors) and `linear`; with more than ten
          classes also `knn200_top5` and `linear_top5`;
        - `l2` and `validation`: the chosen regularization and its accuracy on the held-out labels;
        - `selected`: whether this stage was selected.

        The same keys with the suffix `_untrained` are for the untrained encoder.

    Raises:
        ValueError: `train` or `test` has no labels, or `train` has too few.

    Reference: Wu et al., CVPR 2018 (kNN); Zhang, Isola & Efros, CVPR 2017 (linear probe on maps).

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
    results, labels = {}, None
    for suffix, model in (("", encoder), ("_untrained", untrained)):
        rows, labels = probe_stages(model, train, test, k, maps, verbose)
        for stage, row in rows.items():
            row = {f"{name}{suffix}": value for name, value in row.items()}
            results.setdefault(stage, {}).update(row)
    return {"chance": float(np.bincount(labels).max() / len(labels)), **results}


def table(results):
    """Formats the results of `compare` as rows of text.

    Args:
        results: dict that `compare` returned; some of its numbers may be missing.

    Returns:
        list of tuples of str, the header first; accuracies are in percent. `l2` is for the trained encoder,
        and the selected stage has a star.

    Example:
        >>> row = dict(knn=0.5, knn_untrained=0.3, linear=0.6, linear_untrained=0.5, l2=10.0)
        >>> table({"chance": 0.1, "stage1": {**row, "selected": True}})[1]
        ('stage1 *', '50.0', '30.0', '60.0', '50.0', '10', '10.0')
    """
    rows = {stage: row for stage, row in results.items() if stage != "chance"}
    names = [name for name in LABELS if name in next(iter(rows.values()))]
    head = [cell for name in names for cell in (LABELS[name], "untrained")]
    formatted = [("stage", *head, "L2", "chance")]
    for stage, row in rows.items():
        cells = [row[f"{name}{suffix}"] for name in names for suffix in ("", "_untrained")]
        cells = [f"{100 * cell:.1f}" for cell in (*cells, results["chance"])]
        l2 = f"{row['l2']:g}" if "l2" in row else ""
        formatted.append((stage + " *" * row.get("selected", False), *cells[:-1], l2, cells[-1]))
    return formatted


def probe_stages(encoder, train, test, k=20, maps=False, verbose=0):
    """Evaluates every stage of one encoder, as `compare` does.

    Args:
        encoder, train, test, k, maps, verbose: as in `compare`.

    Returns:
        (rows, labels): a dict from the stage to a dict of `knn`, `knn200`, `linear`, `l2`, `validation` and
        `selected`, and the (M,) array of the test labels.

    Example:
        >>> from keras_ssl import data, encoders
        >>> encoder = encoders.resnet((32, 32, 3), width=4, blocks=(1,))
        >>> rows, _ = probe_stages(encoder, data.digits(), data.digits("test"))
        >>> rows["stage1"]["selected"]
        True
    """
    train_features, train_others = extract(encoder, train, verbose=verbose)
    test_features, test_others = extract(encoder, test, verbose=verbose)
    labels, test_labels = train_others["label"], test_others["label"]
    rows, last = {}, None
    for stage in train_features:
        pair = train_features[stage], test_features[stage]
        # The features are often the averaged last stage, which need not be probed twice.
        if last is None or not all(map(np.array_equal, pair, last)):
            row, last = _nearest(*pair, labels, test_labels, k), pair
            if maps and stage != "features":
                # One stage after another, since the maps of all stages could exceed the memory.
                pair = [
                    extract(encoder, part, verbose=verbose, dimensions=DIMENSIONS, stages=[stage])[
                        0
                    ][stage]
                    for part in (train, test)
                ]
            row.update(_linear(*pair, labels, test_labels))
        rows[stage] = dict(row)
    selected = max(rows, key=lambda stage: rows[stage]["validation"])
    for stage, row in rows.items():
        row["selected"] = stage == selected
    return rows, test_labels


def _nearest(train, test, labels, test_labels, k):
    many = min(MANY, len(labels))
    variants = {"knn": (min(k, len(labels)), 1), "knn200": (many, 1)}
    if _many_classes(labels):
        variants["knn200_top5"] = (many, TOP)
    arrays = checked(train, labels, test, test_labels)
    return dict(zip(variants, knn_accuracies(*arrays, list(variants.values())), strict=True))


def _linear(train, test, labels, test_labels):
    l2, validation = choose_l2(train, labels)
    tops = {"linear": 1, "linear_top5": TOP} if _many_classes(labels) else {"linear": 1}
    arrays = checked(train, labels, test, test_labels)
    accuracies = linear_accuracies(*arrays, l2, list(tops.values()))
    return {**dict(zip(tops, accuracies, strict=True)), "l2": l2, "validation": validation}


def _many_classes(labels):
    return len(np.unique(labels)) > 10
