"""Reader for rectified stereo pairs with disparity maps: images with depth."""

import json
import os
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ssl import files
from keras_ssl.data.columns import random_access
from keras_ssl.data.folder import height_and_width
from keras_ssl.ops import decode, images
from keras_ssl.ops import depth as depths


class Scene(NamedTuple):
    """The files of a stereo pair, without the right image, which is not needed."""

    image: Path  # the left one
    disparity: Path
    calibration: np.ndarray  # (6,): fx, fy, cx, cy in pixels, baseline in meters, offset in pixels
    bias: float  # disparity that is added in a PNG


def from_stereo(path, size, check=True):
    """Creates a dataset of images with depth from a folder of rectified stereo pairs with disparity maps.

    Three layouts are recognized, in `path` or in its subfolders (links to folders are not followed):

    - Middlebury: a folder per scene with `im0.png`, `calib.txt`, and `disp0.pfm`, `disp0GT.pfm` or
      `disp0.png` (16 bits, 256 per pixel);
    - KITTI 2015: `image_2/*_10.png`, `disp_occ_0/` or `disp_noc_0/`, and `calib_cam_to_cam/`;
    - Cityscapes: `leftImg8bit/`, `disparity/` and `camera/`.

    Images are resized so that the shorter side fits, and cropped in the center. Depth is resized by nearest
    neighbor, and the intrinsics are those of the resized image.

    Args:
        path: folder.
        size: int, height and width in pixels, or (height, width).
        check: bool, whether to decode all files at the start and skip damaged ones, as in `from_folder`.

    Returns:
        tf.data.Dataset of dicts with `image` (height, width, 3) uint8, the left one, `depth` (height, width,
        1) float32 (meters along the optical axis, NaN where the disparity is unknown: 0, infinite or NaN),
        `intrinsics` (4,) float32 (fx, fy, cx, cy in pixels; the center of the top left pixel is (0, 0)) and
        `id` (int64, index in the sorted list of scenes); with random access and the attributes `paths` (list
        of str, the left images) and `class_names` (None).

    Raises:
        ValueError: there is no such folder, no complete scene in it, or `size` is not one or two positive
            integers.

    Warns:
        UserWarning: how many scenes were skipped, and which: those without a disparity map or a calibration,
            with a damaged file, or with a disparity map of another size than the image.

    Reference: Scharstein et al., "High-Resolution Stereo Datasets with Subpixel-Accurate Ground Truth", GCPR
    2014; Menze & Geiger, "Object Scene Flow for Autonomous Vehicles", CVPR 2015; Cordts et al., "The
    Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016.

    Example:
        >>> rooms = from_stereo("middlebury/", size=96)                 # doctest: +SKIP
    """
    height, width = height_and_width(size)
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"path must be a folder of stereo pairs, there is no folder {str(path)!r}")
    found, skipped = _scenes(folder)

    def load(row):
        image = decode.decode(tf.io.read_file(row["path"]))
        disparity = _disparity(row, tf.shape(image)[:2])
        fx, *center, baseline, offset = tf.unstack(row["calibration"])
        depth = depths.from_disparity(disparity, fx, baseline, offset)
        depth = images.resize_nearest(depth, height, width)
        intrinsics = tf.stack([fx, *center])
        return {
            "image": images.resize(image, height, width),
            "depth": tf.ensure_shape(depth, (height, width, 1)),
            "intrinsics": images.resize_intrinsics(intrinsics, tf.shape(image)[:2], height, width),
            "id": row["id"],
        }

    if check and found:
        readable = random_access(_columns(found), load).ignore_errors()
        good = {int(element["id"]) for element in readable.as_numpy_iterator()}
        skipped += [scene.image for k, scene in enumerate(found) if k not in good]
        found = [scene for k, scene in enumerate(found) if k in good]
    if not found:
        raise ValueError(
            f"path must be a folder of stereo pairs as of Middlebury, KITTI 2015 or Cityscapes, but "
            f"{str(path)!r} has no complete and readable one; incomplete: "
            f"{files.listed(sorted(skipped)) or 'none'}"
        )
    if skipped:
        names = files.listed([str(image.relative_to(folder)) for image in sorted(skipped)])
        warnings.warn(
            f"skipped {len(skipped)} of {len(skipped) + len(found)} scenes in {str(path)!r}, without a "
            f"disparity map of the image's size or a calibration, or damaged: {names}",
            stacklevel=2,
        )
    dataset = random_access(_columns(found), load)
    dataset.paths, dataset.class_names = [str(scene.image) for scene in found], None
    return dataset


def _columns(scenes):
    return {
        "path": [str(scene.image) for scene in scenes],
        "disparity_path": [str(scene.disparity) for scene in scenes],
        "calibration": np.stack([scene.calibration for scene in scenes]).astype(np.float32),
        "bias": np.float32([scene.bias for scene in scenes]),
        "id": np.arange(len(scenes), dtype=np.int64),
    }


def _disparity(row, size):
    """Loads the (H, W, 1) float32 disparity map of a row; it must have the size of the image."""
    encoded = tf.io.read_file(row["disparity_path"])
    disparity = tf.cond(
        tf.strings.regex_full_match(row["disparity_path"], r".*\.pfm"),
        lambda: decode.decode_pfm(encoded),
        lambda: tf.cast(decode.decode_16_bits(encoded), tf.float32) / 256 - row["bias"],
    )
    same = tf.reduce_all(tf.shape(disparity)[:2] == size)
    check = tf.debugging.Assert(same, ["the disparity map has another size than the image"])
    with tf.control_dependencies([check] if check is not None else []):
        return tf.identity(disparity)


def _scenes(folder):
    """Returns the scenes in a folder, sorted, and the left images of incomplete scenes."""
    found, skipped = [], []
    for pattern, *layout in LAYOUTS:
        for image in folder.rglob(pattern):
            scene = _scene(image, *layout)
            if scene is None:
                skipped.append(image)
            else:
                found.append(scene)
    return sorted(found, key=lambda scene: scene.image), skipped


def _scene(image, files_of, calibration_of, bias):
    """Returns the Scene of a left image, or None if a file is missing or the calibration is damaged."""
    disparities, calibration = files_of(image)
    existing = [file for file in disparities if os.path.isfile(file)]
    # Reading a file that is not regular, such as a FIFO, could wait forever.
    if not existing or not os.path.isfile(image) or not os.path.isfile(calibration):
        return None
    try:
        fx, *_, baseline, _ = numbers = calibration_of(calibration.read_text())
    except (OSError, LookupError, TypeError, ValueError):
        return None
    if not np.isfinite(numbers).all() or fx <= 0 or baseline <= 0:
        return None
    return Scene(image, existing[0], np.array(numbers), bias)


def _middlebury(image):
    names = ("disp0.pfm", "disp0GT.pfm", "disp0.png")
    return [image.parent / name for name in names], image.parent / "calib.txt"


def _kitti(image):
    folder, number = image.parent.parent, image.stem.removesuffix("_10")
    maps = [folder / name / image.name for name in ("disp_occ_0", "disp_noc_0")]
    return maps, folder / "calib_cam_to_cam" / f"{number}.txt"


def _cityscapes(image):
    split, city, name = image.parts[-3:]
    name = name.removesuffix("_leftImg8bit.png")
    folder = image.parents[3]
    disparity = folder / "disparity" / split / city / f"{name}_disparity.png"
    return [disparity], folder / "camera" / split / city / f"{name}_camera.json"


def _middlebury_calibration(text):
    lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    fx, _, cx, _, fy, cy, *_ = map(float, re.sub(r"[\[\];]", " ", lines["cam0"]).split())
    return fx, fy, cx, cy, float(lines["baseline"]) / 1000, float(lines.get("doffs", 0))


def _kitti_calibration(text):
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    left, right = ([*map(float, lines[f"P_rect_{k}"].split())] for k in ("02", "03"))
    fx, _, cx, shift, _, fy, cy, *_ = left
    return fx, fy, cx, cy, (shift - right[3]) / fx, right[2] - cx


def _cityscapes_calibration(text):
    camera = json.loads(text)
    inside = [float(camera["intrinsic"][name]) for name in ("fx", "fy", "u0", "v0")]
    return *inside, float(camera["extrinsic"]["baseline"]), 0.0


# The left images, their other files, the content of the calibration, and the bias of a PNG: 0 means unknown,
# so Cityscapes stores 256 times the disparity plus 1.
LAYOUTS = (
    ("im0.png", _middlebury, _middlebury_calibration, 0.0),
    ("image_2/*_10.png", _kitti, _kitti_calibration, 0.0),
    ("leftImg8bit/*/*/*_leftImg8bit.png", _cityscapes, _cityscapes_calibration, 1 / 256),
)
