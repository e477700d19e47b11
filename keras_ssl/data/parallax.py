"""Parallax: how much each pixel moves because the camera moved, and the depth that follows from it.

When the camera moves, near points move faster across the image than far points. The rotation of the camera
moves all points alike, whatever their depth, so it is removed first. The rest is the parallax. It points away
from the focus of expansion, where the camera is heading, and is inversely proportional to depth. So depth
follows up to its scale, without knowing how far the camera moved.

Motions are poses (6,) as in `ops.poses`: X = R X' + translation, where X are the coordinates of a point in
the first camera and X' those in the second one. Everything is NumPy, in float64.
"""

from typing import NamedTuple

import numpy as np


class Parallax(NamedTuple):
    """Depth of each pixel as determined by its flow, arrays (H, W).

    Attributes:
        inverse_depth: length of the translation divided by depth; negative behind the camera.
        reach: pixels of parallax per unit of inverse depth; 0 in the focus of expansion.
        off_line: pixels by which the flow misses the epipolar line, which no depth explains.
    """

    inverse_depth: np.ndarray
    reach: np.ndarray
    off_line: np.ndarray


def parallax(flow, motion, intrinsics):
    """Computes the inverse depth of each pixel from its flow and the motion of the camera.

    A point at depth Z, on the ray with the coordinates r, is at Z a - b in the second camera, with a = R^T r
    and b = R^T translation. Its flow leads to p' there, so p' x (Z a - b) = 0, which is solved for 1 / Z in
    the plane of the image by least squares.

    Args:
        flow: (H, W, 2) float array, pixels (x, y); NaN where unknown.
        motion: (6,) floats, pose of the next camera in the coordinates of this one, with a translation.
        intrinsics: (4,) floats.

    Returns:
        `Parallax`, NaN where the flow is NaN.

    Raises:
        ValueError: an argument has another shape, or `motion` has no translation.

    Example:
        >>> flow = np.full((4, 4, 2), (-0.5, 0.0))
        >>> found = parallax(flow, (0.1, 0, 0, 0, 0, 0), (10, 10, 1.5, 1.5))
        >>> round(float(0.1 / found.inverse_depth[0, 0]), 3)                # depth = 10 px * 0.1 m / 0.5 px
        2.0
    """
    import cv2

    flow, intrinsics = checked(flow, intrinsics)
    motion = np.asarray(motion, np.float64)
    if motion.shape != (6,) or not np.any(motion[:3]):
        raise ValueError(f"motion must be six numbers with a translation, got {motion.tolist()}")
    back = cv2.Rodrigues(motion[3:])[0].T
    start, end = rays(flow, intrinsics)
    a, b = start @ back.T, back @ (motion[:3] / np.linalg.norm(motion[:3]))
    focal, size = intrinsics[:2], a[..., 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        # In pixels: where the point would be if it were infinitely far away, the vector from that place to
        # where it is, and the direction of the epipolar line, along which it moves with 1 / Z.
        moved = focal * (end[..., :2] - a[..., :2] / size[..., None])
        along = focal * (b[2] * end[..., :2] - b[:2])
        squared = (along**2).sum(-1)
        # The parallax is along / (Z a_z), since (Z a - b)_z = Z a_z - b_z.
        inverse = size * (moved * along).sum(-1) / squared
        across = np.abs(moved[..., 0] * along[..., 1] - moved[..., 1] * along[..., 0])
        reach, off_line = np.sqrt(squared) / np.abs(size), across / np.sqrt(squared)
    return Parallax(inverse, reach, np.where(size > 0, off_line, np.inf))


def checked(flow, intrinsics):
    """Returns flow and intrinsics as float64 arrays; raises ValueError for invalid ones."""
    flow, intrinsics = np.asarray(flow, np.float64), np.asarray(intrinsics, np.float64)
    if flow.ndim != 3 or flow.shape[2] != 2:
        raise ValueError(f"flow must have the shape (H, W, 2), got {flow.shape}")
    if intrinsics.shape != (4,) or not (
        np.isfinite(intrinsics).all() and (intrinsics[:2] > 0).all()
    ):
        raise ValueError(
            "intrinsics must be fx, fy, cx, cy in pixels, finite and with positive focal lengths, got "
            f"{intrinsics.tolist()}"
        )
    return flow, intrinsics


def rays(flow, intrinsics):
    """Returns the rays (H, W, 3), with z = 1, of all pixels, and of the pixels to which the flow leads."""
    y, x = np.mgrid[: flow.shape[0], : flow.shape[1]]
    pixels = np.stack([x, y], axis=-1)
    both = np.ones((2, *flow.shape[:2], 3))
    for k, points in enumerate((pixels, pixels + flow)):
        both[k, ..., :2] = (points - intrinsics[2:]) / intrinsics[:2]
    return both
