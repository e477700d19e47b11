"""Temporal order (Shuffle & Learn): predicts whether three frames are in order."""

import keras
import tensorflow as tf

from keras_ssl import encoders, layers
from keras_ssl.arguments import check_integer
from keras_ssl.ops import images
from keras_ssl.ops.random import integer, split
from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.temporal import clips

# Of five frames a, b, c, d, e. The first and the last of the three are always b and d.
TRIPLETS = ((1, 0, 3), (1, 4, 3), (1, 2, 3), (1, 2, 3))
LABELS = (0, 0, 1, 1)


@keras.saving.register_keras_serializable(package="keras_ssl")
class TemporalOrder(PretextModel):
    """Predicts whether the second of three frames of a clip was recorded between the others.

    To know whether a frame fits between two others, the network has to find the same things in all frames,
    and to know how they move and what poses they can take. Each frame passes through the same encoder and
    embedding; the differences of the three pairs of embeddings are classified.

    The three frames are taken from five consecutive ones a, b, c, d, e: (b, c, d) is in order, (b, a, d) and
    (b, e, d) are not (section 3.1). Half of the tuples are in order, and half of each class are reversed. The
    five frames are drawn where there is much motion: without motion there is no order. Shortcuts that are
    avoided:

    - *The same first and last frames* in both classes: anything that these two frames alone show, such as
      their distance in time, predicts nothing. A reversed tuple is in order if the tuple is.
    - *The same crop and mirroring* of all frames: different ones would look like motion.
    - *Jitter*: each frame is shifted separately by more than a slow drift of the camera, which would reveal
      the order without any content.
    - *One color channel per frame*, drawn for each frame, if `split_channels`: color errors of lens and
      compression, and drifting colors, would reveal the order in the same way.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D), with named stages.
        shift: float in 0..0.5, the largest random shift of all frames as a fraction of height and width.
        jitter: float in 0..0.5, the largest random shift of each frame.
        split_channels: bool, whether to keep one random color channel of each frame.
        hidden: int, units of the embedding of a frame, and of the layer after it.
        **kwargs: passed to keras.Model.

    Shapes:
        x: (B, 3, H, W, C), dtype of the frames. y: (B,) int32, 1 if the frames are in order, or else 0.
        Prediction: (B, 2) float32 logits.

    Raises:
        ValueError: `shift` or `jitter` is not in 0..0.5, `hidden` is below 1, `split_channels` is not a bool,
            or the encoder has no named stages; in `dataset`, clips have fewer than five frames.

    Reference: Misra, Zitnick & Hebert, "Shuffle and Learn: Unsupervised Learning using Temporal Order
    Verification", ECCV 2016.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1, 1))
        >>> task = kssl.tasks.TemporalOrder(encoder)
        >>> task.compile("adam")
        >>> clips = kssl.data.scenes(32, size=32, frames=5)
        >>> history = task.fit(task.dataset(clips, batch_size=16), verbose=0)
    """

    needs = ("frames",)
    label_name = "order"
    weight_decay = 5e-4  # as in the authors' code

    def __init__(
        self, encoder, shift=0.125, jitter=0.03, split_channels=False, hidden=256, **kwargs
    ):
        super().__init__(encoder, **kwargs)
        clips.check_augmentation(shift, jitter, split_channels)
        check_integer("hidden", hidden, 1)
        self.shift, self.jitter = shift, jitter
        self.split_channels, self.hidden = split_channels, hidden
        self.maps = encoders.maps(encoder)
        shape = list(self.maps.output.values())[-1].shape[1:]
        self.embedding = layers.spatial_embedding(shape, hidden, name="embedding")
        # Not a single layer: whether c is between b and d depends on all three differences together.
        self.classifier = keras.Sequential(
            [
                keras.layers.Dense(hidden, activation="relu"),
                keras.layers.Dense(2, dtype="float32"),
            ],
            name="classifier",
        )

    def pretext(self, batch, seed):
        window, kind, reverse, change = split(seed, 4)
        five = clips.draw_window(batch["frames"], window, 5)
        drawn = integer(kind, len(TRIPLETS))
        three = clips.reordered(five, TRIPLETS, drawn, integer(reverse, 2))
        x = clips.augment_frames(three, change, self.shift, self.jitter, self.split_channels)
        return x, tf.gather(LABELS, drawn)

    def dataset(self, images, *args, **kwargs):
        clips.check_length(images, 5)
        return super().dataset(images, *args, **kwargs)

    dataset.__doc__ = PretextModel.dataset.__doc__

    def call(self, x, training=False):
        *_, deepest = self.maps(images.fold(x), training=training).values()
        embedded = images.unfold(self.embedding(deepest, training=training), 3)
        pairs = clips.differences(embedded)
        return self.classifier(tf.reshape(pairs, [-1, 3 * self.hidden]))

    def label_text(self, label):
        return "right" if label == 1 else "wrong"
