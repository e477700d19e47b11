"""Convolutional decoder from feature maps to images."""

import keras
import tensorflow as tf

from keras_ssl.layers.batch_normalization import BatchNormalization


@keras.saving.register_keras_serializable(package="keras_ssl")
class Decoder(keras.layers.Layer):
    """Upsamples a feature map to the size of an image by transposed convolutions.

    Each transposed convolution doubles height and width and halves the channels. It is followed by batch
    normalization, synchronized over replicas, and ReLU. With a 4x4 kernel and stride 2 every output
    pixel gets the same number of taps, which avoids checkerboard artifacts. The output goes to a head of
    the task, which predicts pixels, colors or logits.

    Args:
        shape: (h, w, c) of the feature map.
        size: (H, W) of the output.
        skips: shapes (h, w, c) of feature maps for skip connections, such as those of the encoder's other
            stages. Each is concatenated with the map of the same size, for details that the deepest map
            has lost.
        least: int, minimum number of channels.
        **kwargs: passed to keras.layers.Layer.

    Call arguments:
        x: (B, h, w, c) tensor.
        size: (H, W) of the output if it differs from the constructor's, for a map that is larger or smaller
            by the same factor.
        skips: tensors, one of each shape in the argument `skips` of the constructor.
        training: bool.

    Returns:
        (B, H, W, filters) tensor, where `filters` is an attribute of the layer.

    Raises:
        ValueError: `size` is smaller than the map, or no upsampled map has the size of a skip.

    Reference: Radford, Metz & Chintala, "Unsupervised Representation Learning with DCGANs", ICLR 2016,
    section 3; Ronneberger et al., "U-Net", MICCAI 2015 (skip connections).

    Example:
        >>> Decoder((4, 4, 64), (32, 32))(tf.zeros((2, 4, 4, 64))).shape
        TensorShape([2, 32, 32, 16])
    """

    def __init__(self, shape, size, skips=(), least=16, **kwargs):
        super().__init__(**kwargs)
        self.shape, self.size, self.least = tuple(shape), tuple(size), least
        self.skips = [tuple(skip) for skip in skips]
        height, width, channels = self.shape
        if height > size[0] or width > size[1]:
            raise ValueError(
                f"size must be at least that of the feature map, {shape[:2]}, got {size}"
            )
        self.doublings = 0
        while height << self.doublings < size[0] or width << self.doublings < size[1]:
            self.doublings += 1
        halved = [max(channels >> (k + 1), least) for k in range(self.doublings)]
        self.enlarge = [
            keras.layers.Conv2DTranspose(
                filters,
                4,
                2,
                "same",
                use_bias=False,
                kernel_initializer="he_normal",
                dtype=self.dtype_policy,
            )
            for filters in halved
        ]
        self.normalize = [
            BatchNormalization(
                momentum=0.9, epsilon=1e-5, synchronized=True, dtype=self.dtype_policy
            )
            for _ in halved
        ]
        # Which skips are concatenated after k doublings.
        sizes = [self.shape[:2], *(self._after(k, self.size) for k in range(1, self.doublings + 1))]
        self.joined = [[i for i, s in enumerate(self.skips) if s[:2] == at] for at in sizes]
        unused = set(range(len(self.skips))) - {i for fit in self.joined for i in fit}
        if unused:
            unused = [self.skips[i] for i in sorted(unused)]
            raise ValueError(
                f"skips must have the size of an upsampled map, one of {sizes}, got {unused}"
            )
        joined = [sum(self.skips[i][-1] for i in fit) for fit in self.joined]
        *self.widths, self.filters = map(sum, zip([channels, *halved], joined, strict=True))

    def _after(self, k, size):
        """Returns height and width after k doublings, rounded up as strided convolutions do."""
        left = 2 ** (self.doublings - k)
        return -(-size[0] // left), -(-size[1] // left)

    def build(self, input_shape=None):
        for enlarge, normalize, filters in zip(
            self.enlarge, self.normalize, self.widths, strict=True
        ):
            enlarge.build((None, None, None, filters))
            normalize.build((None, None, None, enlarge.filters))
        self.built = True

    def call(self, x, size=None, skips=(), training=False):
        for k, joined in enumerate(self.joined):
            if k:
                enlarge, normalize = self.enlarge[k - 1], self.normalize[k - 1]
                height, width = self._after(k, size or self.size)
                x = tf.nn.relu(normalize(enlarge(x)[:, :height, :width], training=training))
            x = tf.concat([x, *(tf.cast(skips[i], x.dtype) for i in joined)], axis=-1)
        return x

    def get_config(self):
        names = ("shape", "size", "skips", "least")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def half_size_decoder(shape, size, dtype=None):
    """Creates a decoder whose output has half the size of an image; the task upsamples its prediction.

    Args:
        shape: (h, w, c) of the feature map.
        size: (H, W) of the image.
        dtype: policy of the layer, as in Keras.

    Returns:
        Decoder.

    Example:
        >>> half_size_decoder((4, 4, 64), (32, 31)).size
        (16, 16)
    """
    half = [max(-(-side // 2), least) for side, least in zip(size, shape, strict=False)]
    return Decoder(shape, half, dtype=dtype)
