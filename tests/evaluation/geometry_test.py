"""Alignment and uniformity in closed form; tests of the other two are in tests/callbacks."""

import numpy as np
import pytest

from keras_ssl.evaluation import alignment, uniformity


def test_alignment_of_equal_orthogonal_and_opposite_views():
    x = np.array([[3.0, 0.0, 4.0], [0.0, 2.0, 0.0]])
    assert alignment(x, 7 * x) == pytest.approx(0, abs=1e-12)
    orthogonal = np.array([[4.0, 1.0, -3.0], [1.0, 0.0, 1.0]])
    assert alignment(x, orthogonal) == pytest.approx(2)
    assert alignment(x, -x) == pytest.approx(4)
    assert alignment(x, -x, alpha=3) == pytest.approx(8)
    assert alignment(x, np.stack([x[0], -x[1]])) == pytest.approx(2)  # 0 and 4


def test_uniformity_of_collapsed_features_is_0():
    assert uniformity(np.outer(np.arange(1, 6), [1.0, 2.0, -3.0])) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("n", "t"), [(2, 2), (5, 2), (9, 0.5), (1500, 2)])
def test_uniformity_of_a_regular_simplex(n, t):
    assert uniformity(np.eye(n) - 1 / n, t) == pytest.approx(-2 * t * n / (n - 1))


@pytest.mark.parametrize(("d", "expected"), [(2, -1.575), (3, -2.080), (64, -3.875)])
def test_uniformity_of_the_uniform_distribution_on_the_sphere(d, expected):
    x = np.random.default_rng(0).normal(size=(3000, d)) * np.linspace(0.1, 10, 3000)[:, None]
    assert uniformity(x) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: alignment(np.ones((3, 2)), np.ones((2, 2))), "same shape"),
        (lambda: alignment(np.ones(3), np.ones(3)), r"features must be a \(N, D\) array"),
        (lambda: alignment(np.ones((1, 2)), np.zeros((1, 2))), "other must be finite and no row 0"),
        (lambda: uniformity(np.full((2, 2), np.nan)), "features must be finite"),
        (lambda: uniformity(np.ones((1, 2))), "at least two rows"),
    ],
)
def test_invalid_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
