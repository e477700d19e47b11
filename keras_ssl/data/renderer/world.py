"""Draws a random scene: shapes on the ground, walls, textures, lights, and the path of the camera.

The world's axes are the axes of a camera that looks ahead: x right, y down, z forward, in meters. The ground
is at y = 0. Times are frames, counted from the middle frame of the clip.
"""

from typing import NamedTuple

import numpy as np

from keras_ssl.data.renderer import trace
from keras_ssl.data.renderer.trace import BOX, CONE, CYLINDER, SPHERE

PLAIN, CHECKS, STRIPES, NOISE, GRADIENT = range(5)
WAVES = 10  # of the noise
CLEARANCE = 0.5  # meters between the camera and a shape
TRIES = 12  # places that are tried for a shape before it is left out


class Textures(NamedTuple):
    """Textures of K shapes and, as the last one, of the ground.

    Attributes:
        kind: (K + 1,) int, PLAIN to GRADIENT.
        colors: (K + 1, 2, 3) float32, two reflectances in 0..1, which the pattern mixes.
        axes: (K + 1, 3, 3) float32, from the axes of the shape to the axes of the pattern.
        frequency: (K + 1,) float32, periods per meter.
        gloss: (K + 1,) float32, strength of highlights.
        waves: (3, WAVES) float32, directions of the waves of the noise.
        phases: (WAVES,) float32.
    """

    kind: np.ndarray
    colors: np.ndarray
    axes: np.ndarray
    frequency: np.ndarray
    gloss: np.ndarray
    waves: np.ndarray
    phases: np.ndarray


class World(NamedTuple):
    """A scene.

    Attributes:
        shapes: `trace.Shapes` at time 0.
        wall: (K,) bool, which shapes are walls.
        velocity: (K, 3) float32, meters per frame.
        spin: (K,) float32, radians per frame, about the vertical.
        textures: `Textures`.
        lights: (L, 3) float32, directions to distant lights, of length 1.
        light_colors: (L, 3) float32.
        ambient: (2, 3) float32, light from above and from below.
        sky: (2, 3) float32, colors of the horizon and of the zenith.
        times: (T,) float32.
        positions: (T, 3) float32, of the camera.
        orientations: (T, 3, 3) float32, from the camera to the world.
    """

    shapes: trace.Shapes
    wall: np.ndarray
    velocity: np.ndarray
    spin: np.ndarray
    textures: Textures
    lights: np.ndarray
    light_colors: np.ndarray
    ambient: np.ndarray
    sky: np.ndarray
    times: np.ndarray
    positions: np.ndarray
    orientations: np.ndarray

    def shapes_at(self, time):
        """Returns the `trace.Shapes` at a time in frames."""
        shapes = self.shapes
        turned = rotation(self.spin * time, axis=1) @ shapes.axes
        return shapes._replace(center=shapes.center + self.velocity * time, axes=turned)


def draw(rng, frames, objects, moving):
    """Draws a scene.

    Args:
        rng: numpy.random.Generator.
        frames: int, number of frames.
        objects: (least, most) number of shapes.
        moving: float, fraction of the shapes that move.

    Returns:
        `World`.
    """
    times = np.arange(frames, dtype=np.float32) - (frames - 1) // 2
    positions, orientations = _path(rng, times)
    kind = np.sort(rng.integers(BOX + 1, size=rng.integers(objects[0], objects[1] + 1)))
    scale = _sizes(rng, kind)
    axes = _poses(rng, kind)
    moves = rng.random(len(kind)) < (moving if frames > 1 else 0)
    velocity = rng.uniform(-0.1, 0.1, (len(kind), 3)) * [1, 0.2, 1] * moves[:, None]
    flies = moves & (rng.random(len(kind)) < 0.5)
    velocity[~flies, 1] = 0
    spin = rng.uniform(-0.15, 0.15, len(kind)) * moves
    center, placed = _places(rng, kind, axes, scale, velocity, flies, times, positions)
    parts = [a[placed] for a in (kind, center, axes, scale, velocity, spin)]
    walls = _walls(rng, parts, times)
    kind, center, axes, scale, velocity, spin = (
        np.concatenate(pair) for pair in zip(parts, walls, strict=True)
    )
    shapes = trace.Shapes(kind, *(a.astype(np.float32) for a in (center, axes, scale)))
    wall = np.arange(len(kind)) >= len(parts[0])
    return World(
        shapes, wall, velocity.astype(np.float32), spin.astype(np.float32), _textures(rng, wall),
        *_light(rng), times, positions, orientations,
    )  # fmt: skip


def rotation(angle, axis):
    """Returns (..., 3, 3) float32 rotations by `angle` (...) radians about a coordinate axis."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.zeros((*np.shape(angle), 3, 3), np.float32)
    matrix[..., axis, axis] = 1
    matrix[..., i, i] = matrix[..., j, j] = np.cos(angle)
    matrix[..., j, i] = np.sin(angle)
    matrix[..., i, j] = -matrix[..., j, i]
    return matrix


def _path(rng, times):
    """Draws a walk with a hand-held camera: positions (T, 3) and orientations (T, 3, 3)."""
    start = rng.uniform([-1, -2.2, -0.5], [1, -0.8, 0.5])
    speed = rng.uniform([-0.06, -0.02, -0.04], [0.06, 0.02, 0.12])
    angles = np.radians(rng.uniform([4, -15, -4], [20, 15, 4]))  # pitch, yaw, roll
    rates = np.radians(rng.uniform(-1, 1, 3) * [1, 2.5, 1])
    shake = np.radians(0.5) * np.sin(0.8 * times[:, None] + rng.uniform(0, 2 * np.pi, 3))
    pitch, yaw, roll = (angles + rates * times[:, None] + shake).T
    orientations = rotation(yaw, 1) @ rotation(-pitch, 0) @ rotation(roll, 2)
    heading = rotation(angles[1], 1).astype(np.float64)
    positions = start + times[:, None] * (heading @ speed)
    positions[:, 1] = np.minimum(positions[:, 1], -0.5)  # not through the ground in a long clip
    return positions.astype(np.float32), orientations


def _sizes(rng, kind):
    """Draws half sizes (K, 3) in meters."""
    scale = rng.uniform(0.2, 0.8, (len(kind), 3))
    scale[kind == SPHERE] = scale[kind == SPHERE, :1]
    thick = (kind == CYLINDER) | (kind == CONE)
    scale[thick, 2] = scale[thick, 0]
    return scale


def _poses(rng, kind):
    """Draws rotations (K, 3, 3): most shapes stand upright, some lie."""
    upright = rotation(rng.uniform(0, 2 * np.pi, len(kind)), 1) @ rotation(np.pi, 0)
    turned = rotation(rng.uniform(0, 2 * np.pi, len(kind)), 2)
    turned = rotation(rng.uniform(0, 2 * np.pi, len(kind)), 0) @ turned
    lies = rng.random(len(kind)) < 0.25
    return np.where(lies[:, None, None], upright @ turned, upright)


def _half_heights(kind, axes, scale):
    """Computes how far the shapes reach down from their centers (K,)."""
    x, y, z = (axes[:, 1] * scale).T
    disc = np.hypot(x, z)
    return np.select(
        [kind == SPHERE, kind == CYLINDER, kind == CONE],
        [scale[:, 0], disc + abs(y), np.maximum(y, disc - y)],
        abs(x) + abs(y) + abs(z),
    )


def _places(rng, kind, axes, scale, velocity, flies, times, camera):
    """Draws centers (K, 3) at time 0 so that shapes do not touch, and which shapes found a place."""
    radius = np.sqrt((scale**2).sum(1))
    half = _half_heights(kind, axes, scale)
    height = half + flies * rng.uniform(0.3, 1.2, len(kind))
    center, placed = np.zeros((len(kind), 3)), np.zeros(len(kind), bool)
    depths, across = (
        rng.uniform(1.8, 8, (len(kind), TRIES)),
        rng.uniform(-0.6, 0.6, (len(kind), TRIES)),
    )
    moved = velocity[:, None] * times[:, None]  # (K, T, 3)
    for k in rng.permutation(len(kind)):  # otherwise the last kinds would find no place
        tries = np.stack([across[k] * depths[k], np.full(TRIES, -height[k]), depths[k]], axis=1)
        path = tries[:, None] + moved[k]  # (TRIES, T, 3)
        free = (np.linalg.norm(path - camera, axis=-1) > radius[k] + CLEARANCE).all(1)
        others = center[placed][:, None] + moved[placed]  # (n, T, 3)
        apart = np.linalg.norm(path[:, None] - others, axis=-1)
        free &= (apart > (radius[k] + radius[placed])[:, None]).all((1, 2))
        free &= (path[..., 1] + half[k] < 1e-6).all(1)  # above the ground
        if free.any():
            center[k], placed[k] = tries[free.argmax()], True
    return center, placed


def _walls(rng, parts, times):
    """Draws up to two walls, behind and beside all shapes, as arrays like `parts`."""
    kind, center, _, scale, velocity, _ = parts
    reach = (
        (center[:, None] + velocity[:, None] * times[:, None]) if len(kind) else np.zeros((1, 1, 3))
    )
    reach = reach + (np.sqrt((scale**2).sum(1))[:, None, None] if len(kind) else 0)
    side = rng.choice([-1, 1])
    reaches = [max(reach[..., 2].max(), 4), max(np.abs(reach[..., 0]).max(), 2)]
    behind, beside = reaches + rng.uniform([1.5, 0.5], [4.5, 3.5])
    height, width = rng.uniform(0.6, 2.5, 2), rng.uniform(1.5, 9, 2)
    center = np.array(
        [
            [rng.uniform(-3, 3), -height[0], behind],
            [side * beside, -height[1], behind - 0.3 - width[1]],
        ]
    )
    scale = np.array([[width[0], height[0], 0.1], [0.1, height[1], width[1]]])
    axes = np.stack([np.eye(3)] * 2)
    there = rng.random(2) < [0.6, 0.3]
    still = np.zeros((2, 3))
    walls = (np.full(2, BOX), center, axes, scale, still, still[:, 0])
    return [a[there] for a in walls]


def _textures(rng, wall):
    number = len(wall) + 1
    colors = _colors(rng, (number, 2))
    turned = rotation(rng.uniform(0, np.pi, (3, number))[0], 0) @ rotation(
        rng.uniform(0, np.pi, number), 1
    )
    kind = rng.integers(GRADIENT + 1, size=number)
    aligned = (kind == CHECKS) | (kind == GRADIENT)
    axes = np.where(aligned[:, None, None], np.eye(3, dtype=np.float32), turned)
    frequency = rng.uniform(1, 4, number)
    frequency[[*wall, True]] = rng.uniform(0.4, 1.5)  # low for walls and ground, which are large
    gloss = rng.uniform(0, 0.6, number) * (rng.random(number) < 0.4)
    gloss[[*wall, True]] = 0
    waves = rng.normal(size=(3, WAVES))
    waves *= 2.0 ** (np.arange(WAVES) % 4 - 1) / np.linalg.norm(waves, axis=0)
    phases = rng.uniform(0, 2 * np.pi, WAVES)
    rest = (a.astype(np.float32) for a in (colors, axes, frequency, gloss, waves, phases))
    return Textures(kind, *rest)


def _colors(rng, shape):
    """Draws reflectances (..., 3) of random hue, saturation and lightness."""
    hue, saturation, lightness = rng.random((3, *shape, 1))
    wheel = np.clip(np.abs((6 * hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    lightness = 0.08 + 0.85 * lightness
    return lightness * (1 - 0.85 * saturation + 0.85 * saturation * wheel)


def _light(rng):
    """Draws one to three distant lights, and the light of the sky and of the ground."""
    number = rng.integers(1, 4)
    height, around = rng.uniform(0.3, 1.3, number), rng.uniform(0, 2 * np.pi, number)
    lights = np.stack(
        [np.cos(height) * np.cos(around), -np.sin(height), np.cos(height) * np.sin(around)], axis=1
    )
    strength = rng.dirichlet(np.full(number, 2.0))[:, None] * rng.uniform(0.7, 1.1)
    tint = 1 + rng.uniform(-0.12, 0.12, (number, 3))
    sky = np.stack([0.6 + 0.35 * rng.random(3), rng.uniform([0.1, 0.25, 0.4], [0.5, 0.6, 0.9])])
    ambient = np.array([[0.3], [0.12]]) * rng.uniform(0.7, 1.3) * np.stack([sky[0], np.ones(3)])
    return tuple(a.astype(np.float32) for a in (lights, strength * tint, ambient, sky))
