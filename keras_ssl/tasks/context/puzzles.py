"""Jigsaw puzzles: checks and previews for the jigsaw tasks."""

import math

import keras
import numpy as np

from keras_ssl import encoders


def check_tiles(encoder, grid, tile=None, jitter=None):
    """Checks that the tiles fit into the encoder's input, and fills in their default sizes.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D).
        grid: int, 2 or 3.
        tile: int, pixels, or None for 64/75 of a cell.
        jitter: int, pixels, or None for 2/64 of a tile, rounded down.

    Returns:
        (tile, jitter): int, pixels.

    Raises:
        ValueError: `grid` is not 2 or 3; a tile with its jitter is larger than a cell, or too small for
            the encoder.

    Reference: Noroozi & Favaro, ECCV 2016, section 3 (tiles of 64 pixels in cells of 75) and 4.2 (jitter 2).
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
            f"{height}x{width} images have {cell} pixels"
        )
    encoders.check_patches(encoder, tile, tile)
    return tile, jitter


def check_gray(encoder, gray):
    """Validates `gray`, the fraction of grayscale images.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D).
        gray: float.

    Raises:
        ValueError: `gray` is not in 0..1, or is positive although the images do not have three channels.
    """
    channels = encoder.input_shape[-1]
    if not 0 <= gray <= 1:
        raise ValueError(f"gray must be in 0..1, got {gray!r}")
    if gray and channels != 3:
        raise ValueError(f"gray={gray} needs 3 channels, the encoder takes {channels}")


def build_layers(tile_units, hidden, number, dtype=None):
    """Builds the layers after the encoder of a context-free network.

    Args:
        tile_units: int, units of the layer for the features of a single tile.
        hidden: int, units of the layer for the features of all tiles.
        number: int, permutations.
        dtype: policy of the first two layers, as in Keras; the logits are float32.

    Returns:
        (tile_layer, merge_layer, head): keras.layers.Dense, the first two with ReLU.

    Raises:
        ValueError: `tile_units` or `hidden` is below 1.

    Reference: Noroozi & Favaro, ECCV 2016, section 3: fc6, fc7 and fc8.

    Example:
        >>> [layer.units for layer in build_layers(128, 512, 24)]
        [128, 512, 24]
    """
    for name, value in (("tile_units", tile_units), ("hidden", hidden)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}")
    return (
        keras.layers.Dense(tile_units, activation="relu", dtype=dtype, name="tile_layer"),
        keras.layers.Dense(hidden, activation="relu", dtype=dtype, name="merge_layer"),
        keras.layers.Dense(number, dtype="float32", name="head"),
    )


def unshuffle(tiles, order):
    """Inverts a permutation of tiles.

    Args:
        tiles: (N, ...) array, tile `order[0]` first.
        order: (N,) integer array, a permutation.

    Returns:
        (N, ...) array.

    Example:
        >>> unshuffle(np.array([20, 0, 10]), [2, 0, 1]).tolist()
        [0, 10, 20]
    """
    return tiles[np.argsort(order)]


def mosaic(tiles, border=1):
    """Arranges the tiles of a square grid in one image, for previews.

    Args:
        tiles: (grid * grid, size, size, C) array, in row-major order.
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


def preview(x, y, permutations, y_pred=None):
    """Draws puzzles: shuffled, solved, and solved by the prediction.

    Args:
        x: (B, N, h, w, C) array of tiles.
        y: (B,) array, the index of each puzzle's permutation.
        permutations: (P, N) integer array.
        y_pred: (B, P) array of logits, or None.

    Returns:
        list with one entry per puzzle: a list of (image, caption).

    Example:
        >>> rows = preview(np.zeros((1, 4, 8, 8, 3)), [1], np.array([[0, 1, 2, 3], [3, 2, 1, 0]]))
        >>> [caption for _, caption in rows[0]]
        ['permutation 1', 'solved']
    """
    rows = []
    for i, tiles in enumerate(x):
        row = [
            (mosaic(tiles), f"permutation {y[i]}"),
            (mosaic(unshuffle(tiles, permutations[y[i]])), "solved"),
        ]
        if y_pred is not None:
            k = y_pred[i].argmax()
            row.append((mosaic(unshuffle(tiles, permutations[k])), f"predicted {k}"))
        rows.append(row)
    return rows
