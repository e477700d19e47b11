"""Sets of permutations for jigsaw puzzles, by their Hamming distances."""

import functools
import math

import numpy as np

MAX_TILES = 9  # all permutations of nine tiles are 362,880; of sixteen they would be 2e13


def permutations(number, tiles=9, distance="high", seed=0):
    """Chooses different permutations one after the other, by their Hamming distance to those chosen.

    The Hamming distance of two permutations is the number of places in which they differ. The closer
    the permutations, the more the answer depends on details; far ones can be told apart by few tiles.

    Args:
        number: int N.
        tiles: int, 2 to 9.
        distance: "high" takes next what is farthest from the nearest one chosen, and among these what
            is farthest on average; "low" what is closest on average; "middle" what is closest to an
            average of 0.7 times `tiles`.
        seed: int, of the first permutation and of the choice among equals.

    Returns:
        (N, tiles) int32 array; row k lists which tile comes to place 0, 1, ... in class k.

    Raises:
        ValueError: `tiles` not in 2..9, `number` not in 1..tiles!, an unknown `distance`.

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
            f"number must be in 1..{math.factorial(tiles)}, as many permutations as {tiles} tiles "
            f"have, got {number!r}"
        )
    if distance not in ("high", "middle", "low"):
        raise ValueError(f'distance must be "high", "middle" or "low", got {distance!r}')
    return _greedy(number, tiles, distance, seed).copy()


@functools.lru_cache(maxsize=8)
def _greedy(number, tiles, distance, seed):
    candidates = _all(tiles)[:, np.random.default_rng(seed).permutation(math.factorial(tiles))]
    total = np.zeros(candidates.shape[1], np.int32)  # of the distances to those chosen
    nearest = np.full(candidates.shape[1], tiles, np.uint8)
    chosen = [0]
    while len(chosen) < number:
        apart = np.full(candidates.shape[1], tiles, np.uint8)
        for place in candidates:
            apart -= (place == place[chosen[-1]]).view(np.uint8)
        total += apart
        np.minimum(nearest, apart, out=nearest)
        if distance == "high":
            left = np.flatnonzero(nearest == nearest.max())
            score = total[left]
        else:
            left = np.flatnonzero(nearest)  # not 0: those are chosen
            score = -total[left]
            if distance == "middle":
                score = -np.abs(10 * total[left] - 7 * tiles * len(chosen))
        chosen.append(int(left[score.argmax()]))
    return candidates[:, chosen].T.astype(np.int32)


def describe(permutations):
    """What is to be known about a set of permutations before it is used.

    Args:
        permutations: (N, tiles) integer array with N > 0.

    Returns:
        dict: `average` and `minimum` Hamming distance over all pairs (0 for a single one), and
        `duplicates`, how many rows another one before them equals.

    Raises:
        ValueError: a row is no permutation of 0 to tiles - 1.

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
    """Refuses what is no set of permutations.

    Args:
        permutations: (N, tiles) integer array.
        tiles: int, or None for any number.

    Returns:
        (N, tiles) int32 array.

    Raises:
        ValueError: a row does not hold 0 to tiles - 1 once each, or there is none.

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
            f"permutations must be an (N, {tiles or 'tiles'}) array whose rows hold 0 to "
            f"{'tiles - 1' if tiles is None else tiles - 1} once each, got shape {rows.shape}"
        )
    return rows.astype(np.int32)


def _all(tiles):
    """All permutations, one a column: (tiles, tiles!) uint8."""
    rows = np.zeros((1, 1), np.uint8)
    for new in range(1, tiles):
        count = rows.shape[1]
        longer = np.empty((new + 1, (new + 1) * count), np.uint8)
        for place in range(new + 1):  # the new number at each place of each shorter permutation
            block = longer[:, place * count : (place + 1) * count]
            block[:place], block[place], block[place + 1 :] = rows[:place], new, rows[place:]
        rows = longer
    return rows
