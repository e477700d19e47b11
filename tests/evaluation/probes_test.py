"""kNN and linear probe against their definitions, and the comparison of all stages."""

import keras
import numpy as np
import pytest

import keras_ssl as kssl
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


def test_compare_every_stage_with_untrained_and_chance(task):
    train, test = kssl.data.digits("train").take(300), kssl.data.digits("test").take(100)
    untrained = keras.models.clone_model(task.encoder)
    results = evaluation.compare(task.encoder, untrained, train, test)
    labels = kssl.data.to_arrays(test)["label"]
    assert results.pop("chance") == np.bincount(labels).max() / 100
    assert list(results) == ["stage1", "stage2", "features"]
    for row in results.values():
        assert sorted(row) == ["knn", "knn_untrained", "linear", "linear_untrained"]
        assert all(0 <= value <= 1 for value in row.values())
    columns, others = evaluation.extract(task.encoder, train)
    queries, _ = evaluation.extract(task.encoder, test)
    again = evaluation.knn(columns["stage1"], others["label"], queries["stage1"], labels)
    assert results["stage1"]["knn"] == again


def test_compare_needs_labels(task, noise):
    with pytest.raises(ValueError, match="test has no labels"):
        evaluation.compare(
            task.encoder, task.encoder, kssl.data.digits(), kssl.data.from_array(noise)
        )
