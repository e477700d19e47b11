"""The stage and the regularization of a linear probe are chosen on training labels only."""

import numpy as np
import pytest

from keras_ssl import evaluation
from keras_ssl.evaluation.selection import split_labels


def noisy(number, dimensions, seed=0):
    """Two classes that the first of many features predicts well, the others not at all."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, number) * 4
    x = rng.normal(size=(number, dimensions))
    x[:, 0] += labels
    return x, labels


def test_split_is_stratified_and_random():
    labels = np.repeat([3, 5, 8], [50, 10, 1])
    kept, out = split_labels(labels, 0.2, seed=0)
    assert np.bincount(labels[out], minlength=9)[[3, 5, 8]].tolist() == [10, 2, 0]
    assert sorted([*kept, *out]) == list(range(61))
    assert out.tolist() == split_labels(labels, 0.2, seed=0)[1].tolist()
    assert out.tolist() != split_labels(labels, 0.2, seed=1)[1].tolist()


def test_chooses_the_best_of_probes_on_the_held_out_part(monkeypatch):
    from keras_ssl.evaluation import logistic

    monkeypatch.setattr(logistic, "LOSS_TOLERANCE", 1e-9)
    x, y = noisy(100, 30)
    x[:, 0] -= 0.8 * y  # so that no probe is perfect
    kept, out = split_labels(y, 0.25, seed=3)
    candidates = [0.1, 100.0, 1000.0, 1e6]
    accuracies = {
        l2: evaluation.linear_probe(x[kept], y[kept], x[out], y[out], l2=l2) for l2 in candidates
    }
    best = max(accuracies.values())
    assert accuracies[0.1] < best > accuracies[1e6]
    expected = max(l2 for l2, accuracy in accuracies.items() if accuracy == best)
    assert evaluation.choose_l2(x, y, candidates, held_out=0.25, seed=3) == (expected, best)


def test_selects_by_validation_and_not_by_the_test_set():
    x, y = noisy(100, 3)
    test, test_y = noisy(50, 3, seed=1)
    stages = {"noise": x[:, 1:], "signal": x}
    # On this test set the stage `noise` has the labels and `signal` has noise.
    tests = {"noise": test[:, [0, 1]], "signal": test[:, [1, 0, 2]]}
    found = evaluation.select_probe(stages, y, tests, test_y)
    assert found["stage"] == "signal"
    assert found["validation"] > 0.9
    expected = evaluation.linear_probe(x, y, tests["signal"], test_y, l2=found["l2"])
    assert found["accuracy"] == expected < 0.8


def test_invalid_arguments():
    x, y = noisy(20, 3)
    with pytest.raises(ValueError, match=r"held_out must be in \(0, 1\), got 1"):
        evaluation.choose_l2(x, y, held_out=1)
    with pytest.raises(ValueError, match="at least two images of a class"):
        evaluation.choose_l2(x, np.arange(20))
    with pytest.raises(ValueError, match="l2 must be 0 or more"):
        evaluation.choose_l2(x, y, l2=[])
    with pytest.raises(ValueError, match="at least two classes"):
        evaluation.choose_l2(x, 0 * y)
    with pytest.raises(ValueError, match="same stages"):
        evaluation.select_probe({"a": x}, y, {"b": x}, y)
