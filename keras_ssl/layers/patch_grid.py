"""A grid of overlapping patches as the input of an encoder."""

import keras
from keras import ops

from keras_ssl.arguments import check_integers


@keras.saving.register_keras_serializable(package="keras_ssl")
class PatchGrid(keras.layers.Layer):
    """Cuts an image into overlapping patches and lays them side by side.

    Args:
        patch: int, side of a patch in pixels.
        stride: int, pixels from patch to patch. Pixels that are left at the lower and the right edge are cut
            off.
        **kwargs: passed to keras.layers.Layer.

    Call arguments:
        images: (B, H, W, C) tensor.

    Returns:
        (B, rows * patch, columns * patch, C) tensor.

    Raises:
        ValueError: `patch` or `stride` is less than 1; in a call, the images are smaller than a patch or
            have no fixed size.

    Reference: van den Oord, Li & Vinyals, "Representation Learning with Contrastive Predictive Coding",
    2018, section 3.2.

    Example:
        >>> images = keras.ops.reshape(keras.ops.arange(3), (1, 1, 3, 1))
        >>> PatchGrid(1, 2)(images)[0, 0, :, 0].numpy().tolist()
        [0, 2]
    """

    def __init__(self, patch, stride, **kwargs):
        # 16 bits would round pixels.
        super().__init__(**{"autocast": False, **kwargs})
        check_integers(1, patch=patch, stride=stride)
        self.patch, self.stride = patch, stride

    def grid(self, shape):
        """Returns the numbers (rows, columns) of patches for images of a shape (B, H, W, C)."""
        sides = shape[1:3]
        if None in sides or min(sides) < self.patch:
            raise ValueError(
                f"images must have a fixed size of at least patch={self.patch} pixels, got {tuple(sides)}"
            )
        return tuple((side - self.patch) // self.stride + 1 for side in sides)

    def call(self, images):
        for axis, number in enumerate(self.grid(images.shape), 1):
            places = [i * self.stride + k for i in range(number) for k in range(self.patch)]
            images = ops.take(images, places, axis=axis)
        return images

    def compute_output_shape(self, shape):
        rows, columns = self.grid(shape)
        return (shape[0], rows * self.patch, columns * self.patch, shape[3])

    def get_config(self):
        return {**super().get_config(), "patch": self.patch, "stride": self.stride}
