"""Sinkhorn against POT, exact transport, closed forms and invariances."""

import os

import numpy as np
import ot
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keras_ssl.solvers import disk, gibbs
from keras_ssl.solvers.transport import sinkhorn


def problem(n, k, seed=0):
    """Scores and marginals that are not symmetric in any way."""
    random = np.random.default_rng(seed)
    return (
        random.standard_normal((n, k)),
        random.dirichlet(np.ones(n)),
        random.dirichlet(np.ones(k)),
    )


def test_two_warehouses_and_two_shops():
    # Kilometers from warehouses A and B (rows) to shops 1 and 2: 25 laptops each.
    distance = np.array([[1.0, 3.0], [2.0, 1.0]])
    found = sinkhorn(-distance, rows=[25, 25], columns=[25, 25])
    np.testing.assert_allclose(found.plan(), [[25, 0], [0, 25]], atol=1e-6)
    assert found.assignments.tolist() == [0, 1]
    assert found.converged


@pytest.mark.parametrize("lam", [1, 10, 25, 100])
def test_equals_pot(lam):
    scores, rows, columns = problem(37, 11)
    found = sinkhorn(scores, rows, columns, lam, tolerance=1e-9, dtype="float64")
    expected = ot.sinkhorn(
        rows, columns, -scores, 1 / lam, method="sinkhorn_log", stopThr=1e-12, numItermax=100_000
    )
    np.testing.assert_allclose(found.plan(), expected, atol=1e-9)
    single = sinkhorn(scores, rows, columns, lam, tolerance=1e-6, max_iterations=5000)
    np.testing.assert_allclose(single.plan(), expected, atol=1e-6)
    assert found.error <= 1e-9
    assert found.iterations < 300  # plain iterations take up to 10,000


def test_exact_transport_as_the_temperature_goes_to_zero():
    random = np.random.default_rng(0)
    scores = random.standard_normal((12, 7))
    rows, columns = random.dirichlet(np.full(12, 5.0)), random.dirichlet(np.full(7, 5.0))
    exact = ot.emd(rows, columns, -scores)
    gaps = []
    for lam in (10, 30, 100):
        found = sinkhorn(scores, rows, columns, lam, 1e-6, dtype="float64")
        gaps.append(np.abs(found.plan() - exact).sum())
    assert gaps[0] > 5 * gaps[1] > 10 * gaps[2]
    assert gaps[2] < 3e-3


@settings(max_examples=25, deadline=None)
@example(n=3, k=3, lam=28.67, seed=291)
@example(n=3, k=3, lam=29.0, seed=291)
@given(
    n=st.integers(1, 30), k=st.integers(1, 12), lam=st.floats(0.1, 30), seed=st.integers(0, 1000)
)
def test_marginals_and_invariance_to_shifts_and_permutations(n, k, lam, seed):
    scores, rows, columns = problem(n, k, seed)
    found = sinkhorn(scores, rows, columns, lam, tolerance=1e-6, max_iterations=5000)
    plan = found.plan()
    assert (plan >= 0).all()
    np.testing.assert_allclose(plan.sum(1), rows, rtol=1e-4)
    assert np.abs(plan.sum(0) - columns).sum() < 3e-6
    # Constants added to a row or a column of the scores change nothing.
    random = np.random.default_rng(seed)
    shifted = scores + random.standard_normal((n, 1)) + random.standard_normal(k)
    again = sinkhorn(shifted, rows, columns, lam, tolerance=1e-6, max_iterations=5000)
    np.testing.assert_allclose(again.plan(), plan, atol=1e-5)
    order = random.permutation(n)
    permuted = sinkhorn(scores[order], rows[order], columns, lam, 1e-6, max_iterations=5000)
    np.testing.assert_allclose(permuted.plan(), plan[order], atol=1e-5)


def test_converges_at_a_very_low_temperature():
    """Accelerated steps that go too far are shortened; without them it would take 300 iterations and more."""
    logits = np.random.default_rng(0).standard_normal((200, 8))
    scores = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    found = sinkhorn(scores, lam=400.0, tolerance=1e-5, max_iterations=1000, dtype="float64")
    assert found.converged
    np.testing.assert_allclose(found.plan().sum(0), 1 / 8, atol=1e-5)


def test_float32_does_not_underflow_at_low_temperatures():
    """exp(lam * scores) is zero in whole columns, where matrix scaling gives NaN."""
    random = np.random.default_rng(0)
    scores = random.standard_normal((60, 6)) - np.array([0, 5, 10, 20, 40, 80])
    kernel = np.exp(np.float32(25) * scores.astype(np.float32))
    assert (kernel.sum(0) == 0).any()
    found = sinkhorn(scores, lam=25, tolerance=1e-5)
    assert np.abs(found.plan().sum(0) - 1 / 6).sum() < 2e-5
    assert np.bincount(found.assignments, minlength=6).min() >= 8


def test_a_function_of_blocks_equals_one_matrix(monkeypatch):
    scores, rows, columns = problem(100, 9)
    whole = sinkhorn(scores, rows, columns, 5.0, 1e-6)
    parts = sinkhorn(lambda: np.split(scores, [7, 20, 99]), rows, columns, 5.0, 1e-6)
    np.testing.assert_allclose(parts.plan(), whole.plan(), atol=1e-7)
    np.testing.assert_array_equal(parts.assignments, whole.assignments)
    monkeypatch.setattr(gibbs, "BLOCK_ENTRIES", 18)  # 50 blocks: the sampled start
    sampled = sinkhorn(scores, rows, columns, 5.0, 1e-6)
    np.testing.assert_allclose(sampled.plan(), whole.plan(), atol=1e-6)


def test_a_large_tolerance_still_reads_all_rows(monkeypatch):
    """An error within the tolerance ends the iterations only once all blocks have been read."""
    scores = np.random.default_rng(0).standard_normal((1000, 10))
    monkeypatch.setattr(gibbs, "BLOCK_ENTRIES", 100)  # 100 blocks, of which 13 are sampled
    found = sinkhorn(scores, lam=5, tolerance=0.5)
    assert found.converged
    assert found.assignments.shape == (1000,)
    assert np.abs(found.plan().sum(0) - 0.1).sum() <= 0.5


def test_a_single_column_traced_first(monkeypatch):
    fresh = tf.function(gibbs._sweep.python_function, autograph=False)
    monkeypatch.setattr(gibbs, "_sweep", fresh)
    np.testing.assert_allclose(sinkhorn(np.zeros((4, 1))).plan(), 1 / 4)


def test_minus_infinity_forbids_a_pair():
    scores = np.array([[0.0, -np.inf, 1.0], [0.0, 0.0, 0.0], [2.0, 0.0, -np.inf]])
    plan = sinkhorn(scores, lam=2.0).plan()
    assert plan[0, 1] == plan[2, 2] == 0
    np.testing.assert_allclose(plan.sum(0), 1 / 3, atol=1e-5)


def test_two_replicas_equal_one(two_replicas, monkeypatch):
    scores, rows, columns = problem(101, 8)
    one = sinkhorn(scores, rows, columns, 25.0, 1e-6)
    monkeypatch.setattr(
        gibbs, "BLOCK_ENTRIES", 8 * 30
    )  # rows 30, 30, 30 and 11, two blocks a replica
    with two_replicas.scope():
        two = sinkhorn(scores, rows, columns, 25.0, 1e-6)
    np.testing.assert_allclose(two.plan(), one.plan(), atol=1e-5)
    np.testing.assert_array_equal(two.assignments, one.assignments)


def test_bfloat16_is_accurate_to_three_digits():
    scores, rows, columns = problem(200, 8)
    exact = sinkhorn(scores, rows, columns, 10.0, 1e-6)
    coarse = sinkhorn(scores, rows, columns, 10.0, 1e-6, dtype="bfloat16")
    assert coarse.error <= 1e-6  # the marginals are as good
    np.testing.assert_allclose(coarse.plan(), exact.plan(), rtol=0.03, atol=1e-5)
    assert (coarse.assignments == exact.assignments).mean() > 0.98


def test_warns_if_not_converged():
    scores, rows, columns = problem(40, 7)
    with pytest.warns(UserWarning, match="max_iterations 2 with an error of .* more iterations"):
        found = sinkhorn(scores, rows, columns, max_iterations=2)
    assert not found.converged
    assert found.iterations == 2
    assert found.error == pytest.approx(np.abs(found.plan().sum(0) - columns).sum(), rel=1e-3)


def test_shows_progress(capsys):
    sinkhorn(problem(40, 7)[0], verbose=1)
    assert "error" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": np.zeros(3)}, r"scores must be \(N, K\), got shape \(3,\)"),
        ({"scores": np.zeros((3, 2), int)}, "scores must be float"),
        ({"scores": np.zeros((0, 2))}, "at least one block of rows"),
        ({"scores": lambda: [np.zeros((3, 2)), np.zeros((3, 4))]}, r"same width, got \[2, 4\]"),
        ({"scores": np.array([[1.0, np.nan], [0, 0]])}, "scores must be finite"),
        ({"scores": np.array([[np.inf, 0], [0, 0]])}, "scores must be finite"),
        ({"rows": [1.0, 2.0]}, r"rows must be \(3,\), got shape \(2,\)"),
        ({"columns": [0.5, -0.5]}, "columns must be positive and finite, got -0.5 to 0.5"),
        ({"columns": [np.inf, 1]}, "columns must be positive and finite, got 1.0 to inf"),
        ({"rows": [1, 1, 1], "columns": [1, 1]}, "the same sum, got 3.0 and 2.0"),
        ({"lam": 0}, "lam must be positive, got 0"),
        ({"tolerance": -1}, "tolerance must be positive"),
        ({"max_iterations": 0}, "max_iterations must be an integer .* of at least 1, got 0"),
        ({"max_iterations": 10.5}, "max_iterations must be an integer .* got 10.5"),
        ({"dtype": "float16"}, "dtype must be"),
    ],
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        sinkhorn(**{"scores": np.zeros((3, 2)), **arguments})


def test_labels_of_nearly_equal_images_are_balanced():
    scores = tf.nn.log_softmax(1e-3 * np.random.default_rng(0).standard_normal((1000, 10)))
    found = sinkhorn(scores, lam=25, tolerance=1e-6)
    sizes = np.bincount(found.assignments, minlength=10)
    assert np.abs(found.plan().sum(0) - 0.1).sum() < 2e-6
    assert sizes.min() > 60


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_blocks_on_disk(tmp_path, monkeypatch, dtype):
    """The same result as in memory, from a file that has no name and is closed with the result."""
    scores, rows, columns = problem(640, 7)
    monkeypatch.setattr(gibbs, "BLOCK_ENTRIES", 70)  # 64 blocks, of which a sample is read at first
    folder = tmp_path / "scratch"
    folder.mkdir()

    def open_files():
        links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
        return sum(str(folder) in os.readlink(link) for link in links if os.path.lexists(link))

    options = {"lam": 40, "tolerance": 1e-2 if dtype == "bfloat16" else 1e-6, "dtype": dtype}
    expected = sinkhorn(scores, rows, columns, **options)
    found = sinkhorn(scores, rows, columns, scratch=str(folder), **options)
    assert found.iterations == expected.iterations
    np.testing.assert_array_equal(found.assignments, expected.assignments)
    np.testing.assert_allclose(found.column_potentials, expected.column_potentials, rtol=1e-6)
    np.testing.assert_allclose(found.plan(), expected.plan(), rtol=1e-5)
    assert os.listdir(folder) == []
    assert not os.path.exists("/proc/self/fd") or open_files() == 1
    del found
    assert not os.path.exists("/proc/self/fd") or open_files() == 0


def test_blocks_of_different_lengths_on_disk(tmp_path):
    arrays = [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.full((1, 3), 4.0),
        np.ones((5, 1), "float16"),
    ]
    blocks = disk.DiskBlocks(tmp_path, map(tf.constant, arrays))
    assert len(blocks) == 3
    for block, array in zip(blocks, arrays, strict=True):
        assert block.dtype == array.dtype
        np.testing.assert_array_equal(block, array)
    assert blocks.map(lambda block, factor: block.sum() * factor, [2, 3, 5]) == [30, 36, 25]
    os.ftruncate(blocks._file.fileno(), 50)
    with pytest.raises(OSError, match="8 bytes shorter than was written"):
        list(blocks)
    with pytest.raises(ValueError, match=r"scratch: there is no folder 'none'"):
        sinkhorn(np.zeros((2, 2)), scratch="none")
