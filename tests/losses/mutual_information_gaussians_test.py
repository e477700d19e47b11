"""Bounds of mutual information on correlated Gaussians, whose mutual information is known."""

import functools
import math

import numpy as np
import pytest

from keras_ssl.losses.mutual_information import (
    donsker_varadhan,
    info_nce,
    interpolated,
    jensen_shannon,
    nwj,
    smile,
    tuba,
)

DIMENSIONS = 20


def correlation(information):
    return math.sqrt(1 - math.exp(-2 * information / DIMENSIONS))


def gaussians(information, number, rng):
    """Draws x and y of `DIMENSIONS` correlated pairs with this mutual information in nats."""
    x, noise = rng.normal(size=(2, number, DIMENSIONS))
    rho = correlation(information)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def log_normal(x, mean, variance):
    return -0.5 * ((x - mean) ** 2 / variance + np.log(2 * math.pi * variance)).sum(-1)


def best_critic(x, y, information):
    """log p(y | x) / p(y) of all pairs; rows are y."""
    rho = correlation(information)
    square = (y**2).sum(-1)[:, None] - 2 * rho * y @ x.T + rho**2 * (x**2).sum(-1)
    ratio = (y**2).sum(-1)[:, None] / 2 - square / (2 * (1 - rho**2))
    return (ratio - DIMENSIONS / 2 * math.log(1 - rho**2)).astype("float32")


@functools.cache
def draws_of_scores(information, number, draws):
    rng = np.random.default_rng(0)
    return [best_critic(*gaussians(information, number, rng), information) for _ in range(draws)]


def estimates(bound, information, number=64, draws=200):
    return np.array([float(bound(s)) for s in draws_of_scores(information, number, draws)])


@pytest.mark.parametrize(
    "bound",
    [
        donsker_varadhan,
        jensen_shannon,
        lambda s: nwj(s + 1),
        lambda s: tuba(s, 0.0),
        lambda s: smile(s, 1e3),
    ],
    ids=["dv", "js", "nwj", "tuba", "smile"],
)
def test_the_best_critic_shows_two_nats(bound):
    found = estimates(bound, 2, number=256)
    error = found.std() / math.sqrt(len(found))
    assert error < 0.02
    assert abs(found.mean() - 2) < 3 * error


@pytest.mark.parametrize("information", [2, 10])
def test_info_nce_of_the_best_critic_is_below_the_information_and_log_k(information):
    found = estimates(info_nce, information)
    error = found.std() / math.sqrt(len(found))
    assert found.mean() <= min(information, math.log(64)) + 3 * error
    assert found.mean() > 0.8 * min(information, math.log(64))
    assert (found <= math.log(64)).all()


def test_interpolated_bounds_reach_beyond_log_k():
    """At 6 nats InfoNCE stops below log(63) = 4.14, a small alpha shows more, all are lower bounds."""
    means = [
        estimates(lambda s, a=alpha: interpolated(s, a, 0.0), 6).mean()
        for alpha in (0.999, 0.5, 0.1, 0.01)
    ]
    assert means == sorted(means)
    assert means[0] < math.log(63)
    assert 4.5 < means[-1] < 6


@pytest.mark.parametrize(
    "bound", [info_nce, lambda s: nwj(s + 1), donsker_varadhan, smile], ids=lambda b: b.__name__
)
def test_more_correlation_gives_more_information(bound):
    means = [estimates(bound, information, draws=100).mean() for information in (0.5, 1, 2, 4)]
    assert means == sorted(means)


def test_an_invertible_map_of_y_with_the_transformed_critic_changes_nothing():
    """z = y ** 3, whose densities have the factor |dy / dz|, in p(z | x) and in p(z)."""
    x, y = gaussians(2, 40, np.random.default_rng(3))
    z, rho = y**3, correlation(2)
    log_slope = -np.log(3 * np.cbrt(z) ** 2).sum(-1)
    given_x = log_normal(np.cbrt(z)[:, None], rho * x[None], 1 - rho**2) + log_slope[:, None]
    marginal = log_normal(np.cbrt(z), 0, 1) + log_slope
    scores = (given_x - marginal[:, None]).astype("float32")
    for bound in (info_nce, donsker_varadhan, nwj, jensen_shannon, smile):
        expected = float(bound(best_critic(x, y, 2)))
        assert float(bound(scores)) == pytest.approx(expected, rel=1e-4)
