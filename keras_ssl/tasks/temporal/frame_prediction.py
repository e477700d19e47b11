"""Frame prediction: the future from the past, the past from the present, the hidden from the visible."""

import itertools

import keras
import tensorflow as tf

from keras_ssl import encoders, layers, losses, metrics, plotting
from keras_ssl.arguments import check_integers, check_not_negative
from keras_ssl.ops import images, masks
from keras_ssl.ops.random import split
from keras_ssl.tasks.temporal import clips
from keras_ssl.training import adversarial as adversary
from keras_ssl.training import optimizers

TARGETS = ("future", "past", "top", "hidden")


@keras.saving.register_keras_serializable(package="keras_ssl")
class FramePrediction(adversary.AdversarialModel):
    """Predicts a frame of a clip, or a part of it, from other frames or parts.

    To know where something will be, the network has to find it in the frames, and to know how such things
    move. `target` selects the prediction:

    - *"future"*: the frame after `context` frames; *"past"*: the frame before them, which is the same task on
      the reversed clip.
    - *"top"*: the upper half of the last of `context` frames; only the lower half of all of them is visible.
    - *"hidden"*: up to a quarter of the last frame, behind four rectangles that stand still in all frames.

    Each frame passes through the same encoder, so this is an encoder of single images. The maps of all frames
    are stacked at each stage, and a decoder with skip connections computes two things for each pixel: weights
    for the pixels of the last frame up to `reach` around it, whose weighted mean is what has moved there, and
    the remaining change. So things that move or stand still need not be painted again. Hidden pixels have the
    mean color of the visible pixels of their frame.

    Errors are squared or absolute. The gradient difference loss keeps edges sharp; an adversarial loss, whose
    discriminator sees the given frames, too, is optional.

    PSNR is computed where something moves (or is hidden), since the rest is easy; clips without any such
    pixel have no weight. `evaluation.frame_prediction` compares it with copying the last frame and with
    linear extrapolation.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D), with named stages.
        target: "future", "past", "top" or "hidden".
        context: int, frames that are given; at least 2.
        reach: int, maximum motion between frames along each axis, in pixels.
        norm: 1 for absolute errors of pixels, 2 for squared ones.
        gradient: float, weight of the gradient difference loss.
        adversarial: float, weight of the adversarial loss; 0 for no discriminator.
        shift: float in 0..0.5, the largest random shift of all frames as a fraction of height and width.
        filters: int, of the discriminator's first convolution.
        **kwargs: passed to keras.Model.

    Shapes:
        x: (B, context, H, W, 3) float32 in 0..255, of which the last frame is next to the predicted one.
        y: (B, H, W, 4) float32, the frame in -1..1 and a mask, 1 where something moves (see
        `clips.moving_area`) or, for "top" and "hidden", is hidden. Prediction: (B, H, W, 3) float32,
        about -1..1.

    Raises:
        ValueError: `target` is unknown, a number is out of range, or the encoder does not take 3 channels of
            fixed size, or has no named stages; in `dataset`, clips have too few frames.

    Reference: Mathieu, Couprie & LeCun, "Deep Multi-Scale Video Prediction Beyond Mean Square Error", ICLR
    2016.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=8, blocks=(1, 1))
        >>> task = kssl.tasks.FramePrediction(encoder, target="past")
        >>> task.compile("adam")
        >>> clips = kssl.data.scenes(32, size=32, frames=5)
        >>> history = task.fit(task.dataset(clips, batch_size=16), verbose=0)
    """

    needs = ("frames",)

    def __init__(
        self, encoder, target="future", context=4, reach=3, norm=2, gradient=0.1, adversarial=0.0,
        shift=0.125, filters=16, **kwargs,
    ):  # fmt: skip
        check_not_negative("adversarial", adversarial)
        super().__init__(encoder, adversarial, task_weight=1.0, **kwargs)
        if target not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
        check_integers(2, context=context)
        check_integers(1, reach=reach, filters=filters)
        clips.check_augmentation(shift)
        self.target, self.context, self.norm, self.gradient = target, context, norm, gradient
        self.reach, self.shift, self.filters = reach, shift, filters
        losses.GradientDifference(norm, gradient)  # checks them
        height, width = encoders.check_image_shape(encoder)
        self.maps = encoders.maps(encoder)
        shapes = [stage.shape[1:] for stage in self.maps.output.values()]
        self.stack = [
            keras.layers.Conv2D(
                shape[-1], 3, padding="same", activation="relu", dtype=self.dtype_policy
            )
            for shape in shapes
        ]
        self.decoder = layers.Decoder(
            shapes[-1], (height, width), skips=shapes[:-1], dtype=self.dtype_policy
        )
        self.refine = keras.layers.Conv2D(
            32, 3, padding="same", activation="relu", dtype=self.dtype_policy
        )
        small = keras.initializers.RandomNormal(stddev=0.01)  # predicts a blurred last frame first
        self.head = keras.layers.Conv2D(
            (2 * reach + 1) ** 2 + 3, 3, padding="same", kernel_initializer=small, dtype="float32",
            name="head",
        )  # fmt: skip
        for layer, shape in zip(self.stack, shapes, strict=True):
            layer.build((None, *shape[:2], context * shape[-1]))
        self.decoder.build()
        self.refine.build((None, height, width, self.decoder.filters))
        self.head.build((None, height, width, self.refine.filters))
        if adversarial:
            self.discriminator = adversary.discriminator(
                height, width, 3 * (context + 1), filters, dtype=self.dtype_policy
            )

    def pretext(self, batch, seed):
        window, change, hole = split(seed, 3)
        frames = batch["frames"]
        if self.target == "past":
            frames = frames[:, ::-1]
        frames = clips.draw_window(frames, window, self._length())
        frames = tf.cast(clips.augment_frames(frames, change, self.shift), tf.float32)
        truth = frames[:, -1] / 127.5 - 1
        if not self._hides():
            moving = clips.moving_area(frames[:, -3:])
            return frames[:, :-1], tf.concat([truth, moving], axis=-1)
        hidden = self._hidden(hole, *frames.shape[2:4])
        # The mean of the visible pixels: the input must not depend on the hidden ones.
        visible = 1 - hidden[:, None]
        number = tf.reduce_sum(visible, axis=[2, 3], keepdims=True)
        mean = tf.reduce_sum(visible * frames, axis=[2, 3], keepdims=True) / number
        return tf.where(visible > 0, frames, mean), tf.concat([truth, hidden], axis=-1)

    def _length(self):
        """Returns how many frames of a clip are used."""
        return self.context if self._hides() else self.context + 1

    def _hides(self):
        return self.target in ("top", "hidden")

    def _hidden(self, seed, height, width):
        if self.target == "hidden":
            return masks.blocks(seed, height, width)
        top = tf.cast(tf.range(height) < height // 2, tf.float32)
        return tf.tile(top[None, :, None, None], [tf.shape(seed)[0], 1, width, 1])

    def dataset(self, images, *args, **kwargs):
        clips.check_length(images, self._length())
        return super().dataset(images, *args, **kwargs)

    dataset.__doc__ = adversary.AdversarialModel.dataset.__doc__

    def call(self, x, training=False):
        maps = self.maps(images.fold(x), training=training).values()
        stacked = []
        for layer, each in zip(self.stack, maps, strict=True):
            # Frames as channels: (B, h, w, context * c).
            frames = tf.unstack(images.unfold(each, self.context), axis=1)
            stacked.append(layer(tf.concat(frames, axis=-1)))
        decoded = self.decoder(stacked[-1], skips=stacked[:-1], training=training)
        output = self.head(self.refine(decoded))
        return self._move(x[:, -1] / 127.5 - 1, output[..., 3:]) + output[..., :3]

    def _move(self, frame, logits):
        """Computes for each pixel a weighted mean of the pixels up to `reach` around it."""
        margin, (height, width) = [self.reach, self.reach], frame.shape[1:3]
        padded = tf.pad(frame, [[0, 0], margin, margin, [0, 0]], "SYMMETRIC")
        # Shifts are computed one by one: extracting patches for all of them would take twice as long.
        weights = tf.unstack(tf.transpose(tf.nn.softmax(logits), [3, 0, 1, 2])[..., None])
        shifts = itertools.product(range(2 * self.reach + 1), repeat=2)
        return tf.add_n(
            [
                weight * padded[:, row : row + height, column : column + width]
                for weight, (row, column) in zip(weights, shifts, strict=True)
            ]
        )

    def discriminator_inputs(self, x, y, y_pred):
        # With the given frames: whether a frame is plausible depends on the frames before it (section 3).
        given = tf.concat(tf.unstack(x / 127.5 - 1, axis=1), axis=-1)
        image, mask = y[..., :3], y[..., 3:]
        fake = tf.where(mask > 0, y_pred, image) if self._hides() else y_pred
        real, fake = (tf.concat([given, last], axis=-1) for last in (image, fake))
        return [real], [fake]

    def late_labels(self, x, y, y_pred):
        counts = tf.reduce_any(y[..., 3] > 0, axis=[1, 2])
        return y, tf.cast(counts, tf.float32)

    def reconstruct(self, x, y, y_pred):
        """Returns the predicted frames, (B, H, W, 3) float32 in 0..255; visible pixels are unchanged."""
        image = tf.clip_by_value(127.5 * (y_pred + 1), 0, 255)
        return tf.where(y[..., 3:] > 0, image, x[:, -1]) if self._hides() else image

    def baselines(self, x, y):
        """Returns predictions that need no network: a dict of (B, H, W, 3) float32 tensors in 0..255.

        For "future" and "past" these are `copy`, the last frame, and `extrapolation`, the last frame plus the
        last change. For "top" and "hidden" they are `mean`, the mean color of the visible pixels, and
        `mirror`, the visible pixels mirrored at the horizontal center line.
        """
        last, before = x[:, -1], x[:, -2]
        if not self._hides():
            return {"copy": last, "extrapolation": tf.clip_by_value(2 * last - before, 0, 255)}
        return {"mean": last, "mirror": tf.where(y[..., 3:] > 0, last[:, ::-1], last)}

    def preview(self, x, y, y_pred=None):
        frames = [(x[:, k], f"given {k + 1}") for k in range(self.context)]
        truth = 127.5 * (y[..., :3] + 1)
        if y_pred is None:
            return plotting.side_by_side([*frames, (truth, "truth")])
        image = self.reconstruct(x, y, y_pred)
        error = abs(image - truth)
        return plotting.side_by_side(
            [*frames, (image, "prediction"), (truth, "truth"), (error, "error")]
        )

    def default_loss(self):
        # For targets without hidden pixels, all pixels are trained, including those that stand still.
        outside = 0.0 if self._hides() else 1.0
        return losses.GradientDifference(self.norm, self.gradient, outside)

    def default_metrics(self):
        return [metrics.PSNR()]

    def default_optimizer(self, steps, learning_rate=1e-3):
        return optimizers.adam_cosine(learning_rate, steps, beta_1=0.5)
