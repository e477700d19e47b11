"""Ray casting: which surface each ray hits first, vectorized over rays and shapes.

All shapes are convex, bounded by a quadric and slabs: a ray is inside a shape from the last of its entries
into these to the first of its exits. Arrays of vectors have the component on axis 0: (3, P).
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
    """The first hits of P rays.

    Attributes:
        distance: (P,) float32, in lengths of the ray's direction; inf for the sky.
        surface: (P,) int, index of the shape, K for the ground, -1 for the sky.
    """

    distance: np.ndarray
    surface: np.ndarray


def first_hits(shapes, origin, directions):
    """Computes the first hits of rays from one point.

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
    entry[~((entry < leave) & (entry > 0))] = np.inf
    entry = np.concatenate([entry, np.where(ground > 0, ground, np.inf)[None]])
    distance = entry.min(0)
    # The index of the first hit; `argmin` along the first axis takes ten times as long.
    order = np.arange(len(entry), 0, -1, dtype=np.int16)[:, None]
    surface = len(entry) - ((entry == distance) * order).max(0).astype(int)
    sky = distance > FAR
    surface[sky], distance[sky] = -1, np.inf
    return Hits(distance, surface)


def in_shadow(shapes, points, surface, direction):
    """Finds the points that have a shape between them and a distant light.

    Args:
        shapes: `Shapes`.
        points: (3, P) float32, on surfaces.
        surface: (P,) int, the surface of each point; a convex shape casts no shadow on its lit side.
        direction: (3,) float32, to the light.

    Returns:
        (P,) bool.
    """
    inside = _to_shapes(shapes)
    start = _rotated(inside, points)
    start -= inside @ shapes.center[..., None]
    entry, leave = _spans(start, inside @ direction[:, None], shapes.kind)
    blocked = (entry < leave) & (leave > 0)
    own = np.flatnonzero(surface < len(blocked))
    blocked[surface[own], own] = False
    return blocked.any(0)


def _to_shapes(shapes):
    """Returns the (K, 3, 3) matrices from the world to the unit shapes."""
    return np.swapaxes(shapes.axes, 1, 2) / shapes.scale[..., None]


def _rotated(matrices, vectors):
    return (matrices.reshape(-1, 3) @ vectors).reshape(len(matrices), 3, vectors.shape[1])


def _spans(origin, direction, kind):
    """Computes where rays enter and leave unit shapes; if a ray misses, `entry < leave` is false (or NaN).

    `origin` and `direction` are (K, 3, P), or (K, 3, 1) if it is the same for all rays.
    """
    _keep_from_zero(direction)
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


def _keep_from_zero(values):
    tiny = np.abs(values) < ALMOST_ZERO
    if tiny.any():
        values[tiny] = ALMOST_ZERO


def _slab(origin, direction):
    """Computes where the coordinate is between -1 and 1."""
    inverse = 1 / direction
    middle, half = -origin * inverse, np.abs(inverse)
    return middle - half, middle + half


def _quadric(origin, direction, kind):
    """Computes where x^2 + z^2 + ... < 0; for a cone with two halves, in the half below its tip."""
    square, linear, constant = QUADRICS[kind].T[..., None]
    (ox, oy, oz), (dx, dy, dz) = origin.swapaxes(0, 1), direction.swapaxes(0, 1)
    a = dx * dx + dz * dz + square * (dy * dy)
    b = ox * dx + oz * dz + (square * oy + linear / 2) * dy
    c = ox * ox + oz * oz + (square * oy + linear) * oy + constant
    _keep_from_zero(a)
    with np.errstate(invalid="ignore"):
        root = np.sqrt(b * b - a * c)  # NaN if the ray misses
    inverse = 1 / a
    middle, root = -b * inverse, root * inverse
    entry, leave = middle - root, middle + root
    cones = np.searchsorted(kind, CONE)
    # A steep ray passes through both halves, and is outside between them.
    steep, downward = (np.broadcast_to(m[cones:] < 0, root[cones:].shape) for m in (a, dy))
    entry[cones:][steep & ~downward] = -np.inf
    leave[cones:][steep & downward] = np.inf
    return entry, leave


def describe(shapes, points, surface):
    """Computes normals and parts of surfaces at the hits of rays.

    Args:
        shapes: `Shapes`.
        points: (3, P) float32.
        surface: (P,) int, 0 to K.

    Returns:
        (normal (3, P) float32 of length 1; part (P,) int, the face of the surface; place (3, P) and direction
        (3, P) float32, the point in meters and the normal, both along the axes of the shape).
    """
    normal, place = np.zeros_like(points), points.copy()
    normal[1], part = -1, np.zeros(len(surface), int)  # of the ground
    direction = normal.copy()
    on = np.flatnonzero(surface < len(shapes.kind))
    surface = surface[on]
    # `take` gathers in a quarter of the time of indexing.
    axes = np.moveaxis(shapes.axes, 0, -1).take(surface, axis=2)  # (3, 3, P)
    center, scale = shapes.center.T.take(surface, axis=1), shapes.scale.T.take(surface, axis=1)
    local = np.einsum("ip,ijp->jp", points.take(on, axis=1) - center, axes)
    place[:, on], unit = local, local / scale
    straight, part[on] = _unit_normal(shapes.kind[surface], unit)
    straight /= scale
    straight /= np.sqrt(np.einsum("ip,ip->p", straight, straight))
    direction[:, on] = straight
    normal[:, on] = np.einsum("ijp,jp->ip", axes, straight)
    return normal, part, place, direction


def _unit_normal(kind, unit):
    """Returns normals (3, P), of any length, on unit shapes at the points `unit` (3, P), and parts (P,)."""
    size, positive = np.abs(unit), unit > 0
    face = size.argmax(0)
    square, linear, constant = QUADRICS.T.take(np.minimum(kind, CONE), axis=1)
    x, y, z = unit
    slope = square * y + linear
    side = x * x + z * z + slope * y + constant
    # At a rim, the point lies on the end or on the side, whichever is closer.
    end = (size[1] - 1 > side) & ((kind == CYLINDER) | ((kind == CONE) & (y < 0)))
    normal = np.stack([x, slope - linear / 2, z])
    flat, box = np.flatnonzero(end), np.flatnonzero(kind == BOX)
    normal[:, flat], normal[1, flat] = 0, np.sign(y[flat])
    face, away = face[box], positive[face[box], box]
    normal[:, box], normal[face, box] = 0, np.where(away, 1, -1)
    part = np.where(end, 1 + positive[1], 0)
    part[box] = 2 * face + away
    return normal, part
