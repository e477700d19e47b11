"""Cross-modal distillation: an encoder of depth learns the features of an encoder of images."""

import keras
import tensorflow as tf

from keras_ssl import data, encoders, losses, plotting
from keras_ssl.ops import depth
from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.crossmodal import pairs
from keras_ssl.training import momentum, optimizers


@keras.saving.register_keras_serializable(package="keras_ssl")
class DepthDistillation(PretextModel):
    """Trains an encoder of depth maps to output the features that a trained encoder computes for the image.

    There are many images to learn from, and few depth maps. A pair of an image and a depth map needs no
    label: the student has to recognize in the depth map what the teacher recognizes in the image, feature by
    feature and position by position.

    The teacher is copied and saved with the task. It is not trained, and its batch normalization uses the
    statistics that it was trained with. Features and export are those of the student. Their inputs are depth
    maps that `ops.depth.to_image` has converted to pixels, not images.

    Image and depth are shifted and flipped alike, and not zoomed.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D) with named stages, the student. To start
            with the teacher's weights, load the teacher's file a second time by `kssl.load`.
        teacher: such a model, trained on images, e.g. `kssl.load("simclr_cifar10")`.
        stage: str such as "stage1", the stage whose feature map is learned, by default the last one. The map
            must have the same shape in both networks. Layers after it are not trained and keep the weights of
            `encoder`.
        near, far: float, meters, the range of depth that the encoder sees.
        **kwargs: passed to keras.Model.

    Shapes:
        x: dict of `image` and `depth`, (B, H, W, 3) float32 in 0..255. y: (B,) int64, the ids, which are not
        used. Prediction: (B, 2, h, w, c) float32, the feature maps of student and teacher.

    Raises:
        ValueError: `near` and `far` are not 0 < near < far; an encoder does not take 3 channels of fixed
            size; `stage` is not a stage of both encoders; inputs or feature maps have different shapes.

    Reference: Gupta, Hoffman & Malik, "Cross Modal Distillation for Supervision Transfer", CVPR 2016.

    Example:
        >>> import keras_ssl as kssl
        >>> digits = kssl.data.to_arrays(kssl.data.digits("test"))["image"]
        >>> images = kssl.data.from_array(digits, depth=1 + digits[..., :1] / 255)
        >>> teacher, encoder = (kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1,)) for _ in range(2))
        >>> task = kssl.tasks.DepthDistillation(encoder, teacher)     # better one that has been trained
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(images, batch_size=60), verbose=0)
    """

    needs = ("image", "depth")
    reader = staticmethod(data.from_stereo)
    networks = ("encoder", "teacher")

    def __init__(self, encoder, teacher, stage=None, near=0.5, far=100.0, **kwargs):
        super().__init__(encoder, **kwargs)
        encoders.check_encoder(teacher)
        sizes = [encoders.check_image_shape(network) for network in (encoder, teacher)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"teacher must take images of the encoder's size, {sizes[0]}, got {sizes[1]}"
            )
        maps = [encoders.maps(network).output for network in (encoder, teacher)]
        stage = list(maps[0])[-1] if stage is None else stage
        if not all(stage in outputs for outputs in maps):
            raise ValueError(
                f"stage must be a stage of encoder and teacher, which have {list(maps[0])} and "
                f"{list(maps[1])}, got {stage!r}"
            )
        shapes = [outputs[stage].shape[1:] for outputs in maps]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"encoder must have the teacher's {stage} of {shapes[1]}, got {shapes[0]}: build it with the "
                "same width and stem, or choose another stage"
            )
        depth.check_range(near, far)
        self.stage, self.near, self.far = stage, near, far
        self.teacher = momentum.twin(teacher)  # the user's model remains trainable
        self.student_map, self.teacher_map = (
            keras.Model(network.input, network.get_layer(stage).output)
            for network in (encoder, self.teacher)
        )

    def pretext(self, batch, seed):
        image, distance = pairs.shifted(batch, seed)
        x = {"image": image, "depth": depth.to_image(distance, self.near, self.far)}
        return x, batch["id"]

    def call(self, x, training=False):
        student = self.student_map(x["depth"], training=training)
        teacher = self.teacher_map(x["image"], training=False)
        return tf.stack([tf.cast(m, tf.float32) for m in (student, teacher)], axis=1)

    def preview(self, x, y, y_pred=None):
        columns = [(x["image"], "image"), (pairs.shades(x["depth"], x["depth"]), "depth")]
        if y_pred is not None:
            # The mean of the channels, on the same scale for both networks.
            strength = tf.reduce_mean(y_pred, axis=-1, keepdims=True)
            strength *= 255 / tf.maximum(
                tf.reduce_max(strength, axis=[1, 2, 3], keepdims=True), 1e-6
            )
            columns.append((strength[:, 1], "teacher's map"))
            columns.append((strength[:, 0], "student's map"))
        return plotting.side_by_side(columns)

    def default_loss(self):
        return losses.Distillation()

    def default_metrics(self):
        return []

    def default_optimizer(self, steps, learning_rate=1e-3):
        return optimizers.adam_cosine(learning_rate, steps)
