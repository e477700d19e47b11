"""Validation of the arguments of `PretextModel.dataset`."""

import warnings

import tensorflow as tf

from keras_ssl.arguments import check_integer
from keras_ssl.data import service

# Readers that provide a column, for the error message; `from_array` takes any other column.
READERS = {
    "label": "from_folder with one folder per class, or from_array(..., labels)",
    "image": "the readers in keras_ssl.data",
    "frames": "from_videos(folder, frames=2, ...), or from_array(images, frames=frames)",
    "flow": "keras_ssl.data.with_flow(clips), or scenes(..., frames=2)",
    "motion": "from_rgbd(..., frames=2), or from_array(images, frames=frames, motion=motion)",
    "moving": "keras_ssl.data.with_motion_masks(clips), or scenes(..., frames=3)",
    "relative_depth": "keras_ssl.data.with_relative_depth(clips)",
    "depth": "keras_ssl.data.from_rgbd or from_stereo, or from_array(images, depth=depth)",
}


def check(images, task, batch_size, epochs, first_epoch, seed, address):
    """Validates the arguments of `PretextModel.dataset`.

    Args:
        images: tf.data.Dataset.
        task: PretextModel.
        batch_size, epochs, first_epoch, seed: int.
        address: str, of a tf.data service, or None.

    Raises:
        ValueError: an argument is invalid, or does not fit the others.

    Warns:
        UserWarning: `images` has no random access.
    """
    _check_columns(images, task)
    number = int(images.cardinality())
    if number <= 0:
        raise ValueError(
            "images must have a known length of at least 1, got cardinality "
            f"{number}; use a reader of keras_ssl.data, or tf.data.experimental.assert_cardinality"
        )
    check_integer("batch_size", batch_size, minimum=1)
    if min(batch_size, number) < task.min_batch_size:
        raise ValueError(
            f"batch_size must be at least {task.min_batch_size}, since {type(task).__name__} compares each "
            f"image with the others of its batch, got {batch_size} and {number} images"
        )
    for name, value in (("epochs", epochs), ("first_epoch", first_epoch), ("seed", seed)):
        check_integer(name, value)
    replicas = task.distribute_strategy.num_replicas_in_sync
    # Keras builds the model from a batch that is split evenly among the replicas, and TensorFlow's
    # convolutions return wrong shapes for a replica without an image.
    if min(batch_size, number) % replicas or 0 < number % batch_size < replicas:
        raise ValueError(
            f"batch_size {batch_size} cannot split {number} images among {replicas} replicas: "
            f"the first batch must be a multiple of {replicas}, the last have at least that many"
        )
    if 0 < number % batch_size < task.min_batch_size:
        raise ValueError(
            f"batch_size {batch_size} leaves {number % batch_size} of {number} images for the last batch, "
            f"but {type(task).__name__} needs at least {task.min_batch_size}: give another batch_size"
        )
    if not 0 <= first_epoch < epochs:
        raise ValueError(f"first_epoch must be in 0..epochs-1, got {first_epoch} of {epochs}")
    if address is not None:
        service.check(address, images)
    elif not hasattr(images, "columns"):
        warnings.warn(
            "images have no random access, which tf.data's .take(), .map() and the like drop: they are "
            "read sequentially and shuffled in a buffer; keras_ssl.data.subset keeps random access, "
            "keras_ssl.data.to_tfrecord gives it to any dataset",
            stacklevel=3,
        )


def _check_columns(images, task):
    spec = getattr(images, "element_spec", f"a {type(images).__name__}")
    if not isinstance(spec, dict) or "id" not in spec:
        raise ValueError(
            "images must be a tf.data.Dataset of dicts with `image` and `id`, such as "
            f"keras_ssl.data.from_array(images), got {spec}"
        )
    for name in task.needs:
        if name not in spec:
            reader = READERS.get(name, f"keras_ssl.data.from_array(images, {name}={name})")
            raise ValueError(
                f"images must yield dicts with `{name}`, which {type(task).__name__} needs, got "
                f"{', '.join(spec)}: use {reader}"
            )
        expected = tf.TensorShape(task.encoder.input_shape[1:])
        # The last three axes of frames (T, H, W, C) are those of an image.
        if name in ("image", "frames") and not expected.is_compatible_with(spec[name].shape[-3:]):
            raise ValueError(
                f"`{name}` has the shape {spec[name].shape}, but the encoder takes {expected}"
            )
        if name in ("depth", "moving", "relative_depth") and not spec[
            name
        ].shape.is_compatible_with([*expected[:2], 1]):
            raise ValueError(
                f"`{name}` must have one channel and the size of the images, {(*expected[:2], 1)}, got "
                f"{spec[name].shape}"
            )
