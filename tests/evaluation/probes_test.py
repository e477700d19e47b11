"""kNN and linear probe against their definitions."""

import numpy as np
import pytest

from keras_ssl import evaluation


def features(number, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(number, 7)), rng.integers(0, 3, number) * 2 + 1  # labels 1, 3, 5


def slow_knn(train, labels, test, k, temperature):
    """The definition, one query at a time."""
    answers = []
    for query in test:
        similarity = train @ query / np.linalg.norm(train, axis=1) / np.linalg.norm(query)
        votes = {}
        for i in np.argsort(-similarity)[:k]:
            votes[labels[i]] = votes.get(labels[i], 0) + np.exp(similarity[i] / temperature)
        answers.append(max(votes, key=votes.get))
    return np.array(answers)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (50, 1.0), (50, 1e-4)])
def test_knn_equals_the_definition(k, temperature):
    (train, labels), (test, _) = features(50, 0), features(40, 1)
    wide = np.longdouble  # exp(1 / 1e-4) overflows in float64
    expected = slow_knn(train.astype(wide), labels, test.astype(wide), k, temperature)
    assert evaluation.knn(train, labels, test, expected, k, temperature) == 1
    wrong = expected.copy()
    wrong[:10] += 1
    assert evaluation.knn(train, labels, test, wrong, k, temperature) == 0.75


def test_knn_leaves_its_arguments_alone():
    train = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    before = train.copy()
    evaluation.knn(train, np.arange(5), train, np.arange(5), k=2)
    np.testing.assert_array_equal(train, before)


def test_linear_probe_standardizes():
    # The classes differ in a feature a million times smaller than the others.
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    x = np.stack([rng.normal(size=200) * 1e3, (labels + 0.1 * rng.normal(size=200)) * 1e-3], 1)
    assert evaluation.linear_probe(x[:100], labels[:100], x[100:], labels[100:]) > 0.98


def test_linear_probe_equals_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    (x, y), (test, test_y) = features(60, 0), features(40, 1)
    x[:, 0] += y
    test[:, 0] += test_y
    scale = lambda f: (f - x.mean(0)) / x.std(0)  # noqa: E731
    expected = LogisticRegression(C=0.5, max_iter=2000).fit(scale(x), y).score(scale(test), test_y)
    assert evaluation.linear_probe(x, y, test, test_y, l2=2.0) == pytest.approx(expected)


@pytest.mark.parametrize("probe", [evaluation.knn, evaluation.linear_probe])
@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda a: [a[0][:, :3], *a[1:]], "same width"), (lambda a: [a[0], a[1][:-1], *a[2:]], "train_"),
     (lambda a: [*a[:2], a[2] * np.nan, a[3]], "test_features must be finite"),
     (lambda a: [*a[:2], a[2][:0], a[3][:0]], "N > 0"), (lambda a: [a[0][0], *a[1:]], "train_features")],
)  # fmt: skip
def test_invalid_arrays(probe, change, words):
    with pytest.raises(ValueError, match=words):
        probe(*change([*features(50, 0), *features(40, 1)]))


def test_invalid_numbers():
    arrays = [*features(50, 0), *features(40, 1)]
    for k in (0, 51):
        with pytest.raises(ValueError, match=r"k must be in 1\.\.50"):
            evaluation.knn(*arrays, k=k)
    with pytest.raises(ValueError, match="two classes"):
        evaluation.linear_probe(arrays[0], np.ones(50, int), *arrays[2:])
    with pytest.raises(ValueError, match="l2 must be 0 or more, got -1"):
        evaluation.linear_probe(*arrays, l2=-1.0)
    for probe in (evaluation.knn, evaluation.linear_probe):
        with pytest.raises(ValueError, match="top must be at least 1, got 0"):
            probe(*arrays, top=0)


def test_top_k_of_knn_counts_only_classes_with_votes():
    # From the query at 0 degrees, the neighbors are at 10, 20, 30 and 40 degrees, of classes 4, 2, 2, 9.
    angles = np.radians([10, 20, 30, 40])
    train, labels = np.stack([np.cos(angles), np.sin(angles)], 1), [4, 2, 2, 9]
    query = [[1.0, 0.0]]
    for k, best in ((1, [4]), (2, [4, 2]), (4, [2, 4, 9])):  # two votes of class 2 outweigh one
        for label in (2, 4, 9):
            rank = best.index(label) + 1 if label in best else 99
            for top in (1, 2, 3, 10):
                found = evaluation.knn(train, labels, query, [label], k, temperature=1.0, top=top)
                assert found == (rank <= top), (k, label, top)


def test_top_k_of_the_linear_probe_equals_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import top_k_accuracy_score

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 6)), rng.integers(0, 6, 300) * 3
    x[np.arange(300), y // 3] += 1
    train, test = slice(200), slice(200, None)
    scaled = (x - x[train].mean(0)) / x[train].std(0)
    model = LogisticRegression(C=1 / 30, tol=1e-8, max_iter=2000).fit(scaled[train], y[train])
    for top in (1, 2, 5):
        expected = top_k_accuracy_score(y[test], model.predict_proba(scaled[test]), k=top)
        found = evaluation.linear_probe(x[train], y[train], x[test], y[test], l2=30, top=top)
        assert found == pytest.approx(expected, abs=0.011)


def test_weights_of_logistic_regression_equal_scikit_learn(monkeypatch):
    from sklearn.linear_model import LogisticRegression

    from keras_ssl.evaluation import logistic

    monkeypatch.setattr(logistic, "LOSS_TOLERANCE", 1e-10)
    x, y = features(90, 0)
    x = x.astype("float32")
    model = LogisticRegression(C=1 / 5, tol=1e-8, max_iter=2000).fit(x, y)
    weights = logistic.fit(x, (y - 1) // 2, 5.0)
    np.testing.assert_allclose(weights[:-1], model.coef_.T, atol=2e-3)
    # Softmax leaves one constant over all classes open.
    intercepts = model.intercept_ - model.intercept_.mean()
    np.testing.assert_allclose(weights[-1] - weights[-1].mean(), intercepts, atol=2e-3)


def test_a_constant_feature_is_not_scaled():
    from keras_ssl.evaluation import logistic

    x = np.array([[0.1, 5.0, 0.0], [0.1, 7.0, 0.0]] * 50, np.float32)
    test = np.array([[0.2, 6.0, 3.0]], np.float32)
    logistic.standardize(x, test)
    np.testing.assert_allclose(test, [[0.1, 0.0, 3.0]], atol=1e-5)
    np.testing.assert_allclose(x[:2], [[0, -1, 0], [0, 1, 0]], atol=1e-5)
