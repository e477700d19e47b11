"""Clips of textured shapes that move at constant speed over a textured background, with exact masks."""

import numpy as np


def clips(number, size=32, frames=5, seed=0, shapes=2, speed=3, drift=0, objects=None):
    """Makes clips with known motion.

    Args:
        number: int, clips.
        size: int, height and width in pixels.
        frames: int, frames per clip.
        seed: int.
        shapes: int, discs and squares per clip; the last one is in front.
        speed: int, the largest speed along each axis in pixels per frame; 0 for clips without motion.
        drift: int, the largest speed of the background, which stands for the camera's motion.
        objects: (number,) sequence of int, which object moves in each clip: the shapes of all clips with the
            same number have the same form and texture. By default each shape is another object.

    Returns:
        (clips, masks): (number, frames, size, size, 3) uint8, and (number, frames, size, size) bool, the
        pixels of the shapes.
    """
    rng = np.random.default_rng(seed)
    found = []
    for which in [None] * number if objects is None else objects:
        looks = rng if which is None else np.random.default_rng(which)
        found.append(_clip(rng, looks, size, frames, shapes, speed, drift))
    return tuple(np.array(arrays) for arrays in zip(*found, strict=True))


def _texture(rng, side, cell):
    """Returns blocks of random colors near a random color, (side, side, 3) float."""
    color, number = rng.uniform(30, 225, 3), -(-side // cell)
    blocks = np.clip(color + rng.normal(0, 25, (number, number, 3)), 0, 255)
    return blocks.repeat(cell, axis=0).repeat(cell, axis=1)[:side, :side]


def _velocity(rng, speed):
    """Draws a velocity along both axes that is not 0, unless `speed` is."""
    while True:
        velocity = rng.integers(-speed, speed + 1, 2)
        if velocity.any() or speed == 0:
            return velocity


def _clip(rng, looks, size, frames, shapes, speed, drift):
    room = drift * frames
    ground = _texture(rng, size + 2 * room, 4)
    moved = rng.integers(-drift, drift + 1, 2)
    clip = np.zeros((frames, size, size, 3))
    mask = np.zeros((frames, size, size), bool)
    for t in range(frames):
        y, x = room + t * moved
        clip[t] = ground[y : y + size, x : x + size]
    middle, (rows, columns) = (frames - 1) / 2, np.mgrid[:size, :size]
    for _ in range(shapes):
        radius, round_ = looks.uniform(size / 8, size / 5), looks.random() < 0.5
        velocity, center = _velocity(rng, speed), rng.integers(size // 4, size - size // 4, 2)
        skin = _texture(looks, size, 3)
        for t in range(frames):
            offset = np.floor(center + velocity * (t - middle)).astype(int)
            dy, dx = rows - offset[0], columns - offset[1]
            inside = (
                dy**2 + dx**2 <= radius**2 if round_ else np.maximum(abs(dy), abs(dx)) <= radius
            )
            clip[t][inside] = skin[dy[inside] % size, dx[inside] % size]
            mask[t] |= inside
    return np.rint(clip).astype(np.uint8), mask
