"""Reader for pages of handwriting: patches around SIFT keypoints on ink."""

import warnings
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_ssl.data.columns import addressable
from keras_ssl.data.folder import pictures_in
from keras_ssl.ops import decode

PATCH = 32


def from_pages(path, size=PATCH):
    """Dataset of the patches around the SIFT keypoints of page images.

    Ink is what Otsu's threshold finds dark; keypoints elsewhere are left out. Every keypoint is taken
    upright, since the slant belongs to the hand, and once for each place.

    Args:
        path: folder of page images (JPEG, PNG, BMP, GIF), dark ink on bright ground. The writer of a
            page is the folder it lies in, or, for pages that lie in `path` itself, the part of the file
            name before the first "_" or "-".
        size: int, height and width of the patches in pixels, or (height, width); parts beyond the
            page are white.

    Returns:
        tf.data.Dataset of dicts with `image` (height, width, 3) uint8, `id` int64, `descriptor` (128,)
        float32 (RootSIFT), `page` int64 (place in `paths`) and `label` int64 (place of the writer in
        `class_names`); with the attributes `paths`, `class_names` and `writers` (the label of each
        page).

    Raises:
        ValueError: no such folder, no readable page in it, or no keypoint on any of them.

    Warns:
        UserWarning: pages that cannot be read or have no keypoint.

    Reference: Christlein, Gropp, Fiel & Maier, "Unsupervised Feature Learning for Writer
    Identification and Writer Retrieval", ICDAR 2017, section III.

    Example:
        >>> patches = from_pages("pages/")                              # doctest: +SKIP
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size!r}")
    found = pictures_in(path)
    columns, paths, names, empty = [], [], [], []
    for file in found:
        try:
            page = decode.decode(tf.io.read_file(file)).numpy()
        except tf.errors.InvalidArgumentError:
            empty.append(Path(file).name)
            continue
        patches, descriptors = keypoints(page, height, width)
        if not len(patches):
            empty.append(Path(file).name)
            continue
        columns.append((patches, descriptors, np.full(len(patches), len(paths))))
        paths.append(file)
        below = Path(file).relative_to(path)
        alone = below.stem.replace("-", "_").split("_")[0]
        names.append(below.parts[0] if len(below.parts) > 1 else alone)
    if not columns:
        raise ValueError(f"none of the {len(found)} pages in {str(path)!r} has a keypoint on ink")
    if empty:
        more = f" and {len(empty) - 10} more" if len(empty) > 10 else ""
        warnings.warn(
            f"skipped {len(empty)} of {len(found)} pages in {str(path)!r}, unreadable or without a "
            f"keypoint on ink: {', '.join(empty[:10])}{more}",
            stacklevel=2,
        )
    patches, descriptors, pages = map(np.concatenate, zip(*columns, strict=True))
    class_names = sorted(set(names))
    writers = np.array([class_names.index(name) for name in names], np.int64)
    dataset = addressable(
        {
            "image": patches,
            "id": np.arange(len(patches), dtype=np.int64),
            "descriptor": descriptors,
            "page": pages.astype(np.int64),
            "label": writers[pages],
        }
    )
    dataset.paths, dataset.class_names, dataset.writers = paths, class_names, writers
    return dataset


def keypoints(page, height=PATCH, width=PATCH):
    """Patches and RootSIFT descriptors at the keypoints on the ink of a page.

    Args:
        page: (H, W, 3) uint8 array, dark ink on bright ground.
        height, width: int, of the patches.

    Returns:
        (patches, descriptors): (n, height, width, 3) uint8 and (n, 128) float32 arrays.

    Example:
        >>> page = np.full((64, 64, 3), 255, np.uint8)
        >>> page[20:40, 28:31] = 0
        >>> patches, descriptors = keypoints(page)
        >>> patches.shape[1:], descriptors.shape[1]
        ((32, 32, 3), 128)
    """
    import cv2

    gray = cv2.cvtColor(page, cv2.COLOR_RGB2GRAY)
    _, ink = cv2.threshold(gray, 0, 1, cv2.THRESH_BINARY_INV + cv2.THRESH_OTSU)
    ink = cv2.dilate(ink, np.ones((3, 3), np.uint8))
    sift = cv2.SIFT_create()
    upright = {}
    for point in sift.detect(gray):
        x, y = (round(coordinate) for coordinate in point.pt)
        if 0 <= x < gray.shape[1] and 0 <= y < gray.shape[0] and ink[y, x]:
            point.angle = 0
            upright.setdefault((y, x), point)
    if not upright:
        return np.zeros((0, height, width, 3), np.uint8), np.zeros((0, 128), np.float32)
    places = sorted(upright)
    _, descriptors = sift.compute(gray, [upright[place] for place in places])
    top, left = height // 2, width // 2
    white = np.pad(page, ((top, height), (left, width), (0, 0)), constant_values=255)
    patches = np.stack([white[y : y + height, x : x + width] for y, x in places])
    return patches, root_sift(descriptors)


def root_sift(descriptors):
    """RootSIFT: SIFT descriptors whose Euclidean distance is the Hellinger distance.

    Args:
        descriptors: (n, 128) array of SIFT descriptors, not negative.

    Returns:
        (n, 128) float32 array: divided by their sum, square roots, length 1.

    Reference: Arandjelović & Zisserman, "Three Things Everyone Should Know to Improve Object
    Retrieval", CVPR 2012, section 3.

    Example:
        >>> root_sift(np.array([[9.0, 16.0, 0.0]])).round(3).tolist()
        [[0.6000000238418579, 0.800000011920929, 0.0]]
    """
    descriptors = np.asarray(descriptors, np.float32)
    total = np.maximum(descriptors.sum(1, keepdims=True), 1e-12)
    return np.sqrt(descriptors / total)
