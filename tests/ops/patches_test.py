import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_ssl.ops import patches

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 20, 26, 3), np.uint8)


def seeds(number, epoch=0):
    return tf.stack([tf.fill(number, np.int64(epoch)), tf.range(number, dtype=tf.int64)], 1)


def coordinates(shape):
    """Images whose channels are the row, the column and the index of the image."""
    batch, height, width = shape
    image = np.zeros((batch, height, width, 3), np.float32)
    image[..., 0] = np.arange(height)[:, None]
    image[..., 1] = np.arange(width)
    image[..., 2] = np.arange(batch)[:, None, None]
    return image


def test_cut_matches_slicing():
    corners = np.random.default_rng(1).integers(0, 14, (4, 5, 2)).astype(np.int32)
    found = patches.cut(PIXELS, tf.constant(corners), 6).numpy()
    assert found.dtype == np.uint8
    for i in range(4):
        for v, (row, column) in enumerate(corners[i]):
            np.testing.assert_array_equal(
                found[i, v], PIXELS[i, row : row + 6, column : column + 6]
            )


def test_cut_with_one_corner_per_channel():
    corners = np.random.default_rng(1).integers(0, 14, (4, 5, 3, 2)).astype(np.int32)
    found = patches.cut(PIXELS, tf.constant(corners), 6).numpy()
    for i, v, c in np.ndindex(4, 5, 3):
        row, column = corners[i, v, c]
        np.testing.assert_array_equal(
            found[i, v, ..., c], PIXELS[i, row : row + 6, column : column + 6, c]
        )


@given(
    st.integers(2, 3),
    st.integers(2, 6),
    st.integers(0, 2),
    st.integers(20, 26),
    st.integers(20, 30),
)
@settings(max_examples=25, deadline=None)
def test_tiles_stay_within_their_cells(grid, size, jitter, height, width):
    cell = min(height, width) // grid
    size = min(size, cell - 2 * jitter)
    image = coordinates((6, height, width))
    found = patches.tiles(image, seeds(6), grid, size, jitter).numpy()
    assert found.shape == (6, grid * grid, size, size, 3)
    for i in range(6):
        rows, columns = found[i, ..., 0], found[i, ..., 1]
        tops = rows.min(axis=(1, 2)).reshape(grid, grid)
        # The position of the grid in the image is random.
        first_row = range(height - grid * cell + 1)
        first_column = range(width - grid * cell + 1)

        def inside(values, axis, first):
            index = np.arange(grid * grid) // grid if axis == 0 else np.arange(grid * grid) % grid
            low, high = values.min(axis=(1, 2)), values.max(axis=(1, 2))
            return any(
                (low >= f + index * cell).all() and (high < f + (index + 1) * cell).all()
                for f in first
            )

        assert inside(rows, 0, first_row)
        assert inside(columns, 1, first_column)
        assert (np.diff(tops, axis=0) > 0).all()  # row-major
    assert (found[..., 2] == np.arange(6)[:, None, None, None]).all()


def test_tiles_have_random_positions_and_jittered_channels():
    image = coordinates((200, 30, 30))[..., [0, 0, 0]]  # all channels are the row
    found = patches.tiles(image, seeds(200), 3, 4, 1).numpy()
    tops = found[:, :, 0, 0]  # (200, 9, 3)
    offsets = tops - 10 * np.repeat(np.arange(3), 3)[:, None]
    assert set(np.unique(offsets)) == set(range(7))  # all 10 - 4 + 1 offsets
    apart = tops[..., 0] - tops[..., 1]
    assert set(np.unique(apart)) == {-2, -1, 0, 1, 2}
    repeated = patches.tiles(image, seeds(200), 3, 4, 1).numpy()
    np.testing.assert_array_equal(found, repeated)
    assert (patches.tiles(image, seeds(200, epoch=1), 3, 4, 1).numpy() != found).any()


def test_normalize_gives_all_channels_the_same_moments():
    x = patches.normalize(PIXELS[:, None]).numpy()
    np.testing.assert_allclose(x.mean((2, 3)), 127.5, atol=1e-3)
    np.testing.assert_allclose(x.std((2, 3)), 64, rtol=1e-4)
    # Brightness and contrast have no effect.
    np.testing.assert_allclose(patches.normalize(0.3 * PIXELS[:, None] + 40.0), x, atol=1e-2)
    flat = patches.normalize(np.full((1, 1, 4, 4, 3), 7, np.uint8)).numpy()
    np.testing.assert_array_equal(flat, 127.5)


def test_gray_matches_opencv():
    import cv2

    found = patches.gray(PIXELS[:, None], tf.constant([True, False, True, False])).numpy()[:, 0]
    np.testing.assert_array_equal(found[[1, 3]], PIXELS[[1, 3]])
    expected = cv2.cvtColor(PIXELS[2].astype(np.float32), cv2.COLOR_RGB2GRAY)
    for channel in range(3):
        np.testing.assert_allclose(found[2, ..., channel], expected, atol=0.01)


def test_projection_removes_only_green_magenta():
    axis = np.array([[-1.0, 2.0, -1.0]])
    matrix = np.eye(3) - axis.T @ axis / (axis @ axis.T)  # B of the paper
    found = patches.project_colors(PIXELS).numpy()
    np.testing.assert_allclose(found, PIXELS @ matrix, atol=1e-3)
    np.testing.assert_allclose(found @ axis[0], 0, atol=1e-3)
    # The fringes of a white edge whose green channel is shifted are removed.
    edge = np.repeat(np.where(np.arange(12) < 6, 200.0, 50.0)[:, None], 3, axis=1)
    edge[6, 1] = 200  # a green pixel next to the edge
    left = patches.project_colors(edge[None]).numpy()[0]
    assert np.ptp(left, axis=1).max() < 1e-3
    np.testing.assert_allclose(patches.project_colors([[10.0, 10.0, 10.0]]), 10, atol=1e-4)


def test_dropping_keeps_one_channel_and_adds_weak_noise():
    image = np.random.default_rng(0).normal(120, [10, 30, 50], (300, 4, 8, 8, 3)).astype(np.float32)
    found = patches.drop_colors(image, seeds(300)).numpy()
    kept = (found == image).all(axis=(2, 3))  # (300, 4, 3)
    assert (kept.sum(-1) == 1).all()
    fractions = kept.mean((0, 1))
    np.testing.assert_allclose(fractions, 1 / 3, atol=0.05)
    for i, v in ((0, 0), (5, 3), (17, 2)):
        (channel,) = np.flatnonzero(kept[i, v])
        deviation = image[i, v, ..., channel].std()
        noise = found[i, v][..., [c for c in range(3) if c != channel]] - 127.5
        assert noise.std() == pytest.approx(deviation / 100, rel=0.25)
        assert abs(noise.mean()) < 0.4 * deviation / 100
        assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.4
    assert len({tuple(k) for k in kept[:, 0].astype(int).tolist()}) == 3  # it differs by patch
