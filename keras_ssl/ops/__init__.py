"""Pure TensorFlow functions: the same eagerly, in tf.data and in a SavedModel."""

from keras_ssl.ops import augment, decode, images, lab, masks, patches, random

__all__ = ["augment", "decode", "images", "lab", "masks", "patches", "random"]
