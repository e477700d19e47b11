"""Layouts of folders with depth and poses: TUM RGB-D, pairs as in NYU Depth, KITTI odometry."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_ssl.ops import decode, poses

MAX_GAP = 0.02  # seconds between an image and its depth or pose, as in the tools of TUM RGB-D
TUM_INTRINSICS = (
    525.0,
    525.0,
    319.5,
    239.5,
)  # of 640x480 pixels, as the data set's authors recommend
TUM_SIZE = (480, 640)
NON_ORTHOGONAL = 0.01  # tolerance, since text files have rounded matrices


class Recording(NamedTuple):
    """Frames of one recording, in temporal order; files may be missing."""

    images: list  # of str, paths
    depths: list | None  # of str, paths
    numbers: np.ndarray  # (N,) int64; consecutive for consecutive frames
    poses: np.ndarray | None  # (N, 3, 4) float64, camera to world, NaN where unknown
    values_per_meter: float  # of the depth files
    intrinsics: tuple | None  # fx, fy, cx, cy in pixels
    size: tuple | None  # height and width to which these intrinsics belong; None for any
    skipped: dict  # reason to list of names


def read(folder):
    """Reads the lists, poses and calibration of a folder in any of the layouts.

    Args:
        folder: str or pathlib.Path.

    Returns:
        Recording.

    Raises:
        ValueError: there is no such folder, or it has none of the layouts.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(
            f"folder must be a folder, {str(folder)!r} is a file: extract the frames of a video, and give "
            "a folder of one of the three layouts that from_rgbd describes"
        )
    if not folder.is_dir():
        raise ValueError(f"folder must be a folder of images, there is no folder {str(folder)!r}")
    if (folder / "image_2").is_dir():
        return _kitti(folder)
    if (folder / "rgb.txt").is_file():
        return _tum(folder)
    for name in ("rgb", "image"):
        if (folder / name).is_dir() and (folder / "depth").is_dir():
            return _pairs(folder, name)
    raise ValueError(
        f"folder {str(folder)!r} has none of the layouts of from_rgbd: rgb.txt and depth.txt (TUM RGB-D), "
        "folders rgb or image and depth with the same names (NYU), or image_2 (KITTI odometry)"
    )


def _tum(folder):
    skipped = {}
    stamps, images = _listed(folder, "rgb.txt", skipped)
    order = np.argsort(stamps, kind="stable")
    stamps, images = stamps[order], [images[i] for i in order]
    keep, depths, known = np.full(len(images), True), None, None
    if (folder / "depth.txt").is_file():
        others, names = _listed(folder, "depth.txt", skipped)
        nearest = _nearest(stamps, others)
        keep = nearest >= 0
        depths = [names[i] for i in nearest[keep]]
        _skip(skipped, f"no depth within {MAX_GAP} s", [images[i] for i in np.flatnonzero(~keep)])
    if (folder / "groundtruth.txt").is_file():
        known = _trajectory(folder, stamps[keep], skipped)
    return Recording(
        [images[i] for i in np.flatnonzero(keep)], depths, np.flatnonzero(keep), known,
        5000.0, TUM_INTRINSICS, TUM_SIZE, skipped,
    )  # fmt: skip


def _listed(folder, file, skipped):
    """Reads lines of a time stamp and a file name; returns (n,) float64 and list of str."""
    stamps, names = [], []
    for words in _lines(folder / file):
        numbers = _numbers(words[:1])
        if len(words) < 2 or numbers is None or not np.isfinite(numbers[0]):
            _skip(skipped, "unreadable line", [f"{file}: {' '.join(words)[:40]}"])
            continue
        stamps.append(numbers[0])
        names.append(os.path.join(folder, " ".join(words[1:])))
    return np.array(stamps), names


def _trajectory(folder, stamps, skipped):
    """Reads lines of a time stamp, a position and a quaternion (x, y, z, w); keeps the nearest in time."""
    rows = []
    for words in _lines(folder / "groundtruth.txt"):
        numbers = _numbers(words)
        if numbers is None or len(numbers) != 8 or not np.isfinite(numbers[0]):
            _skip(skipped, "unreadable line", [f"groundtruth.txt: {' '.join(words)[:40]}"])
            continue
        rows.append(numbers)
    rows = np.array(rows).reshape(-1, 8)
    matrices = poses.quaternion_matrix(rows[:, 4:]).numpy()
    known = np.concatenate([matrices, rows[:, 1:4, None]], axis=-1)
    nearest = _nearest(stamps, rows[:, 0])
    found = np.full((len(stamps), 3, 4), np.nan)
    found[nearest >= 0] = known[nearest[nearest >= 0]]
    return _only_rigid(found)


def _nearest(stamps, others):
    """Returns for each time stamp the index of the nearest one in `others`, or -1 if it is too far away."""
    if not len(others):
        return np.full(len(stamps), -1)
    order = np.argsort(others, kind="stable")
    ordered = others[order]
    after = np.clip(np.searchsorted(ordered, stamps), 1, max(1, len(ordered) - 1))
    before = after - 1
    after = np.minimum(after, len(ordered) - 1)
    gaps = np.abs(ordered[before] - stamps), np.abs(ordered[after] - stamps)
    nearest = np.where(gaps[0] <= gaps[1], before, after)
    return np.where(np.minimum(*gaps) <= MAX_GAP, order[nearest], -1)


def _pairs(folder, name):
    skipped = {}
    images, depths = _with_depth(folder, _images(folder / name), skipped)
    return Recording(
        images, depths, np.arange(len(images)), None, 1000.0, None, None, skipped
    )  # millimeters


def _kitti(folder):
    skipped, images = {}, _images(folder / "image_2")
    _skip(skipped, "name is no number", [f for f in images if not _stem(f).isdecimal()])
    images, depths = [f for f in images if _stem(f).isdecimal()], None
    if (folder / "depth").is_dir():
        images, depths = _with_depth(folder, images, skipped)
    numbers = np.array([int(_stem(f)) for f in images], np.int64)
    projection, known = _projection(folder / "calib.txt", skipped), None
    # The data set has the poses of a sequence in ../../poses/00.txt.
    others = folder.resolve() / ".." / ".." / "poses" / f"{folder.resolve().name}.txt"
    for file in (others, folder / "poses.txt"):  # the second one counts if both exist
        if file.is_file():
            known = _matrices(file, numbers)
    intrinsics = None
    if projection is not None:
        intrinsics = tuple(projection[[0, 1, 0, 1], [0, 1, 2, 2]].tolist())
        if known is not None:
            # Poses are those of camera 0, 6 cm to the right of camera 2, which took the images.
            center = -np.linalg.solve(projection[:, :3], projection[:, 3])
            known[..., 3] += known[..., :3] @ center
    return Recording(images, depths, numbers, known, 256.0, intrinsics, None, skipped)


def _matrices(file, numbers):
    """Reads a file with one 3x4 matrix per line; returns the lines `numbers`."""
    rows = [_numbers(words) for words in _lines(file)]
    unknown = np.full(12, np.nan)
    rows = np.array([r if r is not None and len(r) == 12 else unknown for r in rows] or [unknown])
    rows = np.concatenate([rows, unknown[None]])  # for frames after the last line
    return _only_rigid(rows[np.minimum(numbers, len(rows) - 1)].reshape(-1, 3, 4))


def _projection(file, skipped):
    """Reads the projection matrix of camera 2, (3, 4) float64, or None."""
    for words in _lines(file) if file.is_file() else []:
        if words[0] == "P2:":
            numbers = _numbers(words[1:])
            if numbers is not None and len(numbers) == 12 and np.isfinite(numbers).all():
                return numbers.reshape(3, 4)
            _skip(skipped, "unreadable line", ["calib.txt: P2"])
    return None


def _only_rigid(known):
    """Returns poses, NaN where a number is missing or the matrix is not a rotation."""
    finite = np.isfinite(known).all(axis=(-1, -2))
    rotation = np.where(finite[:, None, None], known[..., :3], 0)
    error = np.abs(rotation @ np.swapaxes(rotation, -1, -2) - np.eye(3)).max(axis=(-1, -2))
    rigid = (error < NON_ORTHOGONAL) & (np.linalg.det(rotation) > 0)
    return np.where(rigid[:, None, None], known, np.nan)


def _with_depth(folder, images, skipped):
    """Returns the images that have a depth file of the same name, and these files."""
    depths = {_stem(f): f for f in _images(folder / "depth")}
    _skip(skipped, "no depth of that name", [f for f in images if _stem(f) not in depths])
    images = [f for f in images if _stem(f) in depths]
    return images, [depths[_stem(f)] for f in images]


def _images(folder):
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(decode.SUFFIXES))
    return [os.path.join(folder, name) for name in names]


def _stem(path):
    return os.path.splitext(os.path.basename(path))[0]


def _skip(skipped, reason, names):
    if names:
        skipped.setdefault(reason, []).extend(names)


def _lines(file):
    lines = Path(file).read_text(errors="replace").splitlines()
    return [line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _numbers(words):
    try:
        return np.array(words, np.float64)
    except ValueError:
        return None
