"""Reader for scanned handwriting: patches around SIFT keypoints on ink."""

import warnings
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_ssl import files
from keras_ssl.data.columns import random_access
from keras_ssl.data.folder import height_and_width, image_files
from keras_ssl.ops import decode

PATCH_SIZE = 32


def from_pages(path, size=PATCH_SIZE):
    """Creates a dataset of the patches around the SIFT keypoints of page images.

    Keypoints are kept only on ink, the dark side of Otsu's threshold. All keypoints get the same orientation,
    since the slant characterizes the handwriting, and only one is kept at each position.

    Args:
        path: folder of page images (JPEG, PNG, BMP, GIF), dark ink on bright paper. The writer of a
            page is the subfolder that it is in, or, for pages in `path` itself, the part of the file
            name before the first "_" or "-".
        size: int, height and width of the patches in pixels, or (height, width); parts outside the page
            are white.

    Returns:
        tf.data.Dataset of dicts with `image` (height, width, 3) uint8, `id` int64, `descriptor` (128,)
        float32 (RootSIFT), `page` int64 (index in `paths`) and `label` int64 (index of the writer in
        `class_names`); with random access and the attributes `paths`, `class_names` and `writers` (the
        label of each page).

    Raises:
        ValueError: there is no such folder, no readable page in it, or no keypoint on any page.

    Warns:
        UserWarning: which pages cannot be read or have no keypoint.

    Reference: Christlein, Gropp, Fiel & Maier, "Unsupervised Feature Learning for Writer
    Identification and Writer Retrieval", ICDAR 2017, section III.

    Example:
        >>> patches = from_pages("pages/")                              # doctest: +SKIP
    """
    height, width = height_and_width(size)
    found = image_files(path)
    columns, paths, skipped = [], [], []
    for file in found:
        try:
            page = decode.decode(tf.io.read_file(file)).numpy()
            patches, descriptors = keypoints(page, height, width)
        except tf.errors.InvalidArgumentError:
            patches = ()
        if not len(patches):
            skipped.append(Path(file).name)
            continue
        columns.append((patches, descriptors, np.full(len(patches), len(paths))))
        paths.append(file)
    if not columns:
        raise ValueError(f"none of the {len(found)} pages in {str(path)!r} has a keypoint on ink")
    if skipped:
        warnings.warn(
            f"skipped {len(skipped)} of {len(found)} pages in {str(path)!r}, unreadable or without a "
            f"keypoint on ink: {files.listed(skipped)}",
            stacklevel=2,
        )
    patches, descriptors, pages = map(np.concatenate, zip(*columns, strict=True))
    names = [_writer(Path(file).relative_to(path)) for file in paths]
    class_names = sorted(set(names))
    writers = np.array([class_names.index(name) for name in names], np.int64)
    dataset = random_access(
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


def _writer(page):
    """Returns the writer of a page, given its path relative to the folder of all pages."""
    return page.parts[0] if len(page.parts) > 1 else page.stem.replace("-", "_").split("_")[0]


def keypoints(page, height=PATCH_SIZE, width=PATCH_SIZE):
    """Computes patches and RootSIFT descriptors at the SIFT keypoints on the ink of a page.

    Args:
        page: (H, W, 3) uint8 array, dark ink on bright paper.
        height, width: int, size of the patches in pixels.

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
    positions = sorted(upright)
    _, descriptors = sift.compute(gray, [upright[position] for position in positions])
    top, left = height // 2, width // 2
    white = np.pad(page, ((top, height), (left, width), (0, 0)), constant_values=255)
    patches = np.stack([white[y : y + height, x : x + width] for y, x in positions])
    return patches, root_sift(descriptors)


def root_sift(descriptors):
    """Computes RootSIFT, whose Euclidean distance is the Hellinger distance between SIFT descriptors.

    Args:
        descriptors: (n, 128) array of SIFT descriptors, which are not negative.

    Returns:
        (n, 128) float32 array: the square roots of the L1-normalized descriptors, of length 1.

    Reference: Arandjelović & Zisserman, "Three Things Everyone Should Know to Improve Object
    Retrieval", CVPR 2012, section 3.

    Example:
        >>> root_sift(np.array([[9.0, 16.0, 0.0]])).round(3).tolist()
        [[0.6000000238418579, 0.800000011920929, 0.0]]
    """
    descriptors = np.asarray(descriptors, np.float32)
    total = np.maximum(descriptors.sum(1, keepdims=True), 1e-12)
    return np.sqrt(descriptors / total)
