"""Pure TensorFlow functions that run eagerly, in tf.data and in a SavedModel."""

from keras_ssl.ops import (
    augment,
    decode,
    depth,
    filters,
    images,
    jitter,
    lab,
    masks,
    patches,
    random,
    recipes,
)

__all__ = [
    "augment", "decode", "depth", "filters", "images", "jitter", "lab", "masks", "patches", "random",
    "recipes",
]  # fmt: skip
