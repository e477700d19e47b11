"""Reader of rendered scenes."""

import atexit

import numpy as np
import tensorflow as tf

from keras_ssl.arguments import check_fraction, check_integers, check_not_negative, is_integer
from keras_ssl.data.columns import random_access
from keras_ssl.data.renderer.processes import Processes
from keras_ssl.data.renderer.render import CLASSES

STILL = {"image": 3, "depth": 1, "normals": 3, "contours": 1, "instances": 1, "classes": 1}
MOVING = {"flow": 2, "visible": 1, "moving": 1}
DTYPES = {"image": tf.uint8, "instances": tf.int32, "classes": tf.int32}  # the others: float32
PROCESSES = Processes()
# A program that ends while a dataset prefetches would wait forever for threads that can no longer return to
# Python.
atexit.register(PROCESSES.close)


def scenes(
    number, size, frames=1, seed=0, objects=(4, 10), moving=0.3, exposure=0.0, noise=0.0,
):  # fmt: skip
    """Renders random scenes with exact depth, normals, contours, segments and motion.

    Spheres, cylinders, cones and boxes with procedural textures stand, lie and fly in front of walls and a
    sky, lit by one to three lights with hard shadows. Nothing is stored: scene k follows from (seed, k). The
    camera has a field of view of 60 degrees; in a clip it moves like a hand-held camera.

    Args:
        number: int, number of scenes.
        size: int, height and width in pixels.
        frames: int, frames of a clip.
        seed: int.
        objects: (least, most) int, number of shapes to place; shapes for which no free place is found are
            left out.
        moving: float in 0..1, fraction of the shapes that move in a clip.
        exposure: float, standard deviation of the exposure in stops, which differs between scenes.
        noise: float, standard deviation of the noise of pixels, in 0..255.

    Returns:
        tf.data.Dataset of dicts with random access, with the attribute `class_names`, names of the values of
        `classes`. All columns except `frames` and `motion` belong to the frame `(frames - 1) // 2`:

        - `image` (size, size, 3) uint8, `id` int64.
        - `depth` (size, size, 1) float32, meters along the optical axis, NaN in the sky.
        - `normals` (size, size, 3) float32, of length 1, in the camera's axes (x right, y down, z
          forward), toward the camera; NaN in the sky.
        - `contours` (size, size, 1) float32, 1 at edges of surfaces, on the nearer side.
        - `instances` (size, size, 1) int32, 1 and more for shapes, 0 for ground, walls and sky.
        - `classes` (size, size, 1) int32: what is seen, an index of `class_names`.
        - `intrinsics` (4,) float32: fx, fy, cx, cy in pixels; the top left pixel's center is (0, 0).

        And with two frames or more:

        - `frames` (frames, size, size, 3) uint8.
        - `flow` (size, size, 2) float32, pixels (x, y) to the next frame; NaN for points that are then behind
          the camera. `visible` (size, size, 1) float32: 1 where the point is also seen in the next frame.
        - `moving` (size, size, 1) float32: 1 on shapes that move in the world.
        - `motion` (frames - 1, 6) float32: pose of each next camera in the coordinates of the previous
          camera, translation in meters and rotation vector in radians.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> images = scenes(number=100, size=32)
        >>> row = next(iter(images))
        >>> row["depth"].shape, images.class_names[int(row["classes"][-1, 0, 0])]
        (TensorShape([32, 32, 1]), 'ground')
    """
    check_integers(1, number=number, size=size, frames=frames)
    check_integers(0, seed=seed)
    least, most = _pair(objects)
    check_fraction("moving", moving)
    check_not_negative("exposure", exposure)
    check_not_negative("noise", noise)
    shapes = {name: (size, size, channels) for name, channels in STILL.items()} | {
        "intrinsics": (4,)
    }
    if frames > 1:
        shapes |= {name: (size, size, channels) for name, channels in MOVING.items()}
        shapes |= {"frames": (frames, size, size, 3), "motion": (frames - 1, 6)}
    types = {name: DTYPES.get(name, tf.float32) for name in shapes} | {"frames": tf.uint8}

    def compute(number, seed):
        found = PROCESSES.scene(
            number=int(number), seed=int(seed), size=size, frames=frames, objects=(least, most),
            moving=moving, exposure=exposure, noise=noise,
        )  # fmt: skip
        return [found[name] for name in shapes]

    def load(row):
        values = tf.numpy_function(
            compute, [row["id"], row["seed"]], [types[name] for name in shapes], stateful=False
        )
        columns = {
            name: tf.ensure_shape(value, shapes[name])
            for name, value in zip(shapes, values, strict=True)
        }
        return {**columns, "id": row["id"]}

    rows = np.arange(number, dtype=np.int64)
    dataset = random_access({"id": rows, "seed": np.full_like(rows, seed)}, load)
    dataset.class_names = list(CLASSES)
    return dataset


def _pair(objects):
    if (
        not isinstance(objects, tuple | list)
        or len(objects) != 2
        or not all(is_integer(value, 0) for value in objects)
        or objects[0] > objects[1]
    ):
        raise ValueError(f"objects must be two numbers such as (4, 10), got {objects!r}")
    return objects
