"""VLAD and retrieval against plain loops and closed forms."""

import numpy as np
import pytest

from keras_ssl.evaluation import retrieval, vlad


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
        (lambda: retrieval(np.zeros((3, 2)), [0, 0]), "encodings must be"),
        (lambda: retrieval([[np.nan], [0]], [0, 0]), "encodings must be finite"),
        (lambda: retrieval([[1.0], [0]], [0, 1]), "at least one value that two encodings share"),
    ],
)
def test_invalid_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
