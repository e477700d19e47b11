"""Clips: windows with motion, reordering and augmentation of frames, moving areas, differences."""

import itertools

import tensorflow as tf

from keras_ssl.arguments import check_bool, check_fraction
from keras_ssl.ops import augment, images
from keras_ssl.ops.random import integer, split, uniform

CHANGED = 8  # of 255: a pixel moves if a color changes by more than this


def check_length(images, least):
    """Raises ValueError unless a dataset has clips `frames` (T, H, W, C) of a fixed T >= `least`."""
    spec = getattr(images, "element_spec", None)
    if not isinstance(spec, dict) or "frames" not in spec:
        return  # `PretextModel.dataset` reports what is missing
    shape = spec["frames"].shape
    number = shape[0] if shape.rank == 4 else None
    if number is None or number < least:
        raise ValueError(
            f"images must yield clips `frames` (T, H, W, C) of the same number T >= {least} of frames, got "
            f"{shape}: use a reader with frames={least} or more"
        )


def draw_window(frames, seed, length):
    """Draws consecutive frames of each clip; windows with more motion are drawn more often.

    The probability of a window is proportional to the sum of the absolute differences between its consecutive
    frames, because frames without motion have no order, and can be predicted by copying.

    Args:
        frames: (B, T, H, W, C) tensor in 0..255.
        seed: (B, 2) int64 tensor, one seed per clip.
        length: int, frames of a window, at most T.

    Returns:
        (B, length, H, W, C) tensor of the same dtype.

    Example:
        >>> draw_window(tf.zeros((2, 7, 8, 8, 3)), tf.zeros((2, 2), tf.int64), 5).shape
        TensorShape([2, 5, 8, 8, 3])
    """
    number = frames.shape[1]
    if number == length:
        return frames
    # Integers, whose sum does not depend on the order of summation.
    values = tf.cast(frames, tf.int32)
    steps = tf.cast(tf.abs(values[:, 1:] - values[:, :-1]), tf.int64)
    steps = tf.reduce_sum(steps, axis=[2, 3, 4])
    windows = number - length + 1
    # At least 1, so that a window is drawn from a clip without motion, too.
    motion = 1 + tf.add_n([steps[:, k : k + windows] for k in range(length - 1)])
    end = tf.cumsum(motion, axis=1)
    place = tf.cast(uniform(seed, 1), tf.float64) * tf.cast(end[:, -1:], tf.float64)
    start = tf.reduce_sum(tf.cast(tf.cast(place, tf.int64) >= end, tf.int32), axis=1)
    return tf.gather(frames, start[:, None] + tf.range(length), axis=1, batch_dims=1)


def reordered(frames, orders, which, reverse):
    """Puts the frames of each clip in one of several orders, or in its reverse.

    Args:
        frames: (B, T, H, W, C) tensor.
        orders: sequence of tuples of n indices of frames.
        which: (B,) int tensor, the index of the order.
        reverse: (B,) int tensor, 1 to reverse it.

    Returns:
        (B, n, H, W, C) tensor.

    Example:
        >>> clip = tf.reshape([10, 20, 30], [1, 3, 1, 1, 1])
        >>> reordered(clip, [(0, 1, 2), (1, 0, 2)], [1], [1]).numpy().ravel().tolist()
        [30, 10, 20]
    """
    order = tf.gather(orders, which)
    order = tf.where(tf.equal(reverse, 1)[:, None], order[:, ::-1], order)
    return tf.gather(frames, order, axis=1, batch_dims=1)


def augment_frames(frames, seed, shift, jitter=0.0, split_channels=False):
    """Shifts and mirrors all frames of a clip alike, and then changes each frame separately.

    Args:
        frames: (B, T, H, W, C) tensor.
        seed: (B, 2) int64 tensor, one seed per clip.
        shift: float in 0..0.5, the largest shift of all frames as a fraction of height and width.
        jitter: float in 0..0.5, the largest shift of each frame.
        split_channels: bool, whether to replace all channels of a frame by one of them, drawn for each frame.

    Returns:
        (B, T, H, W, C) tensor of the same dtype.

    Reference: Lee et al., "Unsupervised Representation Learning by Sorting Sequences", ICCV 2017,
    section 3.2.

    Example:
        >>> augment_frames(tf.zeros((2, 4, 8, 8, 3)), tf.zeros((2, 2), tf.int64), 0.125).shape
        TensorShape([2, 4, 8, 8, 3])
    """
    number, channels = frames.shape[1], frames.shape[-1]
    common, own, color = split(seed, 3)
    # A repeated seed shifts all frames by the same number of pixels.
    folded = augment.random_shift(
        images.fold(frames), tf.repeat(common, number, axis=0), shift, flip=True
    )
    if jitter:
        folded = augment.random_shift(folded, _per_frame(own, number), jitter, flip=False)
    if split_channels:
        drawn = integer(_per_frame(color, number), channels)
        one = tf.gather(folded, drawn, axis=-1, batch_dims=1)
        folded = tf.repeat(one[..., None], channels, axis=-1)
    return images.unfold(folded, number)


def check_augmentation(shift, jitter=0.0, split_channels=False):
    """Raises ValueError unless these are valid arguments of `augment_frames`."""
    check_fraction("shift", shift, most=0.5)
    check_fraction("jitter", jitter, most=0.5)
    check_bool("split_channels", split_channels)


def _per_frame(seed, number):
    """Derives one seed per frame: (B * number, 2), in the order of `images.fold`."""
    return images.fold(tf.stack(split(seed, number), axis=1))


def moving_area(frames):
    """Finds the pixels where something moves in three frames: a color changes by more than 8 in either step.

    Pixels next to them count, too. Both steps count, since the last step alone would select exactly the
    pixels that copying the previous frame gets wrong.

    Args:
        frames: (B, 3, H, W, C) tensor in 0..255.

    Returns:
        (B, H, W, 1) float32 tensor of ones (moving) and zeros.

    Example:
        >>> frames = tf.reshape(tf.eye(3), [1, 3, 1, 3, 1]) * 255       # a pixel moves to the right
        >>> moving_area(tf.pad(frames, [[0, 0], [0, 0], [0, 0], [0, 3], [0, 0]]))[0, 0, :, 0].numpy()
        array([1., 1., 1., 1., 0., 0.], dtype=float32)
    """
    frames = tf.cast(frames, tf.float32)
    change = tf.reduce_max(tf.abs(frames[:, 1:] - frames[:, :-1]), axis=[1, 4])
    moved = tf.cast(change > CHANGED, tf.float32)[..., None]
    return tf.nn.max_pool2d(moved, 3, 1, "SAME")


def differences(embedded):
    """Computes the differences of the embeddings of all pairs of frames, as sqrt(1 + difference^2) - 1.

    The differences show whether a frame was recorded between two others, so the network need not learn to
    subtract first. Small differences are squared, since the gradient of absolute differences jumps where
    frames are alike. Large differences are absolute, since training diverged with their squares.

    Args:
        embedded: (B, T, D) tensor.

    Returns:
        (B, T (T - 1) / 2, D) float32 tensor of the pairs (0, 1), (0, 2), ..., (T - 2, T - 1).

    Example:
        >>> differences(tf.constant([[[0.0], [0.75], [0.75]]]))[0, :, 0].numpy().tolist()
        [0.25, 0.25, 0.0]
    """
    pairs = itertools.combinations(range(embedded.shape[1]), 2)
    first, second = (tf.gather(embedded, index, axis=1) for index in zip(*pairs, strict=True))
    square = tf.math.squared_difference(tf.cast(first, tf.float32), tf.cast(second, tf.float32))
    return tf.sqrt(1 + square) - 1
