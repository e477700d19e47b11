"""Input pipeline: shuffles the images of each epoch, splits them among workers, computes labels."""

import warnings

import tensorflow as tf

from keras_ssl import files
from keras_ssl.arguments import check_integer
from keras_ssl.data import service
from keras_ssl.training import distribute

SHUFFLE_BYTES = 2**30  # shuffle buffer for data sets without random access
ROUNDS = (
    24  # rounds of the cipher in `order`; with TensorFlow's default of 4 two epochs are correlated
)


def batches(images, task, batch_size, epochs, first_step, shuffle, seed, address=None):
    """Creates the batches of a training run from `first_step` on, or this worker's part of them.

    Every random number is derived from (seed, epoch, id), and the order of the images from (seed, epoch).
    So the batches do not depend on where a run is resumed, or on the number of workers: together they get
    the same images, with the same labels, in the same step.

    Args:
        images: tf.data.Dataset of dicts with `id` and the columns in `task.needs`, of known length. With
            random access (`data.columns.random_access`), the rows are shuffled and only the images of this
            worker are loaded. Images that cannot be loaded are skipped, with a warning, and replaced by
            the first images of the epoch.
        task: PretextModel, whose `pretext` gets only the columns that it needs.
        batch_size: int, images per step over all workers; a multiple of their number.
        epochs: int, the epoch to stop before.
        first_step: int, the step to start with, counted from epoch 0.
        shuffle: bool, a new order every epoch.
        seed: int.
        address: str, of a tf.data service that computes the batches, or None.

    Returns:
        tf.data.Dataset of (x, y), of undeclared length, since Keras also counts the steps before
        `first_step`.
    """
    number = int(images.cardinality())
    steps = -(-number // batch_size)
    first_epoch, first = divmod(first_step, steps)
    # Image k of a step goes to worker k % workers. If the task mixes the images of a batch, every worker
    # computes the labels of the whole batch and keeps its part.
    worker, whole = distribute.worker(task.distribute_strategy), task.whole_batches
    index, workers = (0, 1) if whole else worker

    def labeled(batch, epoch_seed):
        ids = tf.cast(batch["id"], tf.int64)
        batch = {name: batch[name] for name in ("id", *task.needs)}
        x, y = task.pretext(batch, tf.stack([tf.fill(tf.shape(ids), epoch_seed), ids], axis=1))
        if whole and worker[1] > 1:
            x, y = tf.nest.map_structure(lambda rows: rows[worker[0] :: worker[1]], (x, y))
        return x, y

    def one_epoch(epoch):
        epoch_seed, order_seed = derive_seeds(seed, epoch)
        skipped = tf.where(epoch == first_epoch, tf.constant(first, tf.int64), 0)
        parts = (index, workers, batch_size // workers)
        if hasattr(images, "columns"):
            data = _random_access_batches(images, number, order_seed, shuffle, skipped, parts)
        else:
            data = _buffered_batches(images, number, order_seed[0], shuffle, skipped, parts)
        return data.map(lambda batch: labeled(batch, epoch_seed), tf.data.AUTOTUNE)

    def one_step(step):
        epoch = step // steps
        positions = step % steps * batch_size + tf.range(index, batch_size, workers, tf.int64)
        epoch_seed, order_seed = derive_seeds(seed, epoch)
        rows = order(positions[positions < number], number, order_seed, shuffle)
        return _load_batch(images, rows).map(
            lambda batch: (
                tf.size(batch["id"]) == tf.size(rows),
                *labeled(batch, epoch_seed),
            )
        )

    if address is None:
        data = tf.data.Dataset.range(first_epoch, epochs).flat_map(one_epoch)
    else:
        data = service.served(one_step, first_step, steps * epochs, address)
    return data.prefetch(tf.data.AUTOTUNE)


# Readers that provide a column, for the error message; `from_array` takes any other column.
READERS = {
    "label": "from_folder with one folder per class, or from_array(..., labels)",
    "image": "the readers in keras_ssl.data",
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


def derive_seeds(seed, epoch):
    """Derives independent seeds of an epoch from (seed, epoch).

    Args:
        seed, epoch: int or int64 scalar tensor.

    Returns:
        (epoch_seed, order_seed): int64 tensors, a scalar for the labels and (3,) for the order.
    """
    pair = tf.stack([tf.cast(seed, tf.int64), tf.cast(epoch, tf.int64)])
    # A single draw: two draws of different shapes from one seed begin with the same numbers.
    numbers = tf.random.stateless_uniform((4,), pair, None, None, tf.int64)
    return numbers[0], numbers[1:]


def order(positions, number, seed, shuffle):
    """Computes the rows at given positions of an epoch, by a permutation that needs no memory.

    Args:
        positions: (n,) int64, in 0..number-1.
        number: int, images.
        seed: (3,) int64, of the epoch.
        shuffle: bool; if False, the rows are the positions.

    Returns:
        (n,) int64, the rows.

    Reference: Black & Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002 (the cycle walking
    of TensorFlow's RandomIndexShuffle).

    Example:
        >>> _, seed = derive_seeds(0, 0)
        >>> sorted(order(tf.range(5, dtype=tf.int64), 5, seed, shuffle=True).numpy().tolist())
        [0, 1, 2, 3, 4]
    """
    if not shuffle:
        return positions
    return tf.raw_ops.RandomIndexShuffle(
        index=positions, seed=tf.bitcast(seed, tf.uint32)[:, 0],
        max_index=tf.constant(number - 1, tf.int64), rounds=ROUNDS,
    )  # fmt: skip


def _buffered_batches(images, number, seed, shuffle, skipped, parts):
    """Creates the batches of an epoch without random access, by a shuffle buffer."""
    index, workers, size = parts
    # Sets the seed of this function's graph, so that the order does not depend on the global seed.
    tf.compat.v1.set_random_seed(1)
    if shuffle:
        row_bytes = sum(
            (column.shape.num_elements() or SHUFFLE_BYTES) * column.dtype.size
            for column in images.element_spec.values()
        )
        buffer = min(number, max(size * workers, SHUFFLE_BYTES // row_bytes))
        images = images.shuffle(buffer, seed=seed)
    return images.skip(skipped * size * workers).shard(workers, index).batch(size)


def _random_access_batches(images, number, seed, shuffle, skipped, parts):
    """Creates the batches of an epoch with random access, which loads only this worker's images."""
    index, workers, size = parts
    own = len(range(index, number, workers))  # images of this worker per epoch

    def rows(k):
        return order(index + workers * (k % own), number, seed, shuffle)

    if images.load_row is None:
        positions = tf.data.Dataset.range(skipped * size, own).batch(size)
        return positions.map(lambda k: _take_rows(images, rows(k)), tf.data.AUTOTUNE)

    def load(k):
        return k, images.load_row(_take_rows(images, rows(k[None])[0]))

    # A second pass replaces the images that could not be loaded in the first.
    positions = tf.data.Dataset.range(skipped * size, 2 * own)
    data = positions.map(load, tf.data.AUTOTUNE).ignore_errors().take(own - skipped * size)

    def count(expected, element):
        found, batch = element

        def report():
            missing = tf.sets.difference([tf.range(expected, found[-1])], [found]).values
            return tf.numpy_function(lambda r: _warn(images, r), [rows(missing)], tf.int64)

        complete = found[-1] - expected + 1 == tf.cast(tf.size(found), tf.int64)
        with tf.control_dependencies([tf.cond(complete, lambda: tf.constant(0, tf.int64), report)]):
            return found[-1] + 1, tf.nest.map_structure(tf.identity, batch)

    return data.batch(size).scan(skipped * size, count)


def shard(images, worker):
    """Selects the images of a worker, in their order; no others are loaded.

    Args:
        images: tf.data.Dataset of dicts.
        worker: (index, number) of the worker.

    Returns:
        tf.data.Dataset, without the images that cannot be loaded.
    """
    index, workers = worker
    if getattr(images, "load_row", None) is None:
        return images.shard(workers, index)
    rows = tf.data.Dataset.range(index, int(images.cardinality()), workers)
    return rows.map(
        lambda k: images.load_row(_take_rows(images, k)), tf.data.AUTOTUNE
    ).ignore_errors()


def _take_rows(images, rows):
    return {name: tf.gather(column, rows) for name, column in images.columns.items()}


def _load_batch(images, rows):
    """Creates a dataset of one batch with the given rows, without those that cannot be loaded."""
    if images.load_row is None:
        return tf.data.Dataset.from_tensors(_take_rows(images, rows))
    rows = tf.data.Dataset.from_tensor_slices(_take_rows(images, rows))
    return rows.map(images.load_row, tf.data.AUTOTUNE).ignore_errors().batch(2**31)


def _warn(images, rows):
    """Warns once of each image that cannot be read, and counts it in `images.skipped`."""
    skipped = images.__dict__.setdefault("skipped", set())
    new = [row for row in rows.tolist() if row not in skipped]
    skipped.update(new)
    if new:
        paths = getattr(images, "paths", None)
        names = files.listed([str(paths[row]) if paths else f"image {row}" for row in new])
        warnings.warn(
            f"skipped {len(new)} unreadable images ({len(skipped)} so far): {names}",
            stacklevel=2,
        )
    return rows.size  # tf.numpy_function needs an int64
