"""RGB and depth: predicts the depth map of an image, and the image of a depth map."""

import math

import keras
import tensorflow as tf

from keras_ssl import data, encoders, layers, losses, metrics, plotting
from keras_ssl.ops import depth
from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.crossmodal import pairs
from keras_ssl.training import optimizers


@keras.saving.register_keras_serializable(package="keras_ssl")
class RGBDepth(PretextModel):
    """Predicts the depth map of an image by one encoder, and the image of a depth map by another.

    To predict from one image how far away things are, a network has to know how large they are, how they are
    lit, and which of them are in front of others. To predict from depth what an image looks like, it has to
    recognize objects by their shape. Each encoder sees one of the two sensors and predicts the other one.

    Depth is predicted as its logarithm, by regression with Eigen's scale-invariant loss, so that 10 cm at 1 m
    count as much as 1 m at 10 m. Pixels whose depth is unknown have no weight in the loss, and are marked in
    a separate channel of the depth encoder's input: see `ops.depth.to_image`.

    Features and export come from `encoder`, the encoder of images. To export the encoder of depth, use
    `kssl.export(kssl.PretextModel(task.depth_encoder), path)`.

    Image and depth are shifted and flipped alike, and not zoomed.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D), with named stages, of images.
        depth_encoder: such a model with the same input shape, of depth maps that `ops.depth.to_image` has
            converted to (B, H, W, 3); by default the architecture of `encoder`, untrained.
        near, far: float, meters, the range of depth that the depth encoder sees; predictions start at its
            geometric mean. Depth outside of it is clipped in the depth encoder's input, but not as a label.
        **kwargs: passed to keras.Model.

    Shapes:
        x: dict of `image` and `depth`, (B, H, W, 3) float32 in 0..255. y: dict of `depth` (B, H, W, 1)
        float32, meters, and `image` (B, H, W, 3) float32 in -1..1. Prediction: dict of `depth`, the natural
        logarithm of meters, predicted from the image, and `image`, predicted from depth; the shapes are those
        of y.

    Raises:
        ValueError: `near` and `far` are not 0 < near < far; an encoder does not take 3 channels of fixed
            size, has no named stages, or both have different input shapes.

    Reference: Zhang, Isola & Efros, "Split-Brain Autoencoders: Unsupervised Learning by Cross-Channel
    Prediction", CVPR 2017; the loss of depth: Eigen, Puhrsch & Fergus, "Depth Map Prediction from a Single
    Image using a Multi-Scale Deep Network", NIPS 2014.

    Example:
        >>> import keras_ssl as kssl
        >>> digits = kssl.data.to_arrays(kssl.data.digits("test"))["image"]
        >>> images = kssl.data.from_array(digits, depth=1 + digits[..., :1] / 255)
        >>> task = kssl.tasks.RGBDepth(kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1, 1)))
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(images, batch_size=60), verbose=0)
    """

    needs = ("image", "depth")
    reader = staticmethod(data.from_stereo)
    networks = ("encoder", "depth_encoder")

    def __init__(self, encoder, depth_encoder=None, near=0.5, far=100.0, **kwargs):
        super().__init__(encoder, **kwargs)
        size = encoders.check_image_shape(encoder)
        if depth_encoder is None:
            depth_encoder = keras.models.clone_model(encoder)
        encoders.check_encoder(depth_encoder)
        if depth_encoder.input_shape[1:] != (*size, 3):
            raise ValueError(
                f"depth_encoder must take {(*size, 3)} as the encoder does, got "
                f"{depth_encoder.input_shape[1:]}"
            )
        depth.check_range(near, far)
        self.depth_encoder, self.near, self.far = depth_encoder, near, far
        self.maps, self.depth_maps = encoders.maps(encoder), encoders.maps(depth_encoder)
        self.depth_decoder, self.depth_head = self._decoder(self.maps, size, 1, "depth_head")
        self.image_decoder, self.image_head = self._decoder(self.depth_maps, size, 3, "image_head")

    def _decoder(self, maps, size, channels, name):
        """Creates a decoder to half the resolution, and its head."""
        shape = list(maps.output.values())[-1].shape[1:]
        # Near zero: the first prediction is gray, or the geometric mean of near and far.
        small = keras.initializers.RandomNormal(stddev=0.01)
        head = keras.layers.Conv2D(
            channels, 1, kernel_initializer=small, dtype="float32", name=name
        )
        return layers.half_size_decoder(shape, size, self.dtype_policy), head

    def pretext(self, batch, seed):
        image, distance = pairs.shifted(batch, seed)
        x = {"image": image, "depth": depth.to_image(distance, self.near, self.far)}
        return x, {"depth": distance, "image": image / 127.5 - 1}

    def call(self, x, training=False):
        *_, deepest = self.depth_maps(x["depth"], training=training).values()
        image = self.image_head(self.image_decoder(deepest, training=training))
        image = tf.image.resize(image, x["depth"].shape[1:3])
        return {"depth": self.log_depth(x["image"], training), "image": image}

    def log_depth(self, image, training=False):
        """Predicts the logarithm of the depth of (B, H, W, 3) images, (B, H, W, 1) float32."""
        *_, deepest = self.maps(image, training=training).values()
        relative = self.depth_head(self.depth_decoder(deepest, training=training))
        middle = math.log(self.near * self.far) / 2
        half = math.log(self.far / self.near) / 2
        return middle + half * tf.image.resize(relative, image.shape[1:3])

    def prediction(self, images):
        return {"depth": tf.exp(self.log_depth(images))}

    def preview(self, x, y, y_pred=None):
        columns = [(x["image"], "image"), (pairs.shades(x["depth"], x["depth"]), "depth")]
        if y_pred is not None:
            predicted = depth.to_image(tf.exp(y_pred["depth"]), self.near, self.far)
            columns.append((pairs.shades(predicted, x["depth"]), "predicted depth"))
            columns.append((127.5 * (y_pred["image"] + 1), "predicted image"))
        return plotting.side_by_side(columns)

    def default_loss(self):
        return {"depth": losses.ScaleInvariantDepth(), "image": keras.losses.MeanSquaredError()}

    def default_metrics(self):
        return {"depth": [metrics.AbsRel()], "image": [metrics.PSNR()]}

    def default_optimizer(self, steps, learning_rate=1e-3):
        return optimizers.adam_cosine(learning_rate, steps)
