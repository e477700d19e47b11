"""Masks of the pixels that move, as a column of clips, from flow without the motion of the camera."""

import numpy as np

from keras_ssl.data import camera_motion
from keras_ssl.data.flow import with_computed

MIN_SIDE = 128  # pixels to which frames are enlarged for DIS, whose patches have 8x8 pixels
MIN_VECTORS, MAX_VECTORS = 50, 1_000  # known flow vectors for the homography
OUTLIER = 1.0  # pixels, of RANSAC
CONFIDENCE, MAX_ITERATIONS = 0.999, 500
MOVED, DEVIATIONS = 1.0, 4.0  # pixels and standard deviations of the flow: least motion
SURE, UNSURE = 0.7, 0.4  # mean votes: moving from the first one up, still below the second
MIN_BLOB, MIN_AREA = 0.25, 0.005  # of the largest blob, and of the image
BETTER, GRAY_LEVELS = 1.5, 5.0  # how much better flow must match a blob than the camera's motion
MIN_STILL = 0.5  # smallest fraction of an image that must be known to be still


def with_motion_masks(clips):
    """Adds the column `moving`, the pixels of `image` that move, to a dataset of clips.

    It is 1 where something moves, 0 where nothing moves and NaN where this is uncertain, which is everywhere
    in a clip without motion: see `motion_mask`. It is computed from all frames of a clip when a row is
    loaded, which takes some tenths of a second. `to_tfrecord` stores the result, so that it is computed once
    and not in every epoch. `scenes` already have an exact column.

    Args:
        clips: tf.data.Dataset with random access, of dicts with `frames` (T, H, W, 3) uint8, T at least 2, H
            and W at least 12. `image` is frame (T - 1) // 2.

    Returns:
        tf.data.Dataset with random access: the columns of `clips`, and `moving` (H, W, 1) float32.

    Raises:
        ValueError: `clips` has no random access or no such frames, or has the column already.

    Reference: Pathak et al., "Learning Features by Watching Objects Move", CVPR 2017, section 4.

    Example:
        >>> import keras_ssl as kssl
        >>> clips = with_motion_masks(kssl.data.moving_digits("test", pairs=1))
        >>> clips.element_spec["moving"].shape
        TensorShape([32, 32, 1])
    """
    return with_computed(clips, "moving", 1, motion_mask)


def motion_mask(frames):
    """Computes which pixels of the middle frame of a clip move relative to the background.

    - OpenCV's DIS estimates the flow from the middle frame to each other frame, and RANSAC estimates the
      homography that agrees with most of this flow. The homography is the motion of the camera if the camera
      only rotates, or if the background is far or a plane.
    - Each other frame votes: for motion where the flow misses the homography by more than a pixel and four
      standard deviations of the flow, and against motion below half of that. Since all flow starts in the
      middle frame, points that are hidden in earlier frames are seen in later ones.
    - Pixels with a mean vote of 0.7 or more move, pixels below 0.4 are still, and all others are uncertain.
    - Blobs of moving pixels are uncertain if they have less than a quarter of the area of the largest blob or
      less than half a percent of the image, or if the camera's motion explains their colors as well as the
      flow does: in a clear sky the flow is arbitrary. Holes in the other blobs are filled, since the flow
      within a uniform object is arbitrary, too.

    If no blob remains, or less than half of the image is known to be still, all pixels are uncertain.

    Objects that stand near a camera that moves sideways or forward are mistaken for moving ones: no
    homography explains their flow.

    Args:
        frames: (T, H, W, 3) uint8 array, T at least 2, H and W at least 12. The middle frame is (T - 1) // 2.

    Returns:
        (H, W, 1) float32 array: 1 where something moves, 0 where nothing moves, NaN where it is uncertain.

    Raises:
        ValueError: `frames` is not such an array.

    Reference: Pathak et al., "Learning Features by Watching Objects Move", CVPR 2017; Faktor & Irani, "Video
    Segmentation by Non-Local Consensus Voting", BMVC 2014.

    Example:
        >>> blocks = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
        >>> still = blocks.repeat(4, axis=0).repeat(4, axis=1)
        >>> first = still.copy(); first[20:36, 10:26] = still[4:20, :16]
        >>> second = still.copy(); second[20:36, 13:29] = still[4:20, :16]                 # 3 pixels right
        >>> mask = motion_mask(np.stack([first, second]))[..., 0]
        >>> mask[[28, 5], [18, 40]].tolist()
        [1.0, 0.0]
    """
    frames = np.asarray(frames)
    shape = frames.shape
    if frames.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or shape[0] < 2:
        raise ValueError(
            f"frames must be (T, H, W, 3) uint8 with T at least 2, got {frames.dtype} {shape}"
        )
    middle, blank = (shape[0] - 1) // 2, np.full((*shape[1:3], 1), np.nan, np.float32)
    compared = [_compare(frames[middle], frames[k]) for k in range(shape[0]) if k != middle]
    compared = [found for found in compared if found is not None]
    if not compared:
        return blank
    votes, errors = (np.stack(parts) for parts in zip(*compared, strict=True))
    number = np.isfinite(votes).sum(0)
    mean = np.where(number > 0, np.nansum(votes, 0) / np.maximum(number, 1), np.nan)
    moving, still = mean >= SURE, mean < UNSURE
    objects = objects_in(moving, np.nansum(errors, 0), np.isfinite(errors[:, 0]).sum(0))
    still &= ~objects
    if not objects.any() or still.mean() < MIN_STILL:
        return blank
    return np.where(objects, 1, np.where(still, 0, np.nan)).astype(np.float32)[..., None]


def _compare(middle, other):
    """Compares a frame with the middle one.

    Returns:
        The vote (H, W) in 0..1, NaN where the flow is unreliable, and the errors (2, H, W) in gray levels:
        the color differences to the places where the camera's motion leads and where the flow leads, NaN if a
        place is outside of the image. None if there is no homography.
    """
    import cv2

    flow = _flow(middle, other)
    size = np.array(flow.shape[1::-1])
    start = np.stack(np.meshgrid(*map(np.arange, size)), axis=-1).astype(np.float32)
    end = _moved_by_camera(start, flow)
    if end is None:
        return None
    missed = np.linalg.norm(start + flow - end, axis=-1)
    # The length of two normal coordinates with deviation 1 has the median 1.18.
    deviation = np.median(missed[missed <= OUTLIER]) / 1.18
    far = max(MOVED, DEVIATIONS * deviation)
    vote = np.clip(2 * missed / far - 1, 0, 1)
    seen = np.isfinite(vote) & ((end >= 0) & (end <= size - 1)).all(-1)
    errors = []
    for to in (end, start + flow):
        color = cv2.remap(other.astype(np.float32), *np.moveaxis(to, -1, 0), cv2.INTER_LINEAR)
        errors.append(np.where(seen, np.abs(color - middle).mean(-1), np.nan))
    return vote, np.stack(errors)


def _flow(middle, other):
    """Returns the flow (H, W, 2) float32, computed from enlarged frames."""
    import cv2

    height, width = middle.shape[:2]
    factor = -(-MIN_SIDE // min(height, width))
    large = (width * factor, height * factor)
    pair = [cv2.resize(frame, large, interpolation=cv2.INTER_CUBIC) for frame in (middle, other)]
    flow = camera_motion.estimated_flow(*pair) / factor
    return flow.reshape(height, factor, width, factor, 2).mean((1, 3))


def _moved_by_camera(start, flow):
    """Returns where the homography that agrees with most flow takes each pixel, (H, W, 2), or None."""
    import cv2

    known = np.isfinite(flow).all(-1)
    first, second = start[known], (start + flow)[known]
    if len(first) < MIN_VECTORS:
        return None
    step = -(-len(first) // MAX_VECTORS)
    matrix, _ = cv2.findHomography(
        first[::step],
        second[::step],
        cv2.RANSAC,
        OUTLIER,
        maxIters=MAX_ITERATIONS,
        confidence=CONFIDENCE,
    )
    if matrix is None:
        return None
    return cv2.perspectiveTransform(start.reshape(1, -1, 2), matrix).reshape(start.shape)


def objects_in(moving, errors, number):
    """Selects the blobs of moving pixels that count as objects, and fills their holes.

    Args:
        moving: (H, W) bool array.
        errors: (2, H, W) array, errors of the camera's motion and of the flow, summed over the frames.
        number: (H, W) int array, number of these frames.

    Returns:
        (H, W) bool array.

    Example:
        >>> ring = np.zeros((9, 9)); ring[2:7, 2:7] = 1; ring[4, 4] = 0
        >>> int(objects_in(ring, np.stack([9 * ring, ring]), np.ones((9, 9))).sum())
        25
    """
    import cv2

    blobs, label = cv2.connectedComponents(moving.astype(np.uint8))
    label = label.ravel()
    area, frames, camera, flow = (
        np.bincount(label, weights, minlength=blobs).astype(np.float64)
        for weights in (None, number.ravel(), errors[0].ravel(), errors[1].ravel())
    )
    area[0] = 0  # pixels that do not move
    area[camera <= BETTER * flow + GRAY_LEVELS * frames] = 0
    large = (area > 0) & (area >= max(MIN_BLOB * area.max(), MIN_AREA * moving.size))
    filled = large[label].reshape(moving.shape).astype(np.uint8)
    outlines, _ = cv2.findContours(filled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED) > 0
