"""Renders a frame of a world, and its exact geometry."""

import numpy as np

from keras_ssl.data.renderer import shade, trace

FIELD_OF_VIEW = np.radians(60)
# Where the rays that smooth an edge pass through a pixel: a rotated grid, for nearly horizontal or vertical
# edges.
SAMPLES = np.float32([[-0.125, -0.375], [0.375, -0.125], [0.125, 0.375], [-0.375, 0.125]])
CLASSES = ("sky", "ground", "wall", "sphere", "cylinder", "cone", "box")
VISIBLE = 1e-3  # relative difference of depths of the same point


def focal_length(size):
    """Returns the focal length in pixels of images of `size` pixels."""
    return np.float32(size / 2 / np.tan(FIELD_OF_VIEW / 2))


def frame(world, t, size):
    """Renders a frame.

    Args:
        world: `World`.
        t: int, index of the frame.
        size: int, pixels.

    Returns:
        (color (3, size, size) float32, linear, of length 1 at full exposure; `trace.Hits` of the pixels'
        centers; normal (3, size, size), in the world; code (size, size), see `shade.shade`).
    """
    shapes = world.shapes_at(world.times[t])
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size))).astype(np.float32)
    hits, color, normal, code = _cast(world, shapes, t, size, grid.reshape(2, -1))
    code = code.reshape(size, size)
    rows, columns = np.nonzero(_edges(code))
    if len(rows):
        between = np.stack([columns, rows])[..., None] + SAMPLES.T[:, None]  # (2, n, samples)
        _, finer, *_ = _cast(world, shapes, t, size, between.reshape(2, -1).astype(np.float32))
        color[:, rows * size + columns] = finer.reshape(3, len(rows), -1).mean(-1)
    image = (3, size, size)
    return color.reshape(image), hits, normal.reshape(image), code


def _cast(world, shapes, t, size, pixels):
    directions = world.orientations[t] @ rays(pixels, size)
    hits = trace.first_hits(shapes, world.positions[t], directions)
    pixel = 1 / focal_length(size)
    return hits, *shade.shade(world, shapes, world.positions[t], directions, hits, pixel)


def rays(pixels, size):
    """Returns directions (3, P) with z = 1 in the camera, of pixels (2, P): so distances are depths."""
    x, y = (pixels - np.float32((size - 1) / 2)) / focal_length(size)
    return np.stack([x, y, np.ones_like(x)])


def _edges(code):
    """Returns which pixels differ from one of their four neighbors."""
    edge = np.zeros(code.shape, bool)
    for near, far in _neighbors(edge.ndim):
        edge[near] |= code[near] != code[far]
    return edge


def _neighbors(ndim):
    """Returns pairs of slices: pixels and their neighbors, in four directions."""
    first, last, whole = slice(None, -1), slice(1, None), (slice(None),)
    for axis in range(ndim):
        before, rest = whole * axis, whole * (ndim - axis - 1)
        yield (*before, first, *rest), (*before, last, *rest)
        yield (*before, last, *rest), (*before, first, *rest)


def geometry(world, t, hits, normal, code):
    """Computes depth, normals, contours, instances and classes of a frame.

    Args:
        world: `World`.
        t: int, index of the frame.
        hits, normal, code: as returned by `frame`.

    Returns:
        dict of arrays (size, size, channels), as in `scenes`.
    """
    size = len(code)
    depth, surface = hits.distance.reshape(size, size), hits.surface.reshape(size, size)
    part = code // 8
    contours = np.zeros((size, size), bool)
    for near, far in _neighbors(2):
        # The contour belongs to the surface in front.
        contours[near] |= (part[near] != part[far]) & (depth[near] <= depth[far])
    wall, kind = np.append(world.wall, False), np.append(world.shapes.kind, trace.GROUND)
    names = np.where(wall, "wall", np.array(["sphere", "cylinder", "cone", "box", "ground"])[kind])
    classes = np.array([*(CLASSES.index(name) for name in names), CLASSES.index("sky")], np.int32)
    numbers = np.where(wall, 0, np.arange(1, len(wall) + 1))
    numbers[-1] = 0  # the ground
    columns = {
        "depth": np.where(surface < 0, np.float32(np.nan), depth),
        "contours": contours.astype(np.float32),
        "instances": np.append(numbers, 0).astype(np.int32)[surface],
        "classes": classes[surface],
    }
    in_camera = world.orientations[t].T @ normal.reshape(3, -1)
    return {
        **{name: column[..., None] for name, column in columns.items()},
        "normals": np.ascontiguousarray(in_camera.T).reshape(size, size, 3),
    }


def flow(world, t, hits):
    """Computes how the points of a frame move until the next one.

    Args:
        world: `World`.
        t: int, index of the frame.
        hits: `trace.Hits` of its pixels' centers.

    Returns:
        dict of `flow`, `visible` and `moving`, as in `scenes`.
    """
    size = round(len(hits.surface) ** 0.5)
    shapes, after = world.shapes_at(world.times[t]), world.shapes_at(world.times[t + 1])
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size))).reshape(2, -1).astype(np.float32)
    directions = world.orientations[t] @ rays(grid, size)
    sky = hits.surface < 0
    points = directions * np.where(sky, 1, hits.distance) + world.positions[t][:, None]
    still = np.eye(3, dtype=np.float32)[None]
    turn = np.concatenate([after.axes @ np.swapaxes(shapes.axes, 1, 2), still])
    turn = np.moveaxis(turn, 0, -1)[:, :, hits.surface]
    origin = np.zeros((1, 3), np.float32)
    before, behind = (np.vstack([s.center, origin]).T[:, hits.surface] for s in (shapes, after))
    moved = (turn * (points - before)).sum(1) + behind - world.positions[t + 1][:, None]
    moved = np.where(sky, directions, moved)  # the sky is infinitely far away
    x, y, z = world.orientations[t + 1].T @ moved
    in_front = z > 0
    z = np.where(in_front, z, 1)
    to = np.stack([x / z, y / z]) * focal_length(size) + np.float32((size - 1) / 2)
    there = trace.first_hits(
        after, world.positions[t + 1], world.orientations[t + 1] @ rays(to, size)
    )
    same = np.where(sky, there.surface < 0, np.abs(there.distance / z - 1) < VISIBLE)
    inside = ((to >= -0.5) & (to <= size - 0.5)).all(0)
    moves = np.append((world.velocity != 0).any(1) | (world.spin != 0), [False, False])
    columns = {
        "flow": np.where(in_front, to - grid, np.nan),
        "visible": (same & inside & in_front)[None],
        "moving": moves[hits.surface][None],
    }
    return {
        name: np.ascontiguousarray(column.reshape(-1, size, size).transpose(1, 2, 0), np.float32)
        for name, column in columns.items()
    }


def motion(world):
    """Returns the poses (T - 1, 6) of each next camera in the coordinates of the previous one."""
    turns = np.swapaxes(world.orientations[:-1], 1, 2).astype(np.float64)
    moves = (turns @ np.diff(world.positions, axis=0)[..., None])[..., 0]
    turns = turns @ world.orientations[1:]
    axis = np.stack(
        [turns[:, (i + 2) % 3, (i + 1) % 3] - turns[:, (i + 1) % 3, (i + 2) % 3] for i in range(3)],
        1,
    )
    sine = np.linalg.norm(axis, axis=1) / 2
    angle = np.arctan2(sine, (np.trace(turns, axis1=1, axis2=2) - 1) / 2)
    vector = axis / 2 * (angle / np.maximum(sine, 1e-12))[:, None]
    return np.concatenate([moves, vector], axis=1).astype(np.float32)
