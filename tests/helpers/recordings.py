"""Images, depth and poses of recordings, for tests of the readers."""

import itertools

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

HEIGHT, WIDTH = 12, 20


def picture(k):
    """Image k is of one color, so that its number is known after resizing."""
    return Image.fromarray(np.full((HEIGHT, WIDTH, 3), 10 * k, np.uint8))


def depth_of(k):
    """Depth k: k meters and a column number of millimeters, unknown (0) in the first two columns."""
    values = 1000 * k + np.arange(WIDTH)[None].repeat(HEIGHT, axis=0)
    values[:, :2] = 0
    return values


def save_depth(values, path):
    Image.fromarray(values.astype(np.uint16)).save(path)


def trajectory(number):
    """Random poses, (number, 4, 4): camera to world."""
    rng = np.random.default_rng(0)
    poses = np.tile(np.eye(4), (number, 1, 1))
    poses[:, :3, :3] = Rotation.random(number, rng=rng).as_matrix()
    poses[:, :3, 3] = rng.normal(size=(number, 3))
    return poses


def motions(poses):
    """The slow definition: X_t = R X_(t+1) + translation."""
    steps = [np.linalg.inv(a) @ b for a, b in itertools.pairwise(poses)]
    return np.array([[*s[:3, 3], *Rotation.from_matrix(s[:3, :3]).as_rotvec()] for s in steps])


def numbers(images):
    """The numbers of images (..., H, W, 3)."""
    return np.round(images[..., 3, 3, 0] / 10).astype(int).tolist()
