"""Ray casting: which surface each ray hits first, vectorized over rays and shapes.

All shapes are convex: a ray is inside a shape from the last of the entries to the first of the exits of the
quadric and the slabs that bound it. Arrays of vectors have the component on axis 0: (3, P).
"""

from typing import NamedTuple

import numpy as np

SPHERE, CYLINDER, CONE, BOX, GROUND = range(5)
FAR = 50.0  # meters; beyond is sky
# y^2, y and 1 in x^2 + z^2 + ... = 0 of the unit shapes, whose ends are at y = -1 and 1 (the cone's tip)
QUADRICS = np.float32([[1, 0, -1], [0, 0, -1], [-0.25, 0.5, -0.25]])
ALMOST_ZERO = np.float32(1e-7)


class Shapes(NamedTuple):
    """K shapes, sorted by kind, at one instant.

    Attributes:
        kind: (K,) int, SPHERE to BOX.
        center: (K, 3) float32, meters.
        axes: (K, 3, 3) float32, rotation from the shape to the world.
        scale: (K, 3) float32, half sizes along its axes, meters.
    """

    kind: np.ndarray
    center: np.ndarray
    axes: np.ndarray
    scale: np.ndarray


class Hits(NamedTuple):
    """What P rays hit.

    Attributes:
        distance: (P,) float32, in lengths of the ray's direction; inf for the sky.
        surface: (P,) int, index of the shape, K for the ground, -1 for the sky.
    """

    distance: np.ndarray
    surface: np.ndarray


def first_hits(shapes, origin, directions):
    """Computes what rays from one point hit first.

    Args:
        shapes: `Shapes`; `origin` is outside all of them.
        origin: (3,) float32.
        directions: (3, P) float32, of any length.

    Returns:
        `Hits`.
    """
    inside = _to_shapes(shapes)
    start = inside @ (origin - shapes.center)[..., None]  # (K, 3, 1)
    entry, leave = _spans(start, _rotated(inside, directions), shapes.kind)
    with np.errstate(divide="ignore"):
        ground = -origin[1] / directions[1]
    ground[(ground <= 0) | (ground > FAR)] = np.inf
    entry[(entry >= leave) | (entry <= 0)] = np.inf
    entry = np.concatenate([entry, ground[None]])
    surface = entry.argmin(0)
    distance = np.take_along_axis(entry, surface[None], 0)[0]
    surface[distance > FAR] = -1
    distance[surface < 0] = np.inf
    return Hits(distance, surface)


def in_shadow(shapes, points, surface, direction):
    """Tells which points have a shape between them and a distant light.

    Args:
        shapes: `Shapes`.
        points: (3, P) float32, on surfaces.
        surface: (P,) int, on which one: a convex shape casts no shadow on its lit side.
        direction: (3,) float32, to the light.

    Returns:
        (P,) bool.
    """
    inside = _to_shapes(shapes)
    start = _rotated(inside, points)
    start -= inside @ shapes.center[..., None]
    entry, leave = _spans(start, inside @ direction[:, None], shapes.kind)
    blocked = (entry < leave) & (leave > 0)
    blocked &= np.arange(len(blocked))[:, None] != surface
    return blocked.any(0)


def _to_shapes(shapes):
    """Returns the (K, 3, 3) matrices from the world to the unit shapes."""
    return np.swapaxes(shapes.axes, 1, 2) / shapes.scale[..., None]


def _rotated(matrices, vectors):
    return (matrices.reshape(-1, 3) @ vectors).reshape(len(matrices), 3, vectors.shape[1])


def _spans(origin, direction, kind):
    """Computes where rays enter and leave unit shapes; a ray that misses enters after it leaves.

    `origin` and `direction` are (K, 3, P), or (K, 3, 1) if it is the same for all rays.
    """
    direction = np.where(np.abs(direction) < ALMOST_ZERO, ALMOST_ZERO, direction)
    entry, leave = _slab(origin[:, 1], direction[:, 1])
    boxes = np.searchsorted(kind, BOX)
    for axis in (0, 2):
        near, far = _slab(origin[boxes:, axis], direction[boxes:, axis])
        np.maximum(entry[boxes:], near, out=entry[boxes:])
        np.minimum(leave[boxes:], far, out=leave[boxes:])
    near, far = _quadric(origin[:boxes], direction[:boxes], kind[:boxes])
    np.maximum(entry[:boxes], near, out=entry[:boxes])
    np.minimum(leave[:boxes], far, out=leave[:boxes])
    return entry, leave


def _slab(origin, direction):
    """Where the coordinate is between -1 and 1."""
    middle = -origin / direction
    half = np.abs(1 / direction)
    return middle - half, middle + half


def _quadric(origin, direction, kind):
    """Where x^2 + z^2 + ... < 0; of a cone's two halves, the one below its tip."""
    square, linear, constant = QUADRICS[kind].T[..., None]
    (ox, oy, oz), (dx, dy, dz) = origin.swapaxes(0, 1), direction.swapaxes(0, 1)
    a = dx * dx + dz * dz + square * (dy * dy)
    b = ox * dx + oz * dz + (square * oy + linear / 2) * dy
    c = ox * ox + oz * oz + (square * oy + linear) * oy + constant
    a[np.abs(a) < ALMOST_ZERO] = ALMOST_ZERO
    root = b * b - a * c
    missed = root < 0
    root = np.sqrt(np.maximum(root, 0, out=root), out=root)
    entry, leave = (-b - root) / a, (root - b) / a
    entry[missed] = np.inf
    cones = np.searchsorted(kind, CONE)
    # A steep ray passes through both halves, and is outside in between.
    steep, downward = (np.broadcast_to(m[cones:] < 0, root[cones:].shape) for m in (a, dy))
    entry[cones:][steep & ~downward] = -np.inf
    leave[cones:][steep & downward] = np.inf
    return entry, leave


def describe(shapes, points, surface):
    """Computes normals and parts where rays hit.

    Args:
        shapes: `Shapes`.
        points: (3, P) float32.
        surface: (P,) int, 0 to K.

    Returns:
        (normal (3, P) float32 of length 1, part (P,) int: which face of the surface, place (3, P) and
        direction (3, P) float32: the point in meters and the normal along the axes of the shape).
    """
    K = len(shapes.kind)
    kind = np.append(shapes.kind, GROUND)[surface]
    center = np.vstack([shapes.center, np.zeros((1, 3), np.float32)]).T[:, surface]
    scale = np.vstack([shapes.scale, np.ones((1, 3), np.float32)]).T[:, surface]
    axes = np.concatenate([shapes.axes, np.eye(3, dtype=np.float32)[None]])
    axes = np.moveaxis(axes, 0, -1)[:, :, surface]  # (3, 3, P)
    place = ((points - center)[:, None] * axes).sum(0)
    unit = place / scale
    size = np.abs(unit)
    face = size.argmax(0)
    sign = np.where(unit < 0, np.float32(-1), np.float32(1))
    corner = np.arange(3)[:, None] == face
    square, linear, constant = QUADRICS.take(np.minimum(kind, CONE), axis=0).T
    side = unit[0] ** 2 + unit[2] ** 2 + (square * unit[1] + linear) * unit[1] + constant
    # At a rim the point lies on the end or on the side, whichever it is closer to.
    end = (size[1] - 1 > side) & ((kind == CYLINDER) | ((kind == CONE) & (unit[1] < 0)))
    normal = np.stack([unit[0], square * unit[1] + linear / 2, unit[2]])
    upright = np.float32([[0], [1], [0]])
    normal = np.where(end, upright * sign, normal)
    normal = np.where(kind == BOX, corner * sign, normal)
    normal = np.where(kind == GROUND, -upright, normal)
    direction = normal / scale
    direction /= np.sqrt((direction * direction).sum(0))
    normal = (axes * direction).sum(1)
    positive = np.take_along_axis(sign, face[None], 0)[0] > 0
    part = np.where(kind == BOX, 2 * face + positive, np.where(end, 1 + (unit[1] > 0), 0))
    return normal, np.where(surface == K, 0, part), place, direction
