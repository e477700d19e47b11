"""Renders one scene, or scenes on request in a process, without TensorFlow (see `processes`)."""

import contextlib
import signal
from multiprocessing import connection

import numpy as np

from keras_ssl.data.renderer import render
from keras_ssl.data.renderer.world import draw


def scene(number, seed, size, frames, objects, moving, exposure, noise):
    """Renders a scene.

    Args:
        number: int, of the scene.
        seed, size, frames, objects, moving, exposure, noise: as in `scenes`.

    Returns:
        dict of arrays: all columns of `scenes`, except the id.
    """
    rng = np.random.default_rng([seed, number])
    world = draw(rng, frames, objects, moving)
    gain = 2.0 ** (exposure * rng.standard_normal())
    middle = (frames - 1) // 2
    rendered = [render.frame(world, t, size) for t in range(frames)]
    clip = np.stack([_develop(rng, color, gain, noise) for color, *_ in rendered])
    _, hits, normal, code = rendered[middle]
    focal, center = render.focal_length(size), (size - 1) / 2
    found = {
        "image": clip[middle],
        **render.geometry(world, middle, hits, normal, code),
        "intrinsics": np.float32([focal, focal, center, center]),
    }
    if frames > 1:
        found |= {"frames": clip, "motion": render.motion(world)}
        found |= render.flow(world, middle, hits)
    return found


def _develop(rng, color, gain, noise):
    """Converts linear light (3, H, W) to pixels (H, W, 3) uint8 with gamma 2."""
    pixels = 255 * np.sqrt(np.clip(color * gain, 0, 1))
    if noise:
        pixels += noise * rng.standard_normal(pixels.shape, np.float32)
    return np.ascontiguousarray(
        np.clip(np.rint(pixels), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    )


def serve(descriptor):
    """Renders the scenes that are requested through a pipe, until it is closed.

    Args:
        descriptor: int, of a multiprocessing.connection.Connection that receives dicts of arguments of
            `scene` and sends the results.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process at the other end
    with contextlib.suppress(EOFError, ConnectionError), connection.Connection(descriptor) as pipe:
        while True:
            pipe.send(scene(**pipe.recv()))
