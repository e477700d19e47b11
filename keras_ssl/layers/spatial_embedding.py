"""Embedding of a feature map that preserves positions."""

import keras

POSITIONS = 8  # rows and columns of the map that are kept, at most


def spatial_embedding(shape, units, name="spatial_embedding"):
    """Builds the layers that embed a feature map and preserve positions in it.

    A convolution is followed by average pooling to at most 8x8 positions and a dense layer, since the mean
    over all positions would not show where something is.

    Args:
        shape: (h, w, c) of the map; the convolution has c channels, even for maps with another number of
            channels.
        units: int, length of the embedding.
        name: str.

    Returns:
        keras.Sequential from (B, h, w, channels) to (B, units).

    Example:
        >>> import tensorflow as tf
        >>> spatial_embedding((16, 16, 8), 32)(tf.zeros((2, 16, 16, 8))).shape
        TensorShape([2, 32])
    """
    *sides, channels = shape
    pool = tuple(-(-(side or 1) // POSITIONS) for side in sides)
    return keras.Sequential(
        [
            keras.layers.Conv2D(channels, 3, padding="same", activation="relu"),
            keras.layers.AveragePooling2D(pool, padding="same"),
            keras.layers.Flatten(),
            keras.layers.Dense(units, activation="relu"),
        ],
        name=name,
    )
