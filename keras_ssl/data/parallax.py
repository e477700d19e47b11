"""Relative depth from optical flow: camera motion, parallax, and the percentile of depth.

When the camera moves, what is near moves faster across the image than what is far. The rotation of the camera
moves everything alike, whatever its depth, so it is removed first. The rest, the parallax, points away from
the focus of expansion, where the camera is heading, and is inverse to depth: so depth follows up to its
scale, without knowing how far the camera moved.

Motions are poses (6,) as in `ops.poses`: X = R X' + translation, where X are the coordinates of a point in
the first camera and X' those in the second one. Everything is NumPy, in float64.
"""

from typing import NamedTuple

import numpy as np

OUTLIER = 3.0  # distances from the epipolar line, in standard deviations of the flow, up to this are noise
MIN_KNOWN = 0.2  # smallest fraction of an image's pixels with a depth
MAX_VECTORS = 1_000  # flow vectors from which the motion of the camera is estimated
MIN_VECTORS = 20
CONFIDENCE, MAX_ITERATIONS = 0.999, 300  # of RANSAC
IN_FRONT = (
    0.9  # smallest fraction of the points that an estimated motion must see in front of the camera
)
CONSISTENT = 1.0  # pixels by which the flow to the next frame and back may miss its start


class Parallax(NamedTuple):
    """What the flow of each pixel tells of its depth, arrays (H, W).

    Attributes:
        inverse_depth: length of the translation divided by depth; negative behind the camera.
        reach: pixels by which the parallax grows with the inverse depth; 0 in the focus of expansion.
        off_line: pixels by which the flow misses the epipolar line, which no depth explains.
    """

    inverse_depth: np.ndarray
    reach: np.ndarray
    off_line: np.ndarray


def relative_depth(flow, intrinsics, motion=None, noise=0.01):
    """Computes the percentile of the depth of each pixel from the flow to the next frame.

    Unknown (NaN) are pixels

    - that do not move as the camera's motion says: moving objects and wrong flow. One that moves along the
      epipolar line, such as a car ahead, looks only nearer or farther, unless it is then behind the camera.
    - around the focus of expansion, where not even a point at the mean inverse depth would have a parallax
      of three times `noise`.

    Anywhere else no parallax means far away: such pixels, the sky among them, are the farthest. If
    less than a fifth of the pixels remains, as after a rotation without translation or without any motion,
    all are NaN.

    Args:
        flow: (H, W, 2) float array, pixels (x, y) to the next frame; NaN where unknown.
        intrinsics: (4,) floats fx, fy, cx, cy in pixels; the top left pixel's center is (0, 0).
        motion: (6,) floats, pose of the next camera in the frame of this one, translation in any unit, then
            rotation vector in radians; None, or NaN, if it is to be estimated.
        noise: float, standard deviation of the flow in pixels.

    Returns:
        (H, W, 1) float32 array, 0 for the nearest pixel of the image and 1 for the farthest one.

    Raises:
        ValueError: an argument has another shape, `intrinsics` are not finite with positive focal lengths, or
            `noise` is not positive.

    Reference: Jiang et al., "Self-Supervised Relative Depth Learning for Urban Scene Understanding", ECCV
    2018, section 3.

    Example:
        >>> flow = np.zeros((8, 8, 2)); flow[..., 0] = -1; flow[4:, :, 0] = -2    # the camera moves right
        >>> depth = relative_depth(flow, (8, 8, 3.5, 3.5), motion=(1, 0, 0, 0, 0, 0))[..., 0]
        >>> round(float(depth[0, 0]), 2), round(float(depth[7, 0]), 2)
        (0.75, 0.25)
    """
    flow, intrinsics = _checked(flow, intrinsics)
    if not 0 < noise < np.inf:
        raise ValueError(f"noise must be a positive number of pixels, got {noise!r}")
    unknown = np.full((*flow.shape[:2], 1), np.nan, np.float32)
    if motion is None or not np.isfinite(motion).all():
        motion = camera_motion(flow, intrinsics, noise)
    if not np.isfinite(motion).all() or not np.any(motion[:3]):
        return unknown
    seen = parallax(flow, motion, intrinsics)
    with np.errstate(invalid="ignore"):
        inverse, measured = seen.inverse_depth, seen.reach * seen.inverse_depth
        known = (seen.off_line <= OUTLIER * noise) & (measured >= -OUTLIER * noise)
        typical = _mean_inverse_depth(seen, known)
        known &= seen.reach * typical > OUTLIER * noise
        inverse = np.where(measured < noise, 0, inverse)
    if known.mean() < MIN_KNOWN:
        return unknown
    return percentile(np.where(known, -inverse, np.nan)).astype(np.float32)[..., None]


def parallax(flow, motion, intrinsics):
    """Computes the inverse depth of each pixel from its flow and the motion of the camera.

    A point at depth Z, on the ray with the coordinates r, is at Z a - b in the second camera, with a = R^T r
    and b = R^T translation. Its flow leads to p' there, so p' x (Z a - b) = 0, which is solved for 1 / Z in
    the plane of the image by least squares.

    Args:
        flow: (H, W, 2) float array, pixels (x, y); NaN where unknown.
        motion: (6,) floats, as for `relative_depth`, with a translation.
        intrinsics: (4,) floats.

    Returns:
        `Parallax`, NaN where the flow is.

    Raises:
        ValueError: an argument has another shape, or `motion` has no translation.

    Example:
        >>> flow = np.full((4, 4, 2), (-0.5, 0.0))
        >>> found = parallax(flow, (0.1, 0, 0, 0, 0, 0), (10, 10, 1.5, 1.5))
        >>> round(float(0.1 / found.inverse_depth[0, 0]), 3)                # depth = 10 px * 0.1 m / 0.5 px
        2.0
    """
    import cv2

    flow, intrinsics = _checked(flow, intrinsics)
    motion = np.asarray(motion, np.float64)
    if motion.shape != (6,) or not np.any(motion[:3]):
        raise ValueError(f"motion must be six numbers with a translation, got {motion.tolist()}")
    back = cv2.Rodrigues(motion[3:])[0].T
    start, end = _rays(flow, intrinsics)
    a, b = start @ back.T, back @ (motion[:3] / np.linalg.norm(motion[:3]))
    focal, size = intrinsics[:2], a[..., 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        # In pixels: where the point would be if it were infinitely far away, from there to where it is,
        # and the direction of the epipolar line, along which it moves with 1 / Z.
        moved = focal * (end[..., :2] - a[..., :2] / size[..., None])
        along = focal * (b[2] * end[..., :2] - b[:2])
        squared = (along**2).sum(-1)
        # The parallax is along / (Z a_z), since (Z a - b)_z = Z a_z - b_z.
        inverse = size * (moved * along).sum(-1) / squared
        across = np.abs(moved[..., 0] * along[..., 1] - moved[..., 1] * along[..., 0])
        reach, off_line = np.sqrt(squared) / np.abs(size), across / np.sqrt(squared)
    return Parallax(inverse, reach, np.where(size > 0, off_line, np.inf))


def camera_motion(flow, intrinsics, noise):
    """Estimates the motion of the camera from optical flow, up to the length of its translation.

    RANSAC on an even grid of flow vectors finds the essential matrix that most of them agree with; moving
    objects are outliers. A robust least-squares fit of the epipolar distances refines it.

    Args:
        flow: (H, W, 2) float array, pixels (x, y) to the next frame; NaN where unknown.
        intrinsics: (4,) floats.
        noise: float, standard deviation of the flow in pixels.

    Returns:
        (6,) float64 array, as for `relative_depth`, with a translation of length 1. NaN if too few vectors
        are known, a rotation alone explains half of them, or the motion that explains most of them puts more
        than a tenth behind the camera.

    Raises:
        ValueError: an argument has another shape.

    Reference: Nister, "An Efficient Solution to the Five-Point Relative Pose Problem", PAMI 2004.

    Example:
        >>> y, x = np.mgrid[:32, :32] - 15.5
        >>> depth = 2 + (x > 0) + y**2 / 99
        >>> flow = np.stack([-0.1 * 28 / depth, np.zeros((32, 32))], axis=-1)             # to the right
        >>> camera_motion(flow, (28, 28, 15.5, 15.5), 0.01).round(3)[:3].tolist()[0]
        1.0
    """
    import cv2
    from scipy.optimize import least_squares

    flow, intrinsics = _checked(flow, intrinsics)
    start, end = (rays[np.isfinite(flow).all(-1)] for rays in _rays(flow, intrinsics))
    step = max(-(-len(start) // MAX_VECTORS), 1)
    start, end = start[::step], end[::step]
    tolerance = noise / intrinsics[:2].mean()
    if len(start) < MIN_VECTORS or _turn_explains(start, end, OUTLIER * tolerance):
        return np.full(6, np.nan)
    matrix, _ = cv2.findEssentialMat(
        start[:, :2],
        end[:, :2],
        np.eye(3),
        cv2.RANSAC,
        CONFIDENCE,
        OUTLIER * tolerance,
        MAX_ITERATIONS,
    )
    if matrix is None:
        return np.full(6, np.nan)
    turn, other, direction = cv2.decomposeEssentialMat(matrix[:3])
    # The other solution turns the camera by 180 degrees about its path.
    turn = max(turn, other, key=np.trace)
    first = np.concatenate([-turn.T @ direction[:, 0], cv2.Rodrigues(turn.T)[0][:, 0]])

    def distances(motion):
        return _epipolar(start, end, motion) / tolerance

    motion = least_squares(distances, first, loss="cauchy", f_scale=1.0, max_nfev=30).x
    motion[:3] /= np.linalg.norm(motion[:3])
    # Of both directions of the path, that in which points are in front of the camera. If in both many are
    # behind it, the motion explains the flow only by chance.
    seen = parallax(flow, motion, intrinsics)
    with np.errstate(invalid="ignore"):
        measured = (seen.reach * seen.inverse_depth)[seen.off_line <= OUTLIER * noise]
    before, behind = (measured > OUTLIER * noise).sum(), (measured < -OUTLIER * noise).sum()
    if max(before, behind) < max(IN_FRONT * (before + behind), MIN_VECTORS):
        return np.full(6, np.nan)
    motion[:3] *= 1 if before > behind else -1
    return motion


def percentile(values):
    """Computes the rank of each value, as a fraction of the known ones: 0 for the least, 1 for the largest.

    Equal values have their mean rank, so only the order of the values counts.

    Args:
        values: float array, NaN where unknown.

    Returns:
        float64 array of the same shape, NaN where unknown; 0.5 for a single known value.

    Example:
        >>> percentile(np.array([3.0, np.nan, 7.0, 5.0, 7.0])).round(3).tolist()
        [0.0, nan, 0.833, 0.333, 0.833]
    """
    values = np.asarray(values, np.float64)
    known = ~np.isnan(values)
    found = np.full(values.shape, np.nan)
    _, group, number = np.unique(values[known], return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(number) - (number + 1) / 2
    if known.any():
        found[known] = mean_rank[group] / (known.sum() - 1) if known.sum() > 1 else 0.5
    return found


def estimated_flow(first, second):
    """Computes the optical flow between two frames by OpenCV's DIS, NaN where it is unreliable.

    Flow that the flow back does not return to its start, or that leaves the image, is unreliable: what is
    hidden in the next frame, and what has no texture.

    Args:
        first, second: (H, W, 3) uint8 arrays of at least 12x12 pixels.

    Returns:
        (H, W, 2) float32 array, pixels (x, y) from the first to the second frame.

    Raises:
        ValueError: the frames are not such arrays, or have different shapes.

    Reference: Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016.

    Example:
        >>> noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
        >>> first = noise.repeat(4, axis=0).repeat(4, axis=1)
        >>> np.nanmedian(estimated_flow(first, np.roll(first, 2, axis=1)), axis=(0, 1)).round().tolist()
        [2.0, 0.0]
    """
    import cv2

    frames = [np.asarray(frame) for frame in (first, second)]
    shape = frames[0].shape
    if (
        any(frame.shape != shape or frame.dtype != np.uint8 for frame in frames)
        or (len(shape), shape[-1]) != (3, 3)
        or min(shape[:2]) < 12
    ):
        raise ValueError(
            "first and second must be (H, W, 3) uint8 frames of at least 12x12 pixels, got "
            f"{' and '.join(f'{frame.dtype} {frame.shape}' for frame in frames)}"
        )
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    solver = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    solver.setFinestScale(0)  # images are small
    forward, back = solver.calc(*gray, None), solver.calc(*gray[::-1], None)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    to = np.stack([x, y], axis=-1) + forward
    returned = forward + cv2.remap(back, to[..., 0], to[..., 1], cv2.INTER_LINEAR)
    inside = ((to >= 0) & (to <= np.array(shape[1::-1]) - 1)).all(-1)
    reliable = inside & (np.linalg.norm(returned, axis=-1) <= CONSISTENT)
    return np.where(reliable[..., None], forward, np.float32(np.nan))


def _checked(flow, intrinsics):
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


def _rays(flow, intrinsics):
    """Returns the rays (H, W, 3), with z = 1, of all pixels, and of those to which the flow leads."""
    y, x = np.mgrid[: flow.shape[0], : flow.shape[1]]
    pixels = np.stack([x, y], axis=-1)
    rays = np.ones((2, *flow.shape[:2], 3))
    for k, points in enumerate((pixels, pixels + flow)):
        rays[k, ..., :2] = (points - intrinsics[2:]) / intrinsics[:2]
    return rays


def _mean_inverse_depth(seen, where):
    """Returns the inverse depth of a plane that fits best, from which noise and the far are averaged out."""
    weight = np.where(where, seen.reach, 0) ** 2
    return (weight * np.nan_to_num(seen.inverse_depth)).sum() / max(weight.sum(), 1e-300)


def _turn_explains(start, end, tolerance):
    """Returns whether a rotation of the camera, without translation, explains half of the flow."""
    import cv2
    from scipy.optimize import least_squares

    def missed(vector):
        turned = start @ cv2.Rodrigues(vector)[0]
        return (turned[:, :2] / turned[:, 2:] - end[:, :2]).ravel() / tolerance

    found = least_squares(missed, np.zeros(3), loss="cauchy", max_nfev=30).x
    return np.median(np.linalg.norm(missed(found).reshape(-1, 2), axis=1)) <= 1


def _epipolar(start, end, motion):
    """Returns the signed Sampson distances of rays (N, 3) for a motion, in the plane z = 1."""
    import cv2

    turn, move = cv2.Rodrigues(motion[3:])[0], motion[:3] / np.linalg.norm(motion[:3])
    # start . (move x turn end) = 0: the three lie in a plane.
    turned = np.cross(move, end @ turn.T)
    other = -np.cross(move, start) @ turn
    slope = (turned[:, :2] ** 2).sum(1) + (other[:, :2] ** 2).sum(1)
    return (start * turned).sum(1) / np.sqrt(np.maximum(slope, 1e-300))
