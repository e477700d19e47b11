"""Permutation sets for jigsaw puzzles, chosen by Hamming distance."""

import functools
import math

import numpy as np

MAX_TILES = 9  # nine tiles have 362,880 permutations, sixteen would have 2e13


def permutations(number, tiles=9, distance="high", seed=0):
    """Chooses distinct permutations greedily, by their Hamming distance to those already chosen.

    The Hamming distance of two permutations is the number of positions in which they differ. Similar
    permutations differ in few tiles, so the prediction depends on details; distant ones can be
    distinguished by a few tiles.

    Args:
        number: int N, permutations to choose.
        tiles: int, 2 to 9.
        distance: criterion for the next permutation. "high": the largest distance to the nearest chosen
            permutation and, in a tie, the largest average distance; "low": the smallest average distance;
            "middle": the average distance closest to 0.7 times `tiles`.
        seed: int, for the first permutation and for ties.

    Returns:
        (N, tiles) int32 array; row k lists which tile is at position 0, 1, ... in class k.

    Raises:
        ValueError: `tiles` is not in 2..9, `number` not in 1..tiles!, or `distance` is unknown.

    Reference: Noroozi & Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw
    Puzzles", ECCV 2016, section 4.1 and table 4.

    Example:
        >>> describe(permutations(9))
        {'average': 9.0, 'minimum': 9, 'duplicates': 0}
    """
    if tiles not in range(2, MAX_TILES + 1):
        raise ValueError(f"tiles must be in 2..{MAX_TILES}, got {tiles!r}")
    if not 1 <= number <= math.factorial(tiles):
        raise ValueError(
            f"number must be in 1..{math.factorial(tiles)}, the number of permutations of {tiles} "
            f"tiles, got {number!r}"
        )
    if distance not in ("high", "middle", "low"):
        raise ValueError(f'distance must be "high", "middle" or "low", got {distance!r}')
    return _greedy(number, tiles, distance, seed).copy()


@functools.lru_cache(maxsize=8)
def _greedy(number, tiles, distance, seed):
    candidates = _all(tiles)[:, np.random.default_rng(seed).permutation(math.factorial(tiles))]
    total = np.zeros(candidates.shape[1], np.int32)  # sum of the distances to the chosen ones
    nearest = np.full(candidates.shape[1], tiles, np.uint8)
    chosen = [0]
    while len(chosen) < number:
        distances = np.full(candidates.shape[1], tiles, np.uint8)
        for position in candidates:
            distances -= (position == position[chosen[-1]]).view(np.uint8)
        total += distances
        np.minimum(nearest, distances, out=nearest)
        if distance == "high":
            left = np.flatnonzero(nearest == nearest.max())
            score = total[left]
        else:
            left = np.flatnonzero(nearest)  # those already chosen have distance 0
            score = -total[left]
            if distance == "middle":
                score = -np.abs(10 * total[left] - 7 * tiles * len(chosen))
        chosen.append(int(left[score.argmax()]))
    return candidates[:, chosen].T.astype(np.int32)


def describe(permutations):
    """Computes statistics of the Hamming distances of a set of permutations.

    Args:
        permutations: (N, tiles) integer array with N > 0.

    Returns:
        dict: `average` and `minimum` Hamming distance over all pairs (0 for a single permutation), and
        `duplicates`, the number of rows that equal an earlier row.

    Raises:
        ValueError: a row is not a permutation of 0 to tiles - 1.

    Example:
        >>> describe([[0, 1, 2], [1, 0, 2], [1, 2, 0]])
        {'average': 2.3333333333333335, 'minimum': 2, 'duplicates': 0}
    """
    rows = check_permutations(permutations)
    number, tiles = rows.shape
    distances = [(rows[i] != rows[i + 1 :]).sum(1) for i in range(number - 1)]
    distances = np.concatenate([*distances, np.zeros(0, int)])
    return {
        "average": float(distances.mean()) if len(distances) else 0.0,
        "minimum": int(distances.min(initial=tiles)) if len(distances) else 0,
        "duplicates": number - len(np.unique(rows, axis=0)),
    }


def check_permutations(permutations, tiles=None):
    """Validates a set of permutations.

    Args:
        permutations: (N, tiles) integer array.
        tiles: int, or None for any number.

    Returns:
        (N, tiles) int32 array.

    Raises:
        ValueError: a row does not contain each of 0 to tiles - 1 exactly once, or there are no rows.

    Example:
        >>> check_permutations([[1, 0]], tiles=2).tolist()
        [[1, 0]]
    """
    rows = np.asarray(permutations)
    expected = rows.shape[-1] if tiles is None and rows.ndim else tiles
    if (
        rows.ndim != 2
        or not rows.size
        or rows.shape[1] != expected
        or (np.sort(rows, 1) != np.arange(expected)).any()
    ):
        raise ValueError(
            f"permutations must be an (N, {tiles or 'tiles'}) array whose rows contain 0 to "
            f"{'tiles - 1' if tiles is None else tiles - 1} once each, got shape {rows.shape}"
        )
    return rows.astype(np.int32)


def _all(tiles):
    """Returns all permutations as the columns of a (tiles, tiles!) uint8 array."""
    rows = np.zeros((1, 1), np.uint8)
    for new in range(1, tiles):
        count = rows.shape[1]
        longer = np.empty((new + 1, (new + 1) * count), np.uint8)
        for i in range(new + 1):  # insert the new number at position i of each shorter permutation
            block = longer[:, i * count : (i + 1) * count]
            block[:i], block[i], block[i + 1 :] = rows[:i], new, rows[i:]
        rows = longer
    return rows
