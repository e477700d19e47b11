"""Ego-motion: predicts how the camera moved between two frames."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_ssl import data, encoders, layers
from keras_ssl.arguments import check_fraction, check_integer, check_integers, is_number
from keras_ssl.ops import augment, images, poses
from keras_ssl.ops.random import integer, split
from keras_ssl.pretext import PretextModel
from keras_ssl.training import pipeline

AXES = ("x", "y", "z", "pitch", "yaw", "roll")  # the order of `motion`
MEASURED_CLIPS = 5_000  # maximum number of clips for the limits
INSIDE = 0.95  # fraction of the motions that the measured limits include
IMPOSSIBLE = -1e9  # logit that fills the rows of axes with fewer bins


def read_clips(folder, size):
    """Reads clips of eight frames, which may be up to seven frames apart, as in the paper."""
    return data.from_rgbd(folder, size, frames=8)


@keras.saving.register_keras_serializable(package="keras_ssl")
class EgoMotion(PretextModel):
    """Predicts how the camera moved between two frames of a clip.

    To know how the camera moved, the network has to find the same parts of the scene in both frames, from
    another side and at another distance. Both frames pass through the same encoder, their feature maps are
    concatenated, and a small top network predicts the motion with a softmax for each axis (section 4).

    `axes` names the axes to predict: x (right), y (down) and z (forward) are the translation in the
    coordinates of the first camera, in the unit of `motion`; pitch, yaw and roll are the components of the
    rotation vector about x, y and z, in radians. The paper predicts x, z and yaw for a car (KITTI) and all
    six in a city (SF).

    Each axis has bins of equal width between -limit and limit. The first and the last bin include values
    outside, so that each class can be a target: with K bins, the value v has the class floor((v + limit) / (2
    limit) K), clipped to 0..K-1. (In the authors' code, 20 edges make 21 intervals for 22 classes.) If
    `limits` is None, they are measured on the first data set that is passed to `dataset`: each limit is the
    95th percentile of the absolute motion of up to 5,000 clips, between frames that are drawn as in training.
    The limits are saved with the task.

    The two frames are up to `max_distance` frames apart (uniformly distributed), in either order, so that the
    car drives backward as often as forward. The motion between them is computed exactly from the steps in
    between. A clip whose motion is unknown (NaN) has no weight. Shortcuts that are avoided:

    - *The same crop of both frames*: different crops would look like a translation.
    - *No mirroring and no zoom*: they would change the side to which the camera moved, or the distance.

    `majority_accuracy` computes the accuracy of always predicting the most frequent bin of each axis. Compare
    the task's accuracy (the mean over axes) with it, since most motions of a car are in few bins.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D), with named stages.
        axes: names of the axes to predict, of "x", "y", "z", "pitch", "yaw" and "roll".
        limits: one positive number per axis, in the unit of `motion` (usually meters) for x, y and z, and in
            radians for the other axes; or None to measure them.
        bins: int, bins per axis, or one int for each axis; 20 in the paper.
        max_distance: int, the largest distance of the two frames; at most the length of the clip - 1.
        shift: float in 0..0.5, the largest random shift of both frames as a fraction of height and width.
        hidden: int, units of the top network.
        **kwargs: passed to keras.Model.

    Shapes:
        x: (B, 2, H, W, C), dtype of the frames. y: (B, A) float32, the motion along the A axes, NaN if it is
        unknown. Prediction: (B, A, K) float32 logits, where K is the largest number of bins; the rows of axes
        with fewer bins are filled up with -1e9.

    Raises:
        ValueError: `axes` are unknown or repeated, `limits` or `bins` are not positive or not one per axis, a
            number is out of range, or the encoder has no named stages; in `dataset`, clips have fewer than
            two frames or as many motions as frames, or there is no motion along an axis to measure.

    Reference: Agrawal, Carreira & Malik, "Learning to See by Moving", ICCV 2015.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1, 1))
        >>> task = kssl.tasks.EgoMotion(encoder, axes=("x", "y", "roll"), bins=(7, 7, 20))
        >>> task.compile("adam")
        >>> clips = kssl.data.moving_digits("test", pairs=1)
        >>> history = task.fit(task.dataset(clips, batch_size=60), verbose=0)
    """

    needs = ("frames", "motion")
    reader = staticmethod(read_clips)
    weight_decay = 5e-4  # as in the authors' code

    def __init__(
        self, encoder, axes=AXES, limits=None, bins=20, max_distance=7, shift=0.125, hidden=512,
        **kwargs,
    ):  # fmt: skip
        super().__init__(encoder, **kwargs)
        axes = tuple(axes)
        if not axes or not set(axes) <= set(AXES) or len(set(axes)) < len(axes):
            raise ValueError(f"axes must be distinct names of {', '.join(AXES)}, got {axes}")
        self.axes, self.bins = axes, _checked_bins(bins, axes)
        self.limits = None if limits is None else _checked_limits(limits, axes)
        check_integers(1, max_distance=max_distance, hidden=hidden)
        check_fraction("shift", shift, most=0.5)
        self.max_distance, self.shift, self.hidden = max_distance, shift, hidden
        self.maps = encoders.maps(encoder)
        shape = list(self.maps.output.values())[-1].shape[1:]
        self.top = layers.spatial_embedding(shape, hidden, name="top")
        self.head = keras.layers.Dense(sum(self.bins), dtype="float32", name="head")
        # 0 until the limits are measured.
        self.scale = self.add_weight(
            shape=(len(axes),), initializer="zeros", trainable=False, name="scale"
        )
        if limits is not None:
            self.scale.assign(self.limits)

    def pretext(self, batch, seed):
        pair, shift = split(seed, 2)
        first, second, motion = self._draw(batch["motion"], pair)
        frames = tf.stack(
            [tf.gather(batch["frames"], k, axis=1, batch_dims=1) for k in (first, second)], axis=1
        )
        # The seed is repeated: both frames are shifted by the same number of pixels.
        both = augment.random_shift(
            images.fold(frames), tf.repeat(shift, 2, axis=0), self.shift, flip=False
        )
        return images.unfold(both, 2), motion

    def _draw(self, steps, seed):
        """Draws two frames of each clip; returns their indices (B,) and the motion between them (B, A)."""
        number = steps.shape[1]  # of steps, T - 1
        farthest = min(self.max_distance, number)
        how_far, where, order = split(seed, 3)
        distance = 1 + integer(how_far, farthest)
        start = integer(where, number + 1 - distance)
        motion = tf.zeros_like(steps[:, 0], tf.float64)
        for k in range(farthest):
            step = tf.gather(steps, tf.minimum(start + k, number - 1), axis=1, batch_dims=1)
            # A step after the second frame, which may be unknown, is replaced by no motion.
            step = tf.where((k < distance)[:, None], step, tf.zeros_like(step))
            motion = poses.compose(motion, step)
        backward = integer(order, 2) == 1
        motion = tf.where(backward[:, None], poses.inverse(motion), motion)
        # If any number of a pose is unknown, all of it is unknown.
        known = tf.reduce_all(tf.math.is_finite(motion), axis=1, keepdims=True)
        motion = tf.where(known, motion, np.nan)
        motion = tf.gather(motion, [AXES.index(axis) for axis in self.axes], axis=1)
        end = start + distance
        first, second = tf.where(backward, end, start), tf.where(backward, start, end)
        return first, second, tf.cast(motion, tf.float32)

    def call(self, x, training=False):
        *_, deepest = self.maps(images.fold(x), training=training).values()
        both = images.unfold(deepest, 2)
        features = self.top(tf.concat([both[:, 0], both[:, 1]], axis=-1), training=training)
        rows, most = tf.split(self.head(features), self.bins, axis=-1), max(self.bins)
        rows = [
            tf.pad(row, [[0, 0], [0, most - number]], constant_values=IMPOSSIBLE)
            for row, number in zip(rows, self.bins, strict=True)
        ]
        return tf.stack(rows, axis=1)

    def late_labels(self, x, y, y_pred):
        scale = tf.convert_to_tensor(self.scale)
        known = tf.reduce_all(tf.math.is_finite(y) & (scale > 0), axis=1, keepdims=True)
        bins, y = tf.constant(self.bins, tf.float32), tf.where(known, y, 0.0)
        labels = tf.floor(tf.math.divide_no_nan(y + scale, 2 * scale) * bins)
        labels = tf.cast(tf.clip_by_value(labels, 0.0, bins - 1), tf.int32)
        return labels, tf.cast(tf.repeat(known, len(self.axes), axis=1), tf.float32)

    def dataset(self, images, *args, **kwargs):
        """Creates the training data as `PretextModel.dataset` does; the first call measures the limits."""
        _check_clips(images)
        made = super().dataset(images, *args, **kwargs)
        if not self.scale.numpy().any():
            self.measure(images)
        return made

    def measure(self, images):
        """Measures the limits of the axes, from up to 5,000 clips, evenly spaced in the data set.

        Args:
            images: tf.data.Dataset of dicts with `motion` and `id`.

        Raises:
            ValueError: no motion is known, or there is none along an axis.
        """
        every = -(-int(images.cardinality()) // MEASURED_CLIPS)
        found = []
        for batch in _motions(images, every).batch(250):
            seed = tf.stack([tf.zeros_like(batch["id"]), batch["id"]], axis=1)
            found.append(np.abs(self._draw(batch["motion"], seed)[2]))
        found = np.concatenate(found)
        found = found[np.isfinite(found).all(axis=1)]
        limits = np.quantile(found, INSIDE, axis=0) if len(found) else np.zeros(len(self.axes))
        for axis, limit in zip(self.axes, limits, strict=True):
            if not limit > 0:
                raise ValueError(
                    f"images have no motion along {axis!r} that could be measured: leave it out of axes, or "
                    "give limits"
                )
        self.scale.assign(limits)

    def majority_accuracy(self, batches):
        """Computes the accuracy of always predicting the most frequent bin of each axis.

        Args:
            batches: tf.data.Dataset of (x, y), from `dataset`.

        Returns:
            float, the mean over axes, as the metric `accuracy`; NaN if no motion is known.
        """
        labels = []
        for _, y in batches:
            found, known = self.late_labels(None, y, None)
            labels.append(found.numpy()[known.numpy()[:, 0] > 0])
        labels = np.concatenate(labels)
        if not len(labels):
            return math.nan
        return float(np.mean([np.bincount(axis).max() / len(labels) for axis in labels.T]))

    def preview(self, x, y, y_pred=None):
        rows = []
        for k, (frames, motion) in enumerate(zip(x, y, strict=True)):
            first = "first frame"
            if y_pred is not None:
                # The center of the bin.
                place = (y_pred[k].argmax(axis=-1) + 0.5) / self.bins * 2 - 1
                first = f"predicted {self.label_text(place * self.scale.numpy())}"
            rows.append([(frames[0], first), (frames[1], self.label_text(motion))])
        return rows

    def label_text(self, label):
        """Describes a motion, (A,) array, in previews: translation, then rotation in degrees."""
        if not np.isfinite(label).all():
            return "unknown motion"
        values = dict(zip(self.axes, label.tolist(), strict=True))
        # Adding 0 removes the sign of -0.
        moved = [f"{axis} {values[axis] + 0:.3g}" for axis in AXES[:3] if axis in values]
        turned = [
            f"{axis} {round(math.degrees(values[axis]))}\N{DEGREE SIGN}"
            for axis in AXES[3:]
            if axis in values
        ]
        return "\n".join(" ".join(part) for part in (moved, turned) if part)


def _check_clips(images):
    spec = getattr(images, "element_spec", None)
    if not isinstance(spec, dict) or not {"frames", "motion"} <= spec.keys():
        return  # `PretextModel.dataset` reports what is missing
    frames, motion = spec["frames"].shape, spec["motion"].shape
    number = frames[0] if frames.rank == 4 else None
    if number is None or number < 2 or motion.rank != 2 or motion.as_list() != [number - 1, 6]:
        raise ValueError(
            "images must yield clips of a fixed number T >= 2 of `frames` (T, H, W, C), and `motion` "
            f"(T - 1, 6), got {frames} and {motion}: use from_rgbd(..., frames=T)"
        )


def _motions(images, every):
    """Returns every n-th row, without the image, which need not be loaded if `motion` is a column."""
    columns = getattr(images, "columns", {})
    if "motion" in columns:
        rows = tf.data.Dataset.from_tensor_slices({k: columns[k] for k in ("id", "motion")})
        return rows.shard(every, 0)
    rows = pipeline.shard(images, (0, every)).ignore_errors()
    return rows.map(lambda row: {name: row[name] for name in ("id", "motion")})


def _checked_bins(bins, axes):
    bins = tuple(bins) if np.ndim(bins) else (bins,) * len(axes)
    if len(bins) != len(axes):
        raise ValueError(f"bins must be an int, or one for each of {len(axes)} axes, got {bins}")
    for number in bins:
        check_integer("bins", number, minimum=2)
    return bins


def _checked_limits(limits, axes):
    limits = tuple(limits) if np.ndim(limits) else (limits,)
    if len(limits) != len(axes) or not all(is_number(v) and 0 < v < math.inf for v in limits):
        raise ValueError(
            f"limits must be {len(axes)} positive numbers, one for each axis, got {limits}"
        )
    return limits
