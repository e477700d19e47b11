"""What the tests of both tasks of order share: frames by label, and arguments that are refused."""

import collections

import numpy as np
import tensorflow as tf

REFUSED = [
    ({"shift": 0.6}, "shift must be in 0..0.5"),
    ({"shift": None}, "shift"),
    ({"jitter": -0.1}, "jitter"),
    ({"hidden": 0}, "hidden"),
    ({"split_channels": 1}, "split_channels must be True or False"),
]


def seeds(number, start=0):
    return tf.stack([tf.fill(number, np.int64(start)), tf.range(number, dtype=tf.int64)], 1)


def drawn(task, frames, number=2000):
    """Counts (order, label) of the frames of a clip; frame t has the color t."""
    colors = np.arange(frames, dtype=np.uint8)[:, None, None, None]
    clip = np.broadcast_to(colors, (number, frames, 8, 8, 3))
    x, y = task.pretext({"frames": clip}, seeds(number))
    assert (x == x[:, :, :1, :1]).numpy().all()
    orders = map(tuple, x[:, :, 0, 0, 0].numpy().tolist())
    return collections.Counter(zip(orders, y.numpy().tolist(), strict=True))
