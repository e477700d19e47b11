"""Optical flow between two frames, and the motion of the camera that explains it."""

import numpy as np

from keras_ssl.data import parallax

OUTLIER = 3.0  # largest noise: distance from the epipolar line, in standard deviations of the flow
MAX_VECTORS = 1_000  # flow vectors from which the motion of the camera is estimated
MIN_VECTORS = 20
CONFIDENCE, MAX_ITERATIONS = 0.999, 300  # of RANSAC
IN_FRONT = (
    0.9  # smallest fraction of the points that an estimated motion must see in front of the camera
)
CONSISTENT = 1.0  # pixels by which the flow to the next frame and back may miss its start


def camera_motion(flow, intrinsics, noise):
    """Estimates the motion of the camera from optical flow, up to the length of its translation.

    RANSAC on an even grid of flow vectors finds the essential matrix that agrees with most of them; moving
    objects are outliers. A robust least-squares fit of the epipolar distances refines the matrix.

    Args:
        flow: (H, W, 2) float array, pixels (x, y) to the next frame; NaN where unknown.
        intrinsics: (4,) floats.
        noise: float, standard deviation of the flow in pixels.

    Returns:
        (6,) float64 array, pose of the next camera in the coordinates of this one, with a translation of
        length 1. NaN if too few vectors are known, if a rotation alone explains half of them, or if the
        motion that explains most of them puts more than a tenth of the points behind the camera.

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

    flow, intrinsics = parallax.checked(flow, intrinsics)
    start, end = (rays[np.isfinite(flow).all(-1)] for rays in parallax.rays(flow, intrinsics))
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
    # The other solution rotates the camera by 180 degrees about its path.
    turn = max(turn, other, key=np.trace)
    first = np.concatenate([-turn.T @ direction[:, 0], cv2.Rodrigues(turn.T)[0][:, 0]])

    def distances(motion):
        return _epipolar(start, end, motion) / tolerance

    motion = least_squares(distances, first, loss="cauchy", f_scale=1.0, max_nfev=30).x
    motion[:3] /= np.linalg.norm(motion[:3])
    # Of the two directions of the path, the one in which points are in front of the camera. If many points
    # are behind it in both directions, the motion explains the flow only by chance.
    seen = parallax.parallax(flow, motion, intrinsics)
    with np.errstate(invalid="ignore"):
        measured = (seen.reach * seen.inverse_depth)[seen.off_line <= OUTLIER * noise]
    before, behind = (measured > OUTLIER * noise).sum(), (measured < -OUTLIER * noise).sum()
    if max(before, behind) < max(IN_FRONT * (before + behind), MIN_VECTORS):
        return np.full(6, np.nan)
    motion[:3] *= 1 if before > behind else -1
    return motion


def estimated_flow(first, second):
    """Computes the optical flow between two frames by OpenCV's DIS, NaN where it is unreliable.

    Flow is unreliable if it leaves the image, or if the backward flow does not lead back to its start. This
    happens where a point is hidden in the next frame, or where there is no texture.

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
    # start . (move x turn end) = 0, since the three lie in a plane.
    turned = np.cross(move, end @ turn.T)
    other = -np.cross(move, start) @ turn
    slope = (turned[:, :2] ** 2).sum(1) + (other[:, :2] ** 2).sum(1)
    return (start * turned).sum(1) / np.sqrt(np.maximum(slope, 1e-300))
