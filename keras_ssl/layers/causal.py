"""The masked network of CPC, whose output in a row depends on the rows above it only."""

import keras

from keras_ssl.arguments import check_integers


def causal_rows(grid, channels, hidden=256, blocks=5):
    """Builds a residual network whose output in row r depends on the rows down to r only.

    Each block sees one more row above and one more column on both sides: its first convolution reads a
    position and its left and right neighbors, and its second one reads the row and the row above it, since a
    row of zeros is added at the top and none at the bottom.

    Args:
        grid: (int, int), rows and columns.
        channels: int, of inputs and outputs.
        hidden: int, channels in the blocks.
        blocks: int.

    Returns:
        keras.Model from (B, rows, columns, channels) to the same shape.

    Raises:
        ValueError: a number is less than 1.

    Reference: Hénaff et al., "Data-Efficient Image Recognition with Contrastive Predictive Coding", ICML
    2020, appendix ("pixelCNN").

    Example:
        >>> causal_rows((7, 7), channels=8, hidden=16, blocks=2).output_shape
        (None, 7, 7, 8)
    """
    rows, columns = grid
    check_integers(1, rows=rows, columns=columns, channels=channels, hidden=hidden, blocks=blocks)
    x = inputs = keras.Input((rows, columns, channels))
    for _ in range(blocks):
        y = keras.layers.Conv2D(hidden, 1, activation="relu")(x)
        y = keras.layers.Conv2D(hidden, (1, 3), padding="same")(y)
        y = keras.layers.ZeroPadding2D(((1, 0), (0, 0)))(y)
        y = keras.layers.Conv2D(hidden, (2, 1), activation="relu")(y)
        x = keras.layers.Add()([x, keras.layers.Conv2D(channels, 1)(y)])
    return keras.Model(inputs, keras.layers.ReLU()(x), name="context")
