"""Alignment and uniformity, compared with closed forms."""

import numpy as np
import pytest

from keras_ssl.evaluation import alignment, uniformity


def simplex(n):
    """n points of a regular simplex, around the origin."""
    return np.eye(n) - 1 / n


def test_alignment():
    x = np.random.default_rng(0).normal(size=(50, 3))
    assert alignment(x, 7 * x) == pytest.approx(0, abs=1e-12)
    assert alignment(x, -x) == pytest.approx(4)
    assert alignment(x, -x, alpha=1) == pytest.approx(2)
    angle = 0.3
    turned = [[np.cos(angle), np.sin(angle)], [1, 0]]
    assert alignment([[1, 0], [1, 0]], turned) == pytest.approx(1 - np.cos(angle))


@pytest.mark.parametrize("n", [2, 3, 7])
def test_uniformity_of_a_simplex(n):
    assert uniformity(simplex(n)) == pytest.approx(-4 * n / (n - 1))
    assert uniformity(5 * simplex(n), t=0.5) == pytest.approx(-n / (n - 1))


@pytest.mark.parametrize(("dimensions", "expected"), [(2, -1.575), (3, -2.080), (64, -3.875)])
def test_uniformity_of_the_sphere(dimensions, expected):
    """-2 t + log 0F1(; d/2; t^2) of uniformly distributed points."""
    x = np.random.default_rng(0).normal(
        size=(3001, dimensions)
    )  # more than a block, and not a multiple
    assert uniformity(x) == pytest.approx(expected, abs=0.01)


def test_uniformity_of_equal_features():
    assert uniformity(np.ones((2500, 4))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (np.ones(3), r"must be \(N, D\)"),
        (np.zeros((2, 3)), "must be finite and not zero"),
        ([[np.nan, 1], [1, 1]], "must be finite and not zero"),
    ],
)
def test_refuses(features, words):
    with pytest.raises(ValueError, match=words):
        uniformity(features)
    with pytest.raises(ValueError, match=words):
        alignment(features, features)
    with pytest.raises(ValueError, match="at least two rows, got 1"):
        uniformity(np.ones((1, 3)))
    with pytest.raises(ValueError, match="the same shape"):
        alignment(np.ones((2, 3)), np.ones((3, 3)))
