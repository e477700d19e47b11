"""Projection heads: the perceptrons on top of the encoder in contrastive methods."""

import keras

from keras_ssl.arguments import check_integers
from keras_ssl.layers.batch_normalization import BatchNormalization

NORMALIZED = ("none", "hidden", "all")


def projection(inputs, outputs, depth=2, hidden=None, normalized="none", name="projection"):
    """Builds a float32 perceptron from features to embeddings, with a ReLU between its layers.

    | method | depth | hidden | normalized |
    | --- | --- | --- | --- |
    | MoCo v1 | 1 | | "none" |
    | MoCo v2, SupCon | 2 | inputs | "none" |
    | SimCLR | 2 (v2: 3) | inputs | "all" |
    | BYOL, projector and predictor | 2 | 4096 | "hidden" |

    Batch normalization is synchronized over replicas: with the statistics of each replica alone, the network
    could recognize which embeddings are from its own batch. The layers have a bias if none is normalized.

    Args:
        inputs: int, length of the features.
        outputs: int, length of the embeddings.
        depth: int, number of dense layers.
        hidden: int, width of the layers before the last; by default `inputs`.
        normalized: "hidden" for batch normalization after all layers except the last, "all" for batch
            normalization after all layers (without an offset after the last), "none" for no normalization.
        name: str.

    Returns:
        keras.Sequential from (B, inputs) to (B, outputs).

    Raises:
        ValueError: a number is less than 1, or `normalized` is unknown.

    Reference: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML
    2020, section 4.2.

    Example:
        >>> projection(64, 16).output_shape
        (None, 16)
    """
    hidden = inputs if hidden is None else hidden
    check_integers(1, inputs=inputs, outputs=outputs, depth=depth, hidden=hidden)
    if normalized not in NORMALIZED:
        raise ValueError(f"normalized must be one of {', '.join(NORMALIZED)}, got {normalized!r}")
    widths = [*[hidden] * (depth - 1), outputs]
    layers = [keras.Input((inputs,))]
    for k, width in enumerate(widths, 1):
        last = k == depth
        layers.append(
            keras.layers.Dense(
                width, use_bias=normalized == "none", dtype="float32", name=f"dense{k}"
            )
        )
        if normalized == "all" or (normalized == "hidden" and not last):
            layers.append(
                BatchNormalization(
                    momentum=0.9, epsilon=1e-5, center=not last, synchronized=True, dtype="float32",
                    name=f"normalization{k}",
                )
            )  # fmt: skip
        if not last:
            layers.append(keras.layers.ReLU(dtype="float32", name=f"relu{k}"))
    return keras.Sequential(layers, name=name)
