"""Figures of captioned images, and tables."""


def grid(rows, axes=None, title=None):
    """Draws rows of captioned images.

    Args:
        rows: list of lists of ((H, W, C) pixels in 0..255, caption); rows of up to three images are drawn
            side by side, six images per row.
        axes: matplotlib Axes to draw into, or None for a new figure.
        title: text above the figure.

    Returns:
        the matplotlib Figure; `figure.savefig("grid.png")` writes it.

    Raises:
        ValueError: no rows, or an empty one.

    Example:
        >>> import numpy as np
        >>> figure = grid([[(np.zeros((8, 8, 3)), "black")]])
    """
    from matplotlib.figure import Figure  # takes half a second, and print_table does not need it

    if not rows or not all(rows):
        raise ValueError("rows must hold at least one image each")
    length = max(len(row) for row in rows)
    if length <= 3:  # to avoid narrow columns, six images per row
        each = 6 // length
        rows = [
            [image for row in rows[i : i + each] for image in row]
            for i in range(0, len(rows), each)
        ]
    columns = max(len(row) for row in rows)
    if axes is None:
        axes = Figure(
            (1.3 * columns, 1.5 * len(rows) + 0.4), layout="constrained", dpi=120
        ).subplots()
    # One canvas of equal cells, one unit wide and 1.25 high to leave room for the caption.
    for i, row in enumerate(rows):
        for j, (pixels, caption) in enumerate(row):
            _draw(axes, pixels, j + 0.5, 1.25 * i + 0.75)
            axes.text(j + 0.5, 1.25 * i + 0.14, caption, ha="center", va="center", fontsize=7)
    axes.set(xlim=(0, columns), ylim=(1.25 * len(rows), 0), aspect="equal")
    axes.axis("off")
    if title:
        axes.set_title(title, fontsize=9)
    return axes.figure


def side_by_side(columns):
    """Builds rows for `grid` from columns of images.

    Args:
        columns: list of ((B, H, W, C) array or tensor, caption).

    Returns:
        list with one entry per image: a list of ((H, W, C) array, caption).

    Example:
        >>> import numpy as np
        >>> rows = side_by_side([(np.zeros((2, 8, 8, 3)), "input"), (np.ones((2, 8, 8, 3)), "target")])
        >>> [caption for _, caption in rows[1]]
        ['input', 'target']
    """
    import numpy as np

    arrays = [np.asarray(images) for images, _ in columns]
    captions = [caption for _, caption in columns]
    return [list(zip(row, captions, strict=True)) for row in zip(*arrays, strict=True)]


def labeled_views(x, y, y_pred, name, text):
    """Builds rows for `grid` from images, or views of images, and their classes.

    Args:
        x: (B, H, W, C) or (B, V, H, W, C) array.
        y: (B,) or (B, L) integer array, one label per image or for each of its first L views.
        y_pred: (..., K) array of logits, one row per label, or None.
        name: str, what a label is called.
        text: function from an int label to what is printed.

    Returns:
        list with one entry per image: a list of ((H, W, C) array, caption).

    Example:
        >>> import numpy as np
        >>> rows = labeled_views(np.zeros((1, 8, 8, 3)), np.array([1]), np.eye(2)[:1], "class", str)
        >>> [caption for _, caption in rows[0]]
        ['class 1, predicted 0']
    """
    import numpy as np

    views = x if x.ndim == 5 else x[:, None]
    labels = np.reshape(y, (len(x), -1)).tolist()
    predicted = [[]] * len(x)
    if y_pred is not None:
        predicted = y_pred.argmax(axis=-1).reshape(len(x), -1).tolist()
    rows = []
    for shown, own, other in zip(views, labels, predicted, strict=True):
        captions = [f"view {k + 1}" for k in range(len(shown))]
        for k, label in enumerate(own):
            captions[k] = f"{name} {text(label)}"
        for k, label in enumerate(other[: len(own)]):
            captions[k] += f", predicted {text(label)}"
        rows.append(list(zip(shown, captions, strict=True)))
    return rows


def columns(row):
    """Colors the columns of a row of data with depth, motion or segments, so that people can view them.

    Near depths are red and far depths are blue, by their rank. In normals, red faces right, green faces up
    and blue faces the camera. In flow, the hue is the direction and the saturation is the length. Unknown
    values are black, or gray in masks.

    Args:
        row: dict of arrays (H, W, channels), with some of the columns of `data.scenes`; other columns are
            left out.

    Returns:
        list of ((H, W, 3) pixels in 0..255, caption), for `grid`.

    Example:
        >>> import keras_ssl as kssl
        >>> row = next(kssl.data.scenes(1, size=16).as_numpy_iterator())
        >>> [caption for _, caption in columns(row)]
        ['image', 'depth', 'normals', 'contours', 'instances', 'classes']
    """
    return [(COLORS[name](row[name]), name) for name in COLORS if name in row]


def _depth(depth):
    import numpy as np
    from matplotlib import colormaps

    depth = depth[..., 0]
    known = np.isfinite(depth)
    rank = np.zeros(depth.shape)
    rank[known] = np.searchsorted(np.sort(depth[known]), depth[known]) / max(known.sum(), 1)
    return 255 * colormaps["turbo"](1 - rank)[..., :3] * known[..., None]


def _normals(normals):
    import numpy as np

    return np.nan_to_num(127.5 + 127.5 * normals * [1, -1, -1])


def _numbers(numbers):
    from matplotlib import colormaps

    numbers = numbers[..., 0]
    return 255 * colormaps["tab20"](numbers % 20)[..., :3] * (numbers > 0)[..., None]


def _flow(flow):
    import numpy as np
    from matplotlib.colors import hsv_to_rgb

    flow = np.nan_to_num(flow)
    length = np.linalg.norm(flow, axis=-1)
    hue = np.arctan2(flow[..., 1], flow[..., 0]) / (2 * np.pi) % 1
    longest = max(length.max(), 1e-6)
    return 255 * hsv_to_rgb(np.stack([hue, length / longest, np.ones_like(hue)], axis=-1))


def _mask(mask):
    import numpy as np

    return 255 * np.nan_to_num(mask, nan=0.5).repeat(3, axis=-1)


COLORS = {
    "image": lambda image: image, "depth": _depth, "normals": _normals, "contours": _mask,
    "instances": _numbers, "classes": _numbers, "flow": _flow, "visible": _mask, "moving": _mask,
}  # fmt: skip


def _draw(axes, pixels, x, y):
    """Draws an image around (x, y), its longer side 0.92 units."""
    import numpy as np

    pixels = np.clip(np.asarray(pixels, np.float32) / 255, 0, 1)
    if pixels.shape[-1] == 1:
        pixels = pixels.repeat(3, axis=-1)
    height, width = 0.92 * np.array(pixels.shape[:2]) / max(pixels.shape[:2])
    left, top = x - width / 2, y - height / 2
    axes.imshow(pixels, extent=(left, left + width, top + height, top), interpolation="nearest")


def print_table(rows):
    """Prints rows of text in columns, the header first.

    Args:
        rows: list of sequences of str, all of the same length.

    Example:
        >>> print_table([("stage", "kNN"), ("stage1", "58.1")])
        stage   kNN
        stage1  58.1
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
