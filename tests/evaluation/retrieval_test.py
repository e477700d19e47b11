"""VLAD and retrieval against plain loops and closed forms."""

import numpy as np
import pytest

from keras_ssl.evaluation import exemplar_svm, retrieval, vlad


def test_vlad_equals_a_plain_loop():
    random = np.random.default_rng(0)
    descriptors, centroids = random.normal(size=(40, 3)), random.normal(size=(5, 3))
    groups = random.integers(0, 4, 40)
    expected = np.zeros((4, 5, 3))
    for descriptor, group in zip(descriptors, groups, strict=True):
        nearest = np.argmin(((centroids - descriptor) ** 2).sum(1))
        expected[group, nearest] += descriptor - centroids[nearest]
    expected = np.sign(expected) * np.sqrt(np.abs(expected))
    expected = expected.reshape(4, 15)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vlad(descriptors, groups, centroids), expected, atol=1e-5)


def test_several_codebooks_are_concatenated():
    random = np.random.default_rng(0)
    descriptors, codebooks = random.normal(size=(40, 3)), random.normal(size=(2, 5, 3))
    groups = random.integers(0, 4, 40)
    found = vlad(descriptors, groups, codebooks, power=0.3)
    assert found.shape == (4, 30)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    for part, codebook in zip(np.split(found, 2, axis=1), codebooks, strict=True):
        expected = vlad(descriptors, groups, codebook, power=0.3)
        np.testing.assert_allclose(part * np.sqrt(2), expected, rtol=1e-5)


def test_exemplar_svm_of_separable_points_is_the_normal_of_the_widest_margin():
    # The widest margin of one point versus a segment is along the shortest connection between the two.
    query = np.array([[1.0, 2.0], [3.0, -2.0]])
    negatives = np.array([[0.0, 0.0], [4.0, 0.0]])  # nearest points: (1, 0) and (3, 0)
    np.testing.assert_allclose(exemplar_svm(query, negatives, 1e4), [[0, 1], [0, -1]], atol=0.01)
    # Nearest to (-3, 4) is the corner (0, 0).
    found = exemplar_svm([[-3.0, 4.0]], negatives, 1e4)
    np.testing.assert_allclose(found, [[-0.6, 0.8]], atol=0.01)


def test_exemplar_svm_equals_a_minimization_of_the_objective():
    from scipy.optimize import minimize

    random = np.random.default_rng(0)
    query, negatives, cost = random.normal(size=4), random.normal(size=(20, 4)), 0.3

    def objective(parameters):  # squared hinge losses, balanced, and the intercept penalized too
        w, b = parameters[:4], parameters[4]
        positive = np.maximum(0, 1 - (w @ query + b)) ** 2 * 21 / 2
        negative = (np.maximum(0, 1 + (negatives @ w + b)) ** 2).sum() * 21 / 40
        return (parameters**2).sum() / 2 + cost * (positive + negative)

    w = minimize(objective, np.zeros(5), options={"gtol": 1e-8}).x[:4]
    found = exemplar_svm(query[None], negatives, cost)[0]
    np.testing.assert_allclose(found, w / np.linalg.norm(w), atol=1e-3)


def test_soft_and_hard_top_k_by_hand():
    angles = np.radians([0, 10, 25, 43, 64])
    encodings = np.stack([np.cos(angles), np.sin(angles)], 1)
    # Orders: 0: 1 2 3 4; 1: 0 2 3 4; 2: 1 3 0 4; 3: 2 4 1 0; 4: 3 2 1 0, of writers a a a b b.
    found = retrieval(encodings, list("aaabb"), top=(1, 2), hard=(1, 2, 3))
    assert found["top1"] == found["hard1"] == 4 / 5  # 3 (b) has 2 (a) first
    assert found["top2"] == 1
    assert found["hard2"] == 2 / 5  # 0 and 1; 4 has only one page of its writer
    assert found["hard3"] == 0


def test_a_group_without_descriptors_is_zero():
    encoded = vlad([[1.0, 2.0]], [2], [[0.0, 0.0]])
    assert encoded.shape == (3, 2)
    assert (encoded[:2] == 0).all()


def test_mean_average_precision_by_hand():
    # From page 0 (writer a): order 1 (b), 2 (a), 3 (a): precisions 1/2 and 2/3.
    angles = np.radians([0, 10, 20, 30])
    encodings = np.stack([np.cos(angles), np.sin(angles)], 1) * [[1], [5], [2], [3]]
    found = retrieval(encodings, ["a", "b", "a", "a"], top=(1, 2))
    # From 2: 1 (b) and 3 (a) tie at 10 degrees, then 0 (a); from 3: 2 (a), 1 (b), 0 (a). b has no other.
    of_two = {"first": (1 / 2 + 2 / 3) / 2, "second": (1 + 2 / 3) / 2}
    of_zero, of_three = (1 / 2 + 2 / 3) / 2, (1 + 2 / 3) / 2
    possible = [(of_zero + value + of_three) / 3 for value in of_two.values()]
    assert min(abs(found["map"] - value) for value in possible) < 1e-9
    assert found["top2"] == 1


def test_perfect_and_worst_order():
    near, far = [[1, 0.0], [1, 0.01]], [[0.0, 1], [0.01, 1]]
    assert retrieval(near + far, [0, 0, 1, 1], top=[1]) == {"map": 1.0, "top1": 1.0}
    worst = retrieval(near + far, [0, 1, 0, 1], top=[1])
    assert worst["top1"] == 0
    assert 1 / 3 <= worst["map"] <= 1 / 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vlad(np.zeros((3, 2)), [0, 0], np.zeros((1, 2))), "groups"),
        (lambda: vlad(np.zeros((1, 2)), [0], np.zeros((1, 3))), r"centroids must be \(K, 2\)"),
        (lambda: vlad(np.zeros((1, 2)), [-1], np.zeros((1, 2))), "groups must be 0 or more"),
        (lambda: exemplar_svm(np.zeros((3, 2)), np.zeros((3, 1))), r"negatives \(N, D\), got"),
        (lambda: exemplar_svm([[np.nan]], [[0.0]]), "must be finite"),
        (lambda: exemplar_svm([[1.0]], [[0.0]], cost=0), "cost must be positive, got 0"),
        (lambda: retrieval([[1.0], [1.0]], [0, 0], hard=[2]), r"hard must be in 1\.\.1"),
        (lambda: retrieval(np.zeros((3, 2)), [0, 0]), "encodings must be"),
        (lambda: retrieval([[np.nan], [0]], [0, 0]), "encodings must be finite"),
        (lambda: retrieval([[1.0], [0]], [0, 1]), "at least one value that two encodings share"),
    ],
)
def test_invalid_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
