"""Two random views of each image, and their preview."""

import numpy as np
import tensorflow as tf

from keras_ssl.ops import augment, images, recipes
from keras_ssl.ops.random import split


def two_views(image, seed, first, second):
    """Computes two random views of each image.

    Args:
        image: (B, H, W, 3) tensor in 0..255.
        seed: (B, 2) int64 tensor.
        first, second: Recipe or the name of one, of the first and the second view.

    Returns:
        (B, 2, H, W, 3) float32 tensor in 0..255.

    Example:
        >>> seed = tf.zeros((3, 2), tf.int64)
        >>> two_views(tf.zeros((3, 8, 8, 3)), seed, "SIMCLR_SMALL", "SIMCLR_SMALL").shape
        TensorShape([3, 2, 8, 8, 3])
    """
    first, second, seeds = recipes.find(first), recipes.find(second), split(seed, 2)
    if first == second:  # one call, which is traced faster than two
        views = augment.view(tf.concat([image, image], 0), tf.concat(seeds, 0), first)
        return tf.stack(tf.split(views, 2), axis=1)
    pair = zip((first, second), seeds, strict=True)
    return tf.stack([augment.view(image, s, recipe) for recipe, s in pair], axis=1)


def embed(encoder, head, x, training=False):
    """Computes embeddings of all views in one batch, so that they are normalized by the same statistics.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D).
        head: keras.Model from (B, D) to (B, E).
        x: (B, V, H, W, 3) tensor of views.
        training: bool, as in Keras.

    Returns:
        (B, V, E) tensor.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=4)
        >>> embed(encoder, kssl.layers.projection(32, 8), tf.zeros((3, 2, 32, 32, 3))).shape
        TensorShape([3, 2, 8])
    """
    features = encoder(images.fold(x), training=training)
    return images.unfold(head(features, training=training), x.shape[1])


def preview(x, similarity=None):
    """Builds rows for `plotting.grid` from two views of each image.

    Args:
        x: (B, 2, H, W, 3) array of pixels in 0..255.
        similarity: (B,) array, the cosine similarity of their embeddings, or None.

    Returns:
        list with one entry per image: the two views with captions.

    Example:
        >>> rows = preview(np.zeros((1, 2, 8, 8, 3)), np.array([0.5]))
        >>> [caption for _, caption in rows[0]]
        ['view 1', 'view 2, similarity 0.50']
    """
    predicted = [""] * len(x)
    if similarity is not None:
        predicted = [f", similarity {s:.2f}" for s in similarity]
    return [
        [(first, "view 1"), (second, f"view 2{text}")]
        for (first, second), text in zip(x, predicted, strict=True)
    ]


def cosine(first, second):
    """Computes the cosine similarity of the rows of two arrays (B, D); returns (B,)."""
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return (first * second).sum(axis=-1) / np.maximum(norms, 1e-12)
