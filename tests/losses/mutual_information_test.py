"""Bounds of mutual information versus slow loops, and laws."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_ssl.losses.mutual_information import (
    donsker_varadhan,
    info_nce,
    interpolated,
    jensen_shannon,
    nwj,
    smile,
    tuba,
)

BASELINE = np.random.default_rng(9).normal(size=5).astype("float32")


def asymmetric(number=5, scale=1.5, seed=0):
    """Scores whose rows and columns differ in size, so that exchanging them changes every bound."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.normal(size=(number, 1)), 3 * rng.normal(size=(1, number))
    return (scale * (rng.normal(size=(number, number)) + rows + columns)).astype("float32")


# ---- Slow oracles: loops over samples, without the logarithms of sums that the package uses.


def pairs(number):
    return [(i, j) for i in range(number) for j in range(number) if i != j]


def mean_joint(s):
    return sum(s[i, i] for i in range(len(s))) / len(s)


def slow_info_nce(s):
    total = 0.0
    for i in range(len(s)):
        total += math.log(math.exp(s[i, i]) / (sum(math.exp(v) for v in s[i]) / len(s)))
    return total / len(s)


def slow_dv(s, clip=math.inf):
    clipped = [math.exp(min(max(s[i, j], -clip), clip)) for i, j in pairs(len(s))]
    return mean_joint(s) - math.log(sum(clipped) / len(clipped))


def slow_tuba(s, log_baseline):
    k = len(s)
    joint = sum(s[i, i] - log_baseline[i] for i in range(k)) / k
    independent = sum(math.exp(s[i, j]) / math.exp(log_baseline[i]) for i, j in pairs(k))
    return 1 + joint - independent / (k * (k - 1))


def slow_interpolated(s, alpha, log_baseline):
    k = len(s)

    def log_baseline_without(i, left_out):
        mean = sum(math.exp(s[i, j]) for j in range(k) if j != left_out) / (k - 1)
        return math.log(alpha * mean + (1 - alpha) * math.exp(log_baseline[i]))

    joint = [s[i, i] - log_baseline_without(i, j) for i, j in pairs(k)]
    independent = [math.exp(s[i, j] - log_baseline_without(i, i)) for i, j in pairs(k)]
    return 1 + (sum(joint) - sum(independent)) / (k * (k - 1))


def slow_js(s):
    joint = sum(math.log(1 / (1 + math.exp(-s[i, i]))) for i in range(len(s))) / len(s)
    independent = [math.log(1 / (1 + math.exp(s[i, j]))) for i, j in pairs(len(s))]
    return joint + sum(independent) / len(independent)


ORACLES = {
    "info_nce": (info_nce, slow_info_nce),
    "donsker_varadhan": (donsker_varadhan, slow_dv),
    "nwj": (nwj, lambda s: slow_tuba(s, np.ones(5))),
    "tuba": (functools.partial(tuba, log_baseline=BASELINE), lambda s: slow_tuba(s, BASELINE)),
    "jensen_shannon": (jensen_shannon, lambda s: slow_tuba(s + 1, np.ones(5))),
    "interpolated_0.01": (
        functools.partial(interpolated, alpha=0.01, log_baseline=BASELINE),
        lambda s: slow_interpolated(s, 0.01, BASELINE),
    ),
    "interpolated_0.7": (
        functools.partial(interpolated, alpha=0.7),
        lambda s: slow_interpolated(s, 0.7, np.ones(5)),
    ),
    "smile": (functools.partial(smile, clip=0.5), lambda s: slow_dv(s, 0.5)),
}
every_bound = pytest.mark.parametrize("name", ORACLES)


@every_bound
def test_matches_a_loop(name):
    bound, slow = ORACLES[name]
    for seed in range(5):
        scores = asymmetric(seed=seed)
        found, expected = bound(scores), slow(scores.astype("float64"))
        assert found.dtype == tf.float32
        assert found.shape == ()
        assert float(found) == pytest.approx(expected, rel=2e-5, abs=1e-5)
        # The oracle can tell rows from columns, where they differ.
        other = slow(scores.T.astype("float64"))
        symmetric = name in ("donsker_varadhan", "nwj", "jensen_shannon", "smile")
        assert (other == pytest.approx(expected, rel=1e-9)) == symmetric


@every_bound
def test_gradient_matches_differences_of_what_is_trained(name):
    bound, slow = ORACLES[name]
    trained = slow_js if name in ("jensen_shannon", "smile") else slow
    scores, step = asymmetric(scale=0.5).astype("float64"), 1e-5
    x = tf.Variable(scores, dtype=tf.float32)
    with tf.GradientTape() as tape:
        value = bound(x)
    expected = np.zeros((5, 5))
    for place in np.ndindex(5, 5):
        change = np.zeros((5, 5))
        change[place] = step
        expected[place] = (trained(scores + change) - trained(scores - change)) / (2 * step)
    np.testing.assert_allclose(tape.gradient(value, x), expected, rtol=1e-3, atol=1e-4)


@every_bound
def test_values_and_gradients_are_finite_for_huge_scores(name):
    bound, _ = ORACLES[name]
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], (5, 5))
    for scores in (signs, np.ones((5, 5)), -np.ones((5, 5)), 2 * np.eye(5) - 1, 1 - 2 * np.eye(5)):
        x = tf.Variable(1e4 * scores, dtype=tf.float32)
        with tf.GradientTape() as tape:
            value = bound(x)
        assert np.isfinite(float(value))
        gradient = tape.gradient(value, x).numpy()
        assert np.isfinite(gradient).all()
        assert (np.diag(gradient) >= -1e-6).all()  # no bound falls if a joint score rises


@pytest.mark.parametrize("jit_compile", [False, True])
def test_graph_and_xla_of_unknown_size_match_eager_tensorflow(jit_compile):
    bounds = [bound for name, (bound, _) in ORACLES.items() if not name.endswith("0.01")]

    @tf.function(input_signature=[tf.TensorSpec((None, None), tf.float16)], jit_compile=jit_compile)
    def compiled(scores):
        with tf.GradientTape() as tape:
            tape.watch(scores)
            values = tf.stack([bound(scores) for bound in bounds])
        return values, tape.gradient(values, scores)

    scores = tf.constant(asymmetric(scale=0.3), tf.float16)
    values, gradient = compiled(scores)
    assert values.dtype == tf.float32
    np.testing.assert_allclose(values, [bound(scores) for bound in bounds], rtol=1e-5, atol=1e-5)
    assert np.isfinite(gradient).all()


# ---- Laws


@pytest.mark.parametrize("number", [2, 7, 64])
def test_a_constant_critic_shows_nothing(number):
    ones = np.ones((number, number), "float32")
    for constant in (-30, 0, 4, 1e4):
        for bound in (info_nce, donsker_varadhan):
            assert float(bound(constant * ones)) == pytest.approx(0, abs=2e-6 * max(1, constant))
    for value in (nwj(ones), jensen_shannon(0 * ones), smile(3 * ones), interpolated(ones, 0.3)):
        assert float(value) == pytest.approx(0, abs=1e-6)
    assert float(tuba(2.5 * ones, np.full(number, 2.5))) == pytest.approx(0, abs=1e-6)


def test_info_nce_is_never_above_log_k():
    rng = np.random.default_rng(0)
    limit = tf.function(lambda s: tf.map_fn(info_nce, s, tf.float32))
    for number, scale in ((2, 1), (5, 10), (16, 1e3), (8, 1e30)):
        scores = scale * rng.standard_normal((2500, number, number), np.float32)
        scores[::2, range(number), range(number)] += 3 * np.float32(scale)  # nearly perfect critics
        found = limit(scores).numpy()
        assert (found <= np.float32(math.log(number))).all()
        assert found.max() > 0.9 * math.log(number)


@settings(max_examples=60, deadline=None)
@given(
    scores=st.integers(2, 6).flatmap(
        lambda n: hnp.arrays(np.float32, (n, n), elements=st.floats(-20, 20, width=32))
    ),
    shift=st.floats(-5, 5),
    alpha=st.floats(0.01, 0.99),
)
def test_laws(scores, shift, alpha):
    number = len(scores)
    order = np.random.default_rng(number).permutation(number)
    for bound in (info_nce, donsker_varadhan, nwj, functools.partial(interpolated, alpha=alpha)):
        value = float(bound(scores))
        assert float(bound(scores[order][:, order])) == pytest.approx(value, rel=1e-4, abs=1e-4)
    rows = np.random.default_rng(1).normal(size=(number, 1)).astype("float32")
    # InfoNCE compares within a row only, DV all pairs.
    assert float(info_nce(scores + rows)) == pytest.approx(float(info_nce(scores)), abs=1e-4)
    expected = float(donsker_varadhan(scores))
    assert float(donsker_varadhan(scores + np.float32(shift))) == pytest.approx(expected, abs=1e-4)
    # log x <= x / a + log a - 1, with equality at the best baseline.
    assert float(nwj(scores)) <= expected + 1e-3 * max(1, abs(expected))
    assert float(smile(scores, 20.0)) == pytest.approx(expected, abs=1e-4)
    assert float(interpolated(scores, alpha)) <= 1 + math.log((number - 1) / alpha) + 1e-4


def test_the_limits_of_alpha():
    scores = asymmetric(scale=0.5)
    k = len(scores)
    # alpha -> 1: InfoNCE of all but one of the others, averaged over which one is left out.
    without = [
        math.log(math.exp(scores[i, i]) / np.mean(np.exp(np.delete(scores[i], j))))
        for i, j in pairs(k)
    ]
    found = float(interpolated(scores, 1 - 1e-7, BASELINE))
    assert found == pytest.approx(np.mean(without), abs=1e-4)
    found = float(interpolated(scores, 1e-7, BASELINE))
    assert found == pytest.approx(float(tuba(scores, BASELINE)), rel=1e-4)
    assert float(interpolated(scores, 1e-7)) == pytest.approx(float(nwj(scores)), rel=1e-4)


def test_a_score_that_dominates_its_row_is_left_out_exactly():
    """The mean without it is 1, of which exp(100) - exp(100) in float32 would leave nothing."""
    scores = np.zeros((4, 4), "float32")
    scores[1, 1] = 100
    expected = slow_interpolated(scores.astype("float64"), 0.5, np.ones(4))
    assert float(interpolated(scores, 0.5)) == pytest.approx(expected, rel=1e-5)


def test_invalid_arguments():
    bounds = [bound for bound, _ in ORACLES.values()]
    for shape in ((3, 4), (1, 1), (5,), (5, 5, 1), (0, 0)):
        for bound in bounds:
            with pytest.raises(ValueError, match=r"scores must be a square matrix .* got shape"):
                bound(np.zeros(shape, "float32"))
    scores = asymmetric()
    for clip in (0, -1.0, float("nan"), True, "5"):
        with pytest.raises(ValueError, match="clip must be a positive number, got"):
            smile(scores, clip)
    for alpha in (0, 1, -0.1, 1.5, float("nan"), True, "0.5"):
        with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\), got"):
            interpolated(scores, alpha)
    for shape in ((5, 1), (4,), (1, 5)):
        for bound in (tuba, functools.partial(interpolated, alpha=0.5)):
            with pytest.raises(
                ValueError, match=r"log_baseline must be a number or have the shape"
            ):
                bound(scores, log_baseline=np.zeros(shape, "float32"))
