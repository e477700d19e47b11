"""Digits before and after a known motion of the camera, for tests and a first try."""

import math

import numpy as np
import tensorflow as tf

from keras_ssl.arguments import check_integers
from keras_ssl.data.arrays import digits, from_array, to_arrays

MAX_SHIFT = 3  # pixels, along each axis
MAX_TURN = math.pi / 6  # radians
FIRST_SHIFT, FIRST_TURN = 2.0, math.pi / 12  # largest motion from the original to the first image
ROOM = 1.25  # factor by which digits are reduced, so that they remain in the image


def moving_digits(split="train", pairs=10, seed=0):
    """Creates pairs of images of a digit, between which the camera has moved.

    This is a small version of the paper's first experiment. The camera moves in the plane of the image by a
    whole number of pixels from -3 to 3 along x and along y, and rotates about its optical axis by -30 to 30
    degrees. The first image has a random pose, too. Otherwise interpolation would blur only the second image,
    and more so for larger angles.

    Args:
        split: "train" (1,437 digits) or "test" (the other 360), as for `digits`.
        pairs: int, pairs per digit, each with another motion.
        seed: int.

    Returns:
        tf.data.Dataset with random access, of dicts with `image` (32, 32, 3) uint8, `id`, `label`, `frames`
        (2, 32, 32, 3) uint8, of which `image` is the first, and `motion` (1, 6) float32: translation in
        pixels (x right, y down) and rotation vector in radians, as in `from_rgbd`.

    Raises:
        ValueError: unknown `split`, `pairs` is below 1 or `seed` is not an integer of at least 0.

    Reference: Agrawal, Carreira & Malik, "Learning to See by Moving", ICCV 2015, section 5.

    Example:
        >>> clips = moving_digits("test", pairs=2)
        >>> int(clips.cardinality()), clips.element_spec["frames"].shape
        (720, TensorShape([2, 32, 32, 3]))
    """
    check_integers(1, pairs=pairs)
    check_integers(0, seed=seed)
    arrays = to_arrays(digits(split))
    still = np.repeat(arrays["image"][..., :1], pairs, axis=0).astype(np.float32)
    number, rng = len(still), np.random.default_rng(seed)
    first_shift = rng.uniform(-FIRST_SHIFT, FIRST_SHIFT, (number, 2))
    first_turn = rng.uniform(-FIRST_TURN, FIRST_TURN, number)
    shift = rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, (number, 2)).astype(np.float64)
    turn = rng.uniform(-MAX_TURN, MAX_TURN, number)
    # The pose of the second camera: the pose of the first camera, followed by the motion as seen from it.
    second_shift = first_shift + np.einsum("nij,nj->ni", _turns(first_turn), shift)
    frames = np.stack(
        [_seen(still, first_shift, first_turn), _seen(still, second_shift, first_turn + turn)],
        axis=1,
    )
    motion = np.zeros((number, 1, 6))
    motion[:, 0, :2], motion[:, 0, 5] = shift, turn
    labels = np.repeat(arrays["label"], pairs)
    return from_array(frames[:, 0], labels, frames=frames, motion=motion)


def _turns(angle):
    """Returns (N, 2, 2) rotation matrices of angles from x (right) to y (down)."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], axis=-2)


def _seen(still, shift, turn):
    """Renders the view of a camera with this pose, (N, H, W, 3) uint8, bilinearly; black outside."""
    center = (still.shape[1] - 1) / 2
    matrix = ROOM * _turns(turn)
    # A pixel p of the new image, from its center, is at matrix p + ROOM shift in the old one.
    offset = center + ROOM * shift - matrix.sum(axis=-1) * center
    zero = np.zeros(len(still))
    rows = [
        matrix[:, 0, 0],
        matrix[:, 0, 1],
        offset[:, 0],
        matrix[:, 1, 0],
        matrix[:, 1, 1],
        offset[:, 1],
    ]
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=still,
        transforms=np.stack([*rows, zero, zero], axis=1).astype(np.float32),
        output_shape=still.shape[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return np.round(moved.numpy()).astype(np.uint8).repeat(3, axis=-1)
