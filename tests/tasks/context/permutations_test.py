import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_ssl.tasks.context.permutations import check_permutations, describe, permutations


def slow_distances(rows):
    """Oracle: the Hamming distances of all pairs, in a loop."""
    return [
        sum(p != q for p, q in zip(a, b, strict=True)) for a, b in itertools.combinations(rows, 2)
    ]


@given(
    st.integers(2, 5).flatmap(
        lambda t: st.tuples(st.just(t), st.integers(1, [0, 0, 2, 6, 24, 120][t]))
    ),
    st.sampled_from(["high", "middle", "low"]),
    st.integers(0, 5),
)
@settings(max_examples=40, deadline=None)
def test_permutations_are_distinct_and_described_correctly(size, distance, seed):
    tiles, number = size
    rows = permutations(number, tiles, distance, seed)
    assert rows.shape == (number, tiles)
    assert (np.sort(rows, axis=1) == np.arange(tiles)).all()
    np.testing.assert_array_equal(rows, permutations(number, tiles, distance, seed))
    found = describe(rows)
    distances = slow_distances(rows.tolist())
    assert found["duplicates"] == 0
    assert found["minimum"] == (min(distances) if distances else 0)
    assert found["average"] == pytest.approx(np.mean(distances) if distances else 0)


def test_high_chooses_the_farthest_greedily():
    """Oracle: no remaining permutation is farther from its nearest chosen one than the next."""
    rows = permutations(30, tiles=4 + 1, distance="high").tolist()
    everything = list(itertools.permutations(range(5)))
    for k in range(1, len(rows)):

        def score(p, k=k):
            distances = [sum(a != b for a, b in zip(p, q, strict=True)) for q in rows[:k]]
            return min(distances), sum(distances)

        assert score(rows[k]) == max(map(score, everything))


def test_all_permutations_of_a_small_puzzle():
    rows = permutations(24, tiles=4)
    assert set(map(tuple, rows.tolist())) == set(itertools.permutations(range(4)))


def test_nine_tiles_are_better_than_published_sets():
    start = time.perf_counter()
    hundred = describe(permutations(100))
    assert time.perf_counter() - start < 20  # half a second here
    assert hundred["average"] >= 8.08  # the published set has 8.08, minimum 2
    assert hundred["minimum"] >= 6
    assert describe(permutations(9)) == {"average": 9.0, "minimum": 9, "duplicates": 0}
    # The published 1,000 are random permutations: average 8.00, minimum 0.
    random = np.stack([np.random.default_rng(i).permutation(9) for i in range(1000)])
    assert describe(random)["average"] == pytest.approx(8.0, abs=0.02)


def test_low_and_middle_have_their_average_distances():
    average = {
        d: describe(permutations(50, distance=d))["average"] for d in ("high", "middle", "low")
    }
    assert average["low"] < 4.0 < 5.8 < average["middle"] < 6.6 < 8.0 < average["high"]


def test_seed_changes_the_set():
    assert (permutations(20, seed=0) != permutations(20, seed=1)).any()


def test_describe_counts_duplicates():
    found = describe([[0, 1, 2], [0, 1, 2], [2, 1, 0], [0, 1, 2]])
    assert found == {"average": pytest.approx(1.0), "minimum": 0, "duplicates": 2}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((25, 4), "number must be in 1..24"),
        ((0, 9), "number must be in 1..362880"),
        ((10, 10), "tiles must be in 2..9"),
        ((10, 9, "far"), "distance"),
    ],
)
def test_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        permutations(*arguments)


@pytest.mark.parametrize("rows", [[[0, 0]], [], [0, 1], [[1, 2]], [[0.5, 1]], "abc"])
def test_refuses_invalid_sets(rows):
    with pytest.raises(ValueError, match="permutations must be an"):
        check_permutations(rows)
    with pytest.raises(ValueError, match=r"\(N, 4\).*0 to 3"):
        check_permutations([[0, 1, 2]], tiles=4)
