"""CPC over time: predicts the next frames from earlier ones."""

import functools

import keras
import numpy as np
import tensorflow as tf

from keras_ssl import encoders, losses, metrics
from keras_ssl.arguments import check_integers
from keras_ssl.losses.local import predicted_scores
from keras_ssl.ops.random import split
from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.temporal import clips
from keras_ssl.training import optimizers

SCALE = 0.1  # of predictions: large scores at the start would only make the loss large


@keras.saving.register_keras_serializable(package="keras_ssl")
class CPCFrames(PretextModel):
    """Predicts the features of the next frames of a clip from the features of earlier frames.

    The encoder computes the features of each frame separately, and a causal network summarizes frame t and up
    to `blocks` frames before it in a context. From this context the features of the frames after t are
    predicted, and each predicted frame has to be found among all frames of all clips of the batch. The
    content of a frame distinguishes it from frames of other clips, and changes distinguish it from other
    frames of its own clip. There are shortcuts:

    - *Batch normalization* in the encoder makes each frame depend on all others, including those to be
      predicted. The command builds `encoders.resnet(normalization="layer")`.
    - *Color* stays the same in all frames of a clip. `split_channels` keeps one random channel of each frame.
    - *Things that stand still* can be found by comparing pixels. So each frame is shifted separately by up to
      `jitter`.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D), without batch normalization.
        frames: int, consecutive frames of a clip that are used, drawn where there is much motion.
        ignore: int, frames after the context that are not predicted.
        steps: int, frames that are predicted after the ignored ones.
        blocks: int, residual blocks of the causal network, each of which sees one more earlier frame.
        hidden: int, channels in its blocks.
        dimensions: int, of the embeddings that are compared.
        shift: float in 0..0.5, the largest random shift of all frames as a fraction of height and width.
        jitter: float in 0..0.5, the largest random shift of each frame.
        split_channels: bool, whether to keep one random color channel of each frame.
        **kwargs: passed to keras.Model.

    Shapes:
        x: (B, frames, H, W, C), dtype of the frames. y: (B,) int64, the ids, which are not used. Prediction:
        (B, 1 + steps, frames, 1, dimensions) float32: the embedding of each frame, then its predictions from
        ignore + 1, ignore + 2, ... frames before, which are 0 in the first frames.

    Raises:
        ValueError: a number is out of range, or the frames are too few for the steps; in `dataset`, clips
            have too few frames.

    Warns:
        UserWarning: the encoder has batch normalization.

    Reference: van den Oord, Li & Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1, 1), normalization="layer")
        >>> task = kssl.tasks.CPCFrames(encoder, hidden=16)
        >>> task.compile("adam")
        >>> clips = kssl.data.scenes(32, size=32, frames=5)
        >>> history = task.fit(task.dataset(clips, batch_size=16), verbose=0)
    """

    needs = ("frames",)
    architecture = staticmethod(functools.partial(encoders.resnet, normalization="layer"))

    def __init__(
        self, encoder, frames=5, ignore=0, steps=3, blocks=4, hidden=256, dimensions=64, shift=0.125,
        jitter=0.03, split_channels=True, **kwargs,
    ):  # fmt: skip
        super().__init__(encoder, **kwargs)
        check_integers(2, frames=frames)
        check_integers(0, ignore=ignore)
        check_integers(1, steps=steps, blocks=blocks, hidden=hidden, dimensions=dimensions)
        if ignore + steps >= frames:
            raise ValueError(
                f"frames={frames} are too few for ignore={ignore} and steps={steps}, which need "
                f"{ignore + steps + 1}: use longer clips or fewer steps"
            )
        clips.check_augmentation(shift, jitter, split_channels)
        encoders.warn_of_batch_normalization(encoder, "frame")
        self.frames, self.ignore, self.steps = frames, ignore, steps
        self.blocks, self.hidden, self.dimensions = blocks, hidden, dimensions
        self.shift, self.jitter, self.split_channels = shift, jitter, split_channels
        self.context = _causal(encoder.output_shape[-1], hidden, blocks)
        self.target = _linear(dimensions, "target")
        self.predictors = [_linear(dimensions, f"predictor{k + 1}") for k in range(steps)]

    def pretext(self, batch, seed):
        window, change = split(seed, 2)
        frames = clips.draw_window(batch["frames"], window, self.frames)
        x = clips.augment_frames(frames, change, self.shift, self.jitter, self.split_channels)
        return x, batch["id"]

    def dataset(self, images, *args, **kwargs):
        clips.check_length(images, self.frames)
        return super().dataset(images, *args, **kwargs)

    dataset.__doc__ = PretextModel.dataset.__doc__

    def call(self, x, training=False):
        features = encoders.each(self.encoder, x, training)
        context = self.context(features, training=training)
        slots = [self.target(features)]
        for after, predictor in enumerate(self.predictors, self.ignore + 1):
            predicted = SCALE * predictor(context[:, :-after])
            slots.append(tf.pad(predicted, [[0, 0], [after, 0], [0, 0]]))
        return tf.stack(slots, axis=1)[:, :, :, None]  # frames are rows of a single column

    def default_loss(self):
        return losses.PredictiveCoding(self.ignore + 1)

    def default_metrics(self):
        return [metrics.FoundPositions(self.ignore + 1)]

    def default_optimizer(self, steps, learning_rate=1e-3):
        return optimizers.adam_cosine(learning_rate, steps)

    def preview(self, x, y, y_pred=None):
        # The prediction over the shortest distance, and whether its frame is found.
        first, found = self.ignore + 1, [[""] * (self.frames - self.ignore - 1)] * len(x)
        if y_pred is not None:
            scores, label = next(predicted_scores(tf.constant(y_pred), first))
            right = np.argmax(scores, axis=-1) == label.numpy()
            found = [[", found" if r else ", not found" for r in row] for row in right]
        return [
            [
                (image, f"frame {k + 1}" + (texts[k - first] if k >= first else ", context only"))
                for k, image in enumerate(frames)
            ]
            for frames, texts in zip(x, found, strict=True)
        ]


def _causal(channels, hidden, blocks):
    """Builds a residual network from (B, T, channels), whose output t depends only on the frames up to t."""
    x = inputs = keras.Input((None, channels))
    for _ in range(blocks):
        y = keras.layers.Conv1D(hidden, 2, padding="causal", activation="relu")(x)
        x = keras.layers.Add()([x, keras.layers.Conv1D(channels, 1)(y)])
    return keras.Model(inputs, keras.layers.ReLU()(x), name="context")


def _linear(dimensions, name):
    return keras.layers.Dense(dimensions, use_bias=False, dtype="float32", name=name)
