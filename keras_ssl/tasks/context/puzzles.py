"""Puzzles of tiles: what the jigsaw tasks check, and how people are shown them."""

import math

import numpy as np

from keras_ssl import encoders


def check_tiles(encoder, grid, tile=None, jitter=None):
    """Refuses puzzles that cannot be cut out of the encoder's pictures.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D).
        grid: int, 2 or 3.
        tile: int, pixels, or None for 64/75 of a cell.
        jitter: int, pixels, or None for 2/64 of a tile, rounded down.

    Returns:
        (tile, jitter): int, pixels.

    Raises:
        ValueError: a `grid` other than 2 or 3; a tile with its jitter larger than a cell, or one that
            cannot go through the encoder.

    Reference: Noroozi & Favaro, ECCV 2016, section 4.2: tiles of 64 pixels in cells of 75, jitter 2.
    """
    height, width = encoder.input_shape[1:3]
    if height is None or width is None:
        raise ValueError("encoder must have an input of fixed height and width, got None")
    if grid not in (2, 3):
        raise ValueError(f"grid must be 2 or 3, got {grid!r}")
    cell = min(height, width) // grid
    if tile is None:
        tile = round(cell * 64 / 75)
    if jitter is None:
        jitter = tile * 2 // 64
    if tile < 1 or jitter < 0 or tile + 2 * jitter > cell:
        raise ValueError(
            f"tile {tile} with jitter {jitter} on both sides does not fit: the {grid}x{grid} cells of "
            f"{height}x{width} pictures have {cell} pixels"
        )
    encoders.check_patches(encoder, tile, tile)
    return tile, jitter


def check_gray(encoder, gray):
    """Refuses shares of gray pictures that cannot be.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D).
        gray: float.

    Raises:
        ValueError: `gray` is not in 0..1, or not 0 though the pictures have no three channels.
    """
    channels = encoder.input_shape[-1]
    if not 0 <= gray <= 1:
        raise ValueError(f"gray must be in 0..1, got {gray!r}")
    if gray and channels != 3:
        raise ValueError(f"gray={gray} needs 3 channels, the encoder takes {channels}")


def solve(tiles, order):
    """Puts the tiles of a puzzle back in their places.

    Args:
        tiles: (N, ...) array, tile `order[0]` first.
        order: (N,) integer array, a permutation.

    Returns:
        (N, ...) array.

    Example:
        >>> solve(np.array([20, 0, 10]), [2, 0, 1]).tolist()
        [0, 10, 20]
    """
    return tiles[np.argsort(order)]


def mosaic(tiles, border=1):
    """Lays the tiles of a square grid side by side, for people.

    Args:
        tiles: (grid * grid, size, size, C) array, row by row.
        border: int, white pixels between two tiles.

    Returns:
        (H, W, C) float32 array with H = W = grid * size + (grid - 1) * border.

    Example:
        >>> mosaic(np.zeros((9, 8, 8, 3))).shape
        (26, 26, 3)
    """
    number, size, _, channels = tiles.shape
    grid = math.isqrt(number)
    step = size + border
    whole = np.full((grid * step - border, grid * step - border, channels), 255, np.float32)
    for k, tile in enumerate(tiles):
        row, column = step * (k // grid), step * (k % grid)
        whole[row : row + size, column : column + size] = tile
    return whole


def puzzles(x, y, permutations, y_pred=None):
    """Puzzles for people: unsolved, solved, and as the network would solve them.

    Args:
        x: (B, N, h, w, C) array of tiles.
        y: (B,) array, the number of the permutation that each puzzle is in.
        permutations: (P, N) integer array.
        y_pred: (B, P) array of logits, or None.

    Returns:
        list with one entry per puzzle: a list of (picture, caption).

    Example:
        >>> rows = puzzles(np.zeros((1, 4, 8, 8, 3)), [1], np.array([[0, 1, 2, 3], [3, 2, 1, 0]]))
        >>> [caption for _, caption in rows[0]]
        ['permutation 1', 'solved']
    """
    rows = []
    for i, tiles in enumerate(x):
        row = [
            (mosaic(tiles), f"permutation {y[i]}"),
            (mosaic(solve(tiles, permutations[y[i]])), "solved"),
        ]
        if y_pred is not None:
            said = y_pred[i].argmax()
            row.append((mosaic(solve(tiles, permutations[said])), f"predicted {said}"))
        rows.append(row)
    return rows
