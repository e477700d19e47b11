"""Colors the columns of scenes, and of other data with depth or motion, to look at them."""

import numpy as np


def columns(row):
    """Draws the columns of a row as images.

    Args:
        row: dict of arrays, with some of the columns of `scenes`.

    Returns:
        list of ((H, W, 3) pixels in 0..255, caption), as `plotting.grid` takes it.

    Example:
        >>> import keras_ssl as kssl
        >>> row = next(kssl.data.scenes(1, size=16).as_numpy_iterator())
        >>> [caption for _, caption in columns(row)]
        ['image', 'depth', 'normals', 'contours', 'instances', 'classes']
    """
    return [(DRAW[name](row[name]), name) for name in DRAW if name in row]


def _depth(depth):
    """Near is red, far is blue, the sky is black: ranks, as depths differ by orders of magnitude."""
    from matplotlib import colormaps

    depth = depth[..., 0]
    known = np.isfinite(depth)
    rank = np.zeros(depth.shape)
    rank[known] = np.searchsorted(np.sort(depth[known]), depth[known]) / max(known.sum(), 1)
    return 255 * colormaps["turbo"](1 - rank)[..., :3] * known[..., None]


def _normals(normals):
    """Red faces right, green faces up, blue faces the camera."""
    return np.nan_to_num(127.5 + 127.5 * normals * [1, -1, -1])


def _numbers(numbers):
    """A color of its own for each number; 0 is black."""
    from matplotlib import colormaps

    numbers = numbers[..., 0]
    return 255 * colormaps["tab20"](numbers % 20)[..., :3] * (numbers > 0)[..., None]


def _flow(flow):
    """The hue is the direction, the saturation the length, relative to the longest."""
    from matplotlib.colors import hsv_to_rgb

    flow = np.nan_to_num(flow)
    length = np.linalg.norm(flow, axis=-1)
    hue = np.arctan2(flow[..., 1], flow[..., 0]) / (2 * np.pi) % 1
    longest = max(length.max(), 1e-6)
    return 255 * hsv_to_rgb(np.stack([hue, length / longest, np.ones_like(hue)], axis=-1))


def _mask(mask):
    return 255 * np.repeat(mask, 3, axis=-1)


DRAW = {
    "image": lambda image: image, "depth": _depth, "normals": _normals, "contours": _mask,
    "instances": _numbers, "classes": _numbers, "flow": _flow, "visible": _mask, "moving": _mask,
}  # fmt: skip
