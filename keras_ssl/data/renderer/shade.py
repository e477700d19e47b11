"""Colors at the hits of rays: procedural textures, distant lights, hard shadows, highlights, haze, sky."""

import numpy as np

from keras_ssl.data.renderer import trace
from keras_ssl.data.renderer.world import CHECKS, GRADIENT, NOISE, STRIPES

HAZE = 1 / 60  # per meter
SHININESS = 5  # doublings of the exponent of highlights: 2^5


def shade(world, shapes, origin, directions, hits, pixel):
    """Computes the colors that rays see.

    Args:
        world: `World`.
        shapes: its `trace.Shapes` at this instant.
        origin: (3,) float32.
        directions: (3, P) float32.
        hits: `trace.Hits` of the rays.
        pixel: float, size of a pixel at distance 1.

    Returns:
        (color (3, P) float32, linear; normal (3, P), NaN for the sky; code (P,) int, which differs between
        parts of surfaces and between shadows).
    """
    length = np.sqrt((directions * directions).sum(0))
    color = sky_color(world, directions / length)
    normal = np.full_like(directions, np.nan)
    code = np.full(directions.shape[1], -1)
    seen = np.flatnonzero(hits.surface >= 0)
    if not len(seen):
        return color, normal, code
    surface, distance = hits.surface[seen], hits.distance[seen]
    ray = directions.take(seen, axis=1)
    points = origin[:, None] + ray * distance
    normals, part, place, direction = trace.describe(shapes, points, surface)
    toward = -ray / length[seen]
    facing = np.maximum((normals * toward).sum(0), 0.05)
    footprint = distance * pixel / facing
    albedo = texture(world.textures, place, direction, surface, footprint)
    light, highlight, shadows = _lit(world, shapes, points, normals, surface, toward)
    lit = albedo * light + world.textures.gloss[surface] * highlight
    clear = np.exp(-HAZE * distance)
    color[:, seen] = lit * clear + world.sky[0][:, None] * (1 - clear)
    normal[:, seen], code[seen] = normals, (surface * 8 + part) * 8 + shadows
    return color, normal, code


def _lit(world, shapes, points, normals, surface, toward):
    """Returns the light (3, P) on points, the highlights, and the shadows (P,), one bit per light."""
    up = (1 - normals[1]) / 2
    light = world.ambient[0][:, None] * up + world.ambient[1][:, None] * (1 - up)
    highlight, shadows = np.zeros_like(light), np.zeros(len(surface), int)
    glossy = world.textures.gloss[surface] > 0
    for bit, (direction, strength) in enumerate(zip(world.lights, world.light_colors, strict=True)):
        cosine = direction @ normals
        lit = np.flatnonzero(cosine > 0)
        dark = trace.in_shadow(shapes, points.take(lit, axis=1), surface[lit], direction)
        shadows[lit[dark]] |= 1 << bit
        lit = lit[~dark]
        received = np.zeros_like(cosine)
        received[lit] = cosine[lit]
        light += strength[:, None] * received
        lit = lit[glossy[lit]]
        half = toward.take(lit, axis=1) + direction[:, None]
        shine = np.einsum("ip,ip->p", half, normals.take(lit, axis=1))
        shine /= np.sqrt(np.einsum("ip,ip->p", half, half))
        for _ in range(SHININESS):
            shine = shine * shine
        highlight[:, lit] += strength[:, None] * shine
    return light, highlight, shadows


def texture(textures, place, direction, surface, footprint):
    """Computes reflectances (3, P) at points of surfaces.

    Patterns lose their contrast where a pixel covers a period, since sampling them would alias.

    Args:
        textures: `Textures`.
        place: (3, P) float32, coordinates in meters along the axes of the shape.
        direction: (3, P) float32, the normal along these axes: along it the pattern does not change.
        surface: (P,) int.
        footprint: (P,) float32, size of a pixel on the surface, in meters.
    """
    kind, frequency = textures.kind[surface], textures.frequency[surface]
    mix = np.full(len(surface), -1, np.float32)  # PLAIN
    for pattern, (rows, function) in PATTERNS.items():
        at = np.flatnonzero(kind == pattern)
        if len(at):
            axes = np.moveaxis(textures.axes[:, rows], 0, -1).take(surface[at], axis=2)
            where = np.einsum("ijp,jp->ip", axes, place.take(at, axis=1)) * frequency[at]
            along = np.einsum("ijp,jp->ip", axes, direction.take(at, axis=1))
            blur = footprint[at] * frequency[at] * np.sqrt(np.maximum(1 - along * along, 0))
            mix[at] = function(where, blur, textures)
    first, second = textures.colors.transpose(1, 2, 0).take(surface, axis=2)
    return first + (second - first) * (0.5 + 0.5 * mix)


def _square(phase, blur):
    """Computes a square wave of period 1 between -1 and 1, averaged over about `blur` periods."""
    wave = np.sin(2 * np.pi * phase) / np.maximum(np.pi * blur, 0.02)
    return np.minimum(np.maximum(wave, -1), 1) * _fade(blur)


def _fade(blur):
    square = 4 * blur * blur
    return 1 / (1 + square * square)


def _checks(where, blur, _):
    x, y, z = _square(where + 0.013, blur)  # shifted, so that no edge lies in a face of a box
    return x * y * z


def _noise(where, blur, textures):
    waves = textures.waves
    size = np.sqrt((waves * waves).sum(0))
    strength = 0.6 / np.sqrt(size)
    value = np.sin(waves.T @ where * np.float32(2 * np.pi / 2) + textures.phases[:, None])
    faded = strength[:, None] * _fade(blur.max(0) * size[:, None] / 2)
    return np.clip((value * faded).sum(0), -1, 1)


# For each pattern, the axes along which it changes, and its function; PLAIN has none.
PATTERNS = {
    CHECKS: (slice(0, 3), _checks),
    STRIPES: (slice(0, 1), lambda where, blur, _: _square(where[0], blur[0])),
    NOISE: (slice(0, 3), _noise),
    GRADIENT: (slice(1, 2), lambda where, *_: np.sin(where[0])),
}


def sky_color(world, directions):
    """Returns the colors (3, P) of the sky in `directions`, of length 1: from horizon to zenith."""
    height = np.clip(-2 * directions[1], 0, 1)
    horizon, zenith = world.sky[..., None]
    return horizon + (zenith - horizon) * height
