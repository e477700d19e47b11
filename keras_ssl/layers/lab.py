"""Lab channels as the input of an encoder."""

import keras
import tensorflow as tf

from keras_ssl.ops import lab

# Center and half of the range, in CIE Lab, of all sRGB colors; the authors' code of CMC uses the same values.
CENTER = (50.0, 6.025, -6.6895)
HALF_RANGE = (50.0, 92.208, 101.1675)
CHANNELS = {"L": slice(0, 1), "ab": slice(1, 3)}


@keras.saving.register_keras_serializable(package="keras_ssl")
class Lab(keras.layers.Layer):
    """Converts RGB to channels of CIE Lab, scaled to about -1..1.

    In mixed precision it computes in float32, and only the result is cast.

    Args:
        channels: "L" for lightness, "ab" for the two colors.
        **kwargs: passed to keras.layers.Layer.

    Call arguments:
        images: (B, H, W, 3) tensor of pixels in 0..255.

    Returns:
        (B, H, W, 1) or (B, H, W, 2) float tensor.

    Raises:
        ValueError: `channels` is unknown.

    Reference: Tian, Krishnan & Isola, "Contrastive Multiview Coding", ECCV 2020, section 4.1.

    Example:
        >>> Lab("L")(tf.fill((1, 1, 1, 3), 255.0)).numpy().round(3).tolist()
        [[[[1.0]]]]
    """

    def __init__(self, channels, **kwargs):
        super().__init__(**{"autocast": False, **kwargs})
        if channels not in CHANNELS:
            raise ValueError(f'channels must be "L" or "ab", got {channels!r}')
        self.channels = channels

    def call(self, images):
        scaled = (lab.rgb_to_lab(images) - tf.constant(CENTER)) / tf.constant(HALF_RANGE)
        return tf.cast(scaled[..., CHANNELS[self.channels]], self.compute_dtype)

    def compute_output_shape(self, shape):
        chosen = CHANNELS[self.channels]
        return (*shape[:-1], chosen.stop - chosen.start)

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}
