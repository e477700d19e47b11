"""Moving objects: predicts from a single frame which pixels move."""

import keras
import tensorflow as tf

from keras_ssl import encoders, layers, losses, metrics, plotting
from keras_ssl.ops import augment
from keras_ssl.pretext import PretextModel
from keras_ssl.training import optimizers


@keras.saving.register_keras_serializable(package="keras_ssl")
class MovingObjects(PretextModel):
    """Predicts the mask of the moving pixels of a clip from its middle frame alone.

    Pixels that move together are an object (section 1). `data.with_motion_masks` computes the labels from the
    motion in the clip; its file contains this half of the method. The network sees only one frame, without
    motion, so it has to recognize things that can move, such as people and vehicles, and their outlines.

    Uncertain pixels have no loss. An image in which nothing moves has no loss either, since things that stand
    still in it move in other clips. Image and mask are shifted and flipped alike.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D), with named stages.
        **kwargs: passed to keras.Model.

    Shapes:
        x: (B, H, W, 3) float32 in 0..255. y: (B, H, W, 1) float32, 1 where something moves, 0 where nothing
        does, NaN where it is uncertain. Prediction: (B, H, W, 1) float32 logits.

    Raises:
        ValueError: the encoder does not take 3 channels of fixed size or has no named stages.

    Reference: Pathak, Girshick, Dollar, Darrell & Hariharan, "Learning Features by Watching Objects Move",
    CVPR 2017.

    Example:
        >>> import keras_ssl as kssl
        >>> clips = kssl.data.scenes(64, size=32, frames=3)                                    # exact masks
        >>> task = kssl.tasks.MovingObjects(kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1, 1)))
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(clips, batch_size=32), verbose=0)
    """

    needs = ("image", "moving")

    def __init__(self, encoder, **kwargs):
        super().__init__(encoder, **kwargs)
        size = encoders.check_image_shape(encoder)
        self.maps = encoders.maps(encoder)
        shape = list(self.maps.output.values())[-1].shape[1:]
        self.decoder = layers.half_size_decoder(shape, size, self.dtype_policy)
        self.head = keras.layers.Conv2D(1, 1, dtype="float32", name="head")

    def pretext(self, batch, seed):
        both = [tf.cast(batch[name], tf.float32) for name in self.needs]
        both = augment.random_shift(tf.concat(both, axis=-1), seed, fraction=0.125, flip=True)
        return both[..., :3], both[..., 3:]

    def call(self, x, training=False):
        *_, deepest = self.maps(x, training=training).values()
        half = self.head(self.decoder(deepest, training=training))
        return tf.image.resize(half, x.shape[1:3])

    def prediction(self, images):
        return {"moving": tf.sigmoid(self(images))}

    def preview(self, x, y, y_pred=None):
        def drawn(masks):
            return [plotting.columns({"moving": mask})[0][0] for mask in masks]

        columns = [(x, "image"), (drawn(y), "moving (gray: unknown)")]
        if y_pred is not None:
            columns.append((drawn(tf.sigmoid(y_pred).numpy()), "predicted"))
        return plotting.side_by_side(columns)

    def default_loss(self):
        return losses.TrimapCrossEntropy()

    def default_metrics(self):
        return [metrics.MaskIoU()]

    def default_optimizer(self, steps, learning_rate=1e-3):
        return optimizers.adam_cosine(learning_rate, steps)
