"""Order prediction (OPN): sorts four shuffled frames of a clip."""

import itertools

import keras
import tensorflow as tf

from keras_ssl import encoders, layers
from keras_ssl.arguments import check_integer
from keras_ssl.ops import images
from keras_ssl.ops.random import integer, split
from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.temporal import clips

# An order and its reverse are one class, since many motions look natural in both directions (section 3).
ORDERS = tuple(order for order in itertools.permutations(range(4)) if order[0] < order[-1])


@keras.saving.register_keras_serializable(package="keras_ssl")
class OrderPrediction(PretextModel):
    """Predicts which of 12 orders four frames of a clip are in.

    Sorting is harder than verifying an order: the network has to compare all frames. Each frame passes
    through the same encoder and embedding. The difference of each of the six pairs of embeddings passes
    through the same pair layer, and the six outputs are concatenated and classified (section 4).

    The four frames are consecutive, and drawn where there is much motion. An order and its reverse are the
    same class, so there are 4! / 2 = 12 classes, and both are drawn equally often. Shortcuts that are
    avoided:

    - *The same crop and mirroring* of all frames: different ones would look like motion.
    - *Jitter*: each frame is shifted separately by up to 5 % of its size, so that it is not enough to detect
      a slow drift of the camera or to track low-level features such as edges (section 3.2).
    - *One color channel per frame* (`split_channels`): otherwise the network compares colors (section 3.2).

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D), with named stages.
        shift: float in 0..0.5, the largest random shift of all frames as a fraction of height and width.
        jitter: float in 0..0.5, the largest random shift of each frame.
        split_channels: bool, whether to keep one random color channel of each frame.
        hidden: int, units of the embedding of a frame, and of the pair layer.
        **kwargs: passed to keras.Model.

    Shapes:
        x: (B, 4, H, W, C), dtype of the frames. y: (B,) int32, the index in `ORDERS` of the order of the
        frames or of the reversed frames: frame k of x, or of its reverse, is frame ORDERS[y][k] of the clip.
        Prediction: (B, 12) float32 logits.

    Raises:
        ValueError: `shift` or `jitter` is not in 0..0.5, `hidden` is below 1, `split_channels` is not a bool,
            or the encoder has no named stages; in `dataset`, clips have fewer than four frames.

    Reference: Lee, Huang, Singh & Yang, "Unsupervised Representation Learning by Sorting Sequences", ICCV
    2017.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1, 1))
        >>> task = kssl.tasks.OrderPrediction(encoder)
        >>> task.compile("adam")
        >>> clips = kssl.data.scenes(32, size=32, frames=4)
        >>> history = task.fit(task.dataset(clips, batch_size=16), verbose=0)
    """

    needs = ("frames",)
    label_name = "order"
    weight_decay = 5e-4  # as in the authors' code

    def __init__(
        self, encoder, shift=0.125, jitter=0.05, split_channels=True, hidden=256, **kwargs
    ):
        super().__init__(encoder, **kwargs)
        clips.check_augmentation(shift, jitter, split_channels)
        check_integer("hidden", hidden, 1)
        self.shift, self.jitter = shift, jitter
        self.split_channels, self.hidden = split_channels, hidden
        self.maps = encoders.maps(encoder)
        shape = list(self.maps.output.values())[-1].shape[1:]
        self.embedding = layers.spatial_embedding(shape, hidden, name="embedding")
        self.pair_layer = keras.layers.Dense(hidden, activation="relu", name="pair_layer")
        self.head = keras.layers.Dense(len(ORDERS), dtype="float32", name="head")

    def pretext(self, batch, seed):
        window, which, reverse, change = split(seed, 4)
        four = clips.draw_window(batch["frames"], window, 4)
        label = integer(which, len(ORDERS))
        four = clips.reordered(four, ORDERS, label, integer(reverse, 2))
        return clips.augment_frames(
            four, change, self.shift, self.jitter, self.split_channels
        ), label

    def dataset(self, images, *args, **kwargs):
        clips.check_length(images, 4)
        return super().dataset(images, *args, **kwargs)

    dataset.__doc__ = PretextModel.dataset.__doc__

    def call(self, x, training=False):
        *_, deepest = self.maps(images.fold(x), training=training).values()
        embedded = images.unfold(self.embedding(deepest, training=training), 4)
        pairs = self.pair_layer(clips.differences(embedded))
        return self.head(tf.reshape(pairs, [-1, 6 * self.hidden]))

    def label_text(self, label):
        return "-".join(str(k + 1) for k in ORDERS[label])
