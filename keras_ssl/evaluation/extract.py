"""Features of a whole dataset, batch by batch."""

import keras
import numpy as np
import tensorflow as tf

from keras_ssl import encoders
from keras_ssl.ops.images import fold, unfold


def extract(encoder, images, batch_size=256, verbose=0, dimensions=None, stages=None, pool=None):
    """Extracts the features of a dataset at every stage of an encoder.

    Args:
        encoder: functional keras.Model with named stages, as created by `keras_ssl.encoders`.
        images: tf.data.Dataset of dicts with `image`, `id` and perhaps `label`.
        batch_size: int, images per batch.
        verbose: 1 shows a progress bar, 0 does not.
        dimensions: int, such as 9000: average-pools the map of each stage to s x s positions with about this
            many numbers in total (s = sqrt(dimensions / c), rounded) instead of one position; `features` do
            not change. 10,000 images of 9,000 numbers take 360 MB per stage.
        stages: list of str, the stages to extract; by default all.
        pool: "mean" or "concat" (see `pool_frames`) extracts the features of all `frames` of a clip instead
            of its `image`, and averages or concatenates them.

    Returns:
        (features, others): `features` is a dict of `stage1`, ..., `features` to (N, c) float32 arrays, each
        stage averaged over the image, or (N, s * s * c) with `dimensions`, or T times as many numbers with
        `pool="concat"`; `others` is a dict of `id`, `label` and all other columns with at most one axis per
        image.

    Raises:
        ValueError: the encoder names no stages, `dimensions` is below 1, `stages` has an unknown name, `pool`
            is unknown, or there are no `frames`.

    Reference: Zhang, Isola & Efros, "Split-Brain Autoencoders", CVPR 2017, section 4, for the maps of about
    9,000 numbers.

    Example:
        >>> from keras_ssl import data
        >>> features, others = extract(encoders.resnet((32, 32, 3), width=8), data.digits("test"))
        >>> features["stage1"].shape, others["label"].shape
        ((360, 8), (360,))
    """
    model = encoders.stages(encoder, dimensions)
    if unknown := sorted(set(stages or ()) - set(model.output)):
        raise ValueError(f"stages must be of {list(model.output)}, got {unknown}")
    if stages is not None:
        model = keras.Model(model.input, {name: model.output[name] for name in stages})
    # Columns of pixels, such as frames, could exceed the memory.
    kept = [k for k, spec in images.element_spec.items() if k != "image" and spec.shape.rank <= 1]

    column = "image" if pool is None else "frames"
    if pool is not None and column not in images.element_spec:
        raise ValueError(
            f"pool={pool!r} needs clips with `frames`, got {', '.join(images.element_spec)}"
        )
    batches = images.batch(batch_size).prefetch(2)
    features_of = traced(model, batches.element_spec[column], pool)

    def run(batch):
        features = features_of(batch[column])
        features = {name: np.asarray(value, np.float32) for name, value in features.items()}
        return features, {name: batch[name] for name in kept}

    return map_batches(run, batches, verbose=verbose)


def traced(model, spec, pool=None):
    """Traces a model once for batches of all sizes; predict_on_batch would trace it again for the last batch.

    Args:
        model: keras.Model from (B, H, W, 3) to (B, D), or to a dict of such features.
        spec: tf.TensorSpec of the (B, H, W, 3) images, or of the (B, T, H, W, 3) frames of clips.
        pool: None for images; "mean" or "concat" for clips, as in `pool_frames`.

    Returns:
        tf.function from such a batch to the features.

    Example:
        >>> encoder = encoders.resnet((32, 32, 3), width=4, blocks=(1,))
        >>> traced(encoder, tf.TensorSpec((None, 5, 32, 32, 3)), "mean")(tf.zeros((2, 5, 32, 32, 3))).shape
        TensorShape([2, 4])
    """

    @tf.function(input_signature=[spec])
    def features_of(x):
        if pool is None:
            return model(x, training=False)
        found = model(fold(x), training=False)
        return tf.nest.map_structure(lambda f: pool_frames(unfold(f, x.shape[1]), pool), found)

    return features_of


def pool_frames(features, pool):
    """Averages or concatenates the features of the frames of clips.

    The mean does not depend on the order of the frames; the concatenation keeps it.

    Args:
        features: (N, T, D) tensor or array.
        pool: "mean" or "concat".

    Returns:
        (N, D) or (N, T * D) tensor.

    Raises:
        ValueError: `pool` is unknown.

    Example:
        >>> pool_frames(tf.constant([[[1.0, 2.0], [3.0, 6.0]]]), "mean").numpy().tolist()
        [[2.0, 4.0]]
    """
    if pool == "mean":
        return tf.reduce_mean(features, axis=1)
    if pool == "concat":
        return tf.reshape(features, [-1, features.shape[1] * features.shape[2]])
    raise ValueError(f"pool must be 'mean' or 'concat', got {pool!r}")


def map_batches(function, batches, steps=None, verbose=0):
    """Applies a function to every batch and concatenates the results.

    Args:
        function: maps a batch to an array, or to a nested structure of arrays, with the image on axis 0.
        batches: tf.data.Dataset of batches, or another sized iterable.
        steps: int, number of batches for the progress bar; by default the length of `batches`.
        verbose: 1 shows a progress bar, 0 does not.

    Returns:
        numpy array, or the same structure of numpy arrays; None if there is no batch.

    Example:
        >>> map_batches(lambda x: 10 * x, [np.array([1, 2]), np.array([3])]).tolist()
        [10, 20, 30]
    """
    if steps is None:
        steps = len(batches) if isinstance(batches, list) else int(batches.cardinality())
    bar, parts = keras.utils.Progbar(steps, verbose=verbose, unit_name="batch"), []
    for batch in batches:
        parts.append(tf.nest.map_structure(np.asarray, function(batch)))
        bar.add(1)
    return tf.nest.map_structure(lambda *arrays: np.concatenate(arrays), *parts) if parts else None
