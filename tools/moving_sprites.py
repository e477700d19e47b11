"""Clips of textured shapes that move in front of a background, with a moving camera and exact masks."""

import cv2
import numpy as np


def clips(number, size=64, frames=5, seed=0, shapes=(1, 2), camera=True, moving=True, texture=40):
    """Makes clips whose moving pixels are known.

    The shapes are ellipses with a wedge cut out, so that mirrored or rotated masks are noticed. They move by
    1 to 3 pixels per frame (for 64 pixels) relative to the background. Their texture is coarser than the
    texture of the background.

    Args:
        number: int, clips.
        size: int, height and width in pixels.
        frames: int, frames per clip.
        seed: int.
        shapes: the smallest and the largest number of shapes.
        camera: bool, whether the background is shifted, rotated and zoomed, and the shapes with it.
        moving: bool, whether the shapes move relative to the background.
        texture: float, gray levels, standard deviation of the texture of shapes; 0 for uniform ones.

    Returns:
        (clips, masks): (number, frames, size, size, 3) uint8, and (number, size, size, 1) float32, 1 on the
        shapes in frame (frames - 1) // 2.
    """
    rng = np.random.default_rng(seed)
    found = [_clip(rng, size, frames, shapes, camera, moving, texture) for _ in range(number)]
    return tuple(np.array(arrays) for arrays in zip(*found, strict=True))


def _texture(rng, side, deviation, grain):
    """Returns noise around a random color, smooth over `grain` pixels, (side, side, 3) float32."""
    noise = rng.normal(size=(side, side, 3)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), grain)
    return np.clip(rng.uniform(60, 195, 3) + deviation * noise / noise.std(), 0, 255)


def _shape(rng, size):
    """Returns a shape in the center of an image, (size, size) bool."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    angle, wide, high = rng.uniform(0, 2 * np.pi), *rng.uniform(size / 9, size / 5, 2)
    along, across = (
        x * np.cos(angle) + y * np.sin(angle),
        y * np.cos(angle) - x * np.sin(angle),
    )
    return ((along / wide) ** 2 + (across / high) ** 2 <= 1) & ~((along > 0) & (across > 0))


def _similarity(center, shift, turn, zoom):
    """Returns the matrix (3, 3) that rotates and zooms about a point, then shifts."""
    turned = zoom * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.vstack([np.c_[turned, center + shift - turned @ center], [0, 0, 1]])


def _clip(rng, size, frames, shapes, camera, moving, texture):
    center, middle = np.full(2, (size - 1) / 2), (frames - 1) // 2
    motion = (0, 0, 0)
    if camera:
        motion = (
            rng.uniform(-size / 32, size / 32, 2),
            rng.uniform(-0.03, 0.03),
            rng.uniform(-0.02, 0.02),
        )
    ground = _texture(rng, 2 * size, 30, 1.5)
    layers = []
    for _ in range(rng.integers(shapes[0], shapes[1] + 1)):
        skin, inside = _texture(rng, size, texture, 3), _shape(rng, size)
        direction, speed = rng.uniform(0, 2 * np.pi), rng.uniform(1, 3) * size / 64 * moving
        velocity = speed * np.array([np.cos(direction), np.sin(direction)])
        layers.append(
            (skin, inside.astype(np.float32), rng.uniform(-size / 4, size / 4, 2), velocity)
        )
    clip = []
    for t in range(frames):
        k = t - middle
        view = _similarity(center, k * np.asarray(motion[0]), k * motion[1], np.exp(k * motion[2]))
        frame = _warp(ground, view @ _similarity(center, -np.full(2, size / 2), 0, 1), size)
        mask = np.zeros((size, size), np.float32)
        for skin, inside, place, velocity in layers:
            at = view @ _similarity(center, place + k * velocity, 0, 1)
            cover = _warp(inside, at, size)
            frame += cover[..., None] * (_warp(skin, at, size, cv2.BORDER_REFLECT) - frame)
            mask = np.maximum(mask, cover)
        clip.append(frame)
        if k == 0:
            truth = (mask[..., None] > 0.5).astype(np.float32)
    return np.rint(np.clip(clip, 0, 255)).astype(np.uint8), truth * moving


def _warp(image, matrix, size, border=cv2.BORDER_CONSTANT):
    return cv2.warpPerspective(
        image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=border
    )
