"""From images to batches: the order of an epoch, the part of a worker, labels computed on the way."""

import warnings

import tensorflow as tf

from keras_ssl import files
from keras_ssl.data import service
from keras_ssl.training import distribute

SHUFFLE_BYTES = 2**30  # the buffer of pictures that cannot be asked for by their place
ROUNDS = 24  # of the cipher behind `order`; with TensorFlow's 4 the epochs' orders are correlated


def batches(images, task, batch_size, epochs, first_step, shuffle, seed, address=None):
    """All batches of a training run from `first_step` on, as this worker sees them.

    Every random number follows from (seed, epoch, id) and every place from (seed, epoch), so it does not
    matter where a run is resumed or how many workers share it: together they see the same images, with
    the same labels, in the same step.

    Args:
        images: tf.data.Dataset of dicts with `id` and what `task.needs`, of known length. With random
            access (`data.columns.random_access`), places are drawn and only this worker's images loaded;
            what cannot be loaded is skipped, with a warning, and the epoch is filled up with its first
            images.
        task: PretextModel; only the columns that it needs are handed to its `pretext`.
        batch_size: int, images per step over all workers; a multiple of their number.
        epochs: int, the epoch to stop before.
        first_step: int, the step to start with, counted from the first epoch.
        shuffle: bool, a new order every epoch.
        seed: int.
        address: of a tf.data service that makes the batches, or None.

    Returns:
        tf.data.Dataset of (x, y); its length is not declared, since Keras counts steps that it skips.
    """
    number = int(images.cardinality())
    steps = -(-number // batch_size)
    first_epoch, first = divmod(first_step, steps)
    # Image k of a step goes to worker k % workers, unless a task mixes the images of a batch: then every
    # worker makes the labels of the whole batch and keeps its part.
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
        epoch_seed = random(seed, epoch, ())
        skipped = tf.where(epoch == first_epoch, tf.constant(first, tf.int64), 0)
        parts = (index, workers, batch_size // workers)
        if hasattr(images, "columns"):
            data = _drawn(images, number, random(seed, epoch, (3,)), shuffle, skipped, parts)
        else:
            data = _streamed(images, number, epoch_seed, shuffle, skipped, parts)
        return data.map(lambda batch: labeled(batch, epoch_seed), tf.data.AUTOTUNE)

    def one_step(step):
        epoch = step // steps
        places = step % steps * batch_size + tf.range(index, batch_size, workers, tf.int64)
        rows = order(places[places < number], number, random(seed, epoch, (3,)), shuffle)
        return _loaded(images, rows).map(
            lambda batch: (
                tf.size(batch["id"]) == tf.size(rows),
                *labeled(batch, random(seed, epoch, ())),
            )
        )

    if address is None:
        data = tf.data.Dataset.range(first_epoch, epochs).flat_map(one_epoch)
    else:
        data = service.served(one_step, first_step, steps * epochs, address)
    return data.prefetch(tf.data.AUTOTUNE)


# Which readers have a column, for the sentence that says so.
READERS = {
    "label": "from_folder with one folder per class, or from_array(..., labels)",
    "image": "the readers in keras_ssl.data",
}


def check(images, task, batch_size, epochs, first_epoch, address):
    """Validates the arguments of `PretextModel.dataset`, as its docstring says.

    Args:
        images: tf.data.Dataset.
        task: PretextModel.
        batch_size, epochs, first_epoch: int.
        address: of a tf.data service, or None.

    Raises:
        ValueError: an argument that no batches can be made of.

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
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    replicas = task.distribute_strategy.num_replicas_in_sync
    # Keras builds the model from a batch that all replicas share evenly, and TensorFlow's
    # convolutions give wrong shapes for a replica that gets no image at all.
    if min(batch_size, number) % replicas or 0 < number % batch_size < replicas:
        raise ValueError(
            f"batch_size {batch_size} cannot share {number} images among {replicas} replicas: "
            f"the first batch must be a multiple of {replicas}, the last have at least that many"
        )
    if not 0 <= first_epoch < epochs:
        raise ValueError(f"first_epoch must be in 0..epochs-1, got {first_epoch} of {epochs}")
    if address is not None:
        service.check(address, images)
    elif not hasattr(images, "columns"):
        warnings.warn(
            "images have no random access, which tf.data's .take(), .map() and the like drop: they are "
            "read in their order and shuffled in a buffer; keras_ssl.data.subset keeps random access, "
            "keras_ssl.data.to_tfrecord gives it to any dataset",
            stacklevel=3,
        )


def _check_columns(images, task):
    spec = images.element_spec
    if not isinstance(spec, dict) or "id" not in spec:
        raise ValueError(f"images must yield dicts with `image` and `id`, got {spec}")
    for name in task.needs:
        if name not in spec:
            raise ValueError(
                f"images must yield dicts with `{name}`, which {type(task).__name__} needs, got "
                f"{', '.join(spec)}: use {READERS.get(name, f'a reader that has the column {name}')}"
            )
        expected = tf.TensorShape(task.encoder.input_shape[1:])
        # Frames (T, H, W, C) end like an image.
        if name in ("image", "frames") and not expected.is_compatible_with(spec[name].shape[-3:]):
            raise ValueError(
                f"`{name}` has the shape {spec[name].shape}, but the encoder takes {expected}"
            )


def random(seed, epoch, shape):
    """int64 random numbers that follow from (seed, epoch)."""
    pair = tf.stack([tf.cast(seed, tf.int64), tf.cast(epoch, tf.int64)])
    return tf.random.stateless_uniform(shape, pair, None, None, tf.int64)


def order(places, number, seed, shuffle):
    """The rows of the pictures at some places of an epoch: a permutation that needs no memory.

    Args:
        places: (n,) int64, in 0..number-1.
        number: int, pictures.
        seed: (3,) int64, of the epoch.
        shuffle: bool; without it the rows are the places.

    Returns:
        (n,) int64.

    Reference: Black & Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002 (the cycle walking
    behind TensorFlow's RandomIndexShuffle).

    Example:
        >>> sorted(order(tf.range(5, dtype=tf.int64), 5, random(0, 0, (3,)), True).numpy().tolist())
        [0, 1, 2, 3, 4]
    """
    if not shuffle:
        return places
    return tf.raw_ops.RandomIndexShuffle(
        index=places, seed=tf.bitcast(seed, tf.uint32)[:, 0],
        max_index=tf.constant(number - 1, tf.int64), rounds=ROUNDS,
    )  # fmt: skip


def _streamed(images, number, seed, shuffle, skipped, parts):
    """Batches of pictures that come in an order of their own."""
    index, workers, size = parts
    # Of this function's graph: the order must not follow from the global seed as well.
    tf.compat.v1.set_random_seed(1)
    if shuffle:
        row_bytes = sum(
            (column.shape.num_elements() or SHUFFLE_BYTES) * column.dtype.size
            for column in images.element_spec.values()
        )
        buffer = min(number, max(size * workers, SHUFFLE_BYTES // row_bytes))
        images = images.shuffle(buffer, seed=seed)
    return images.skip(skipped * size * workers).shard(workers, index).batch(size)


def _drawn(images, number, seed, shuffle, skipped, parts):
    """Batches of pictures that can be asked for by their place."""
    index, workers, size = parts
    mine = len(range(index, number, workers))  # pictures of this worker in an epoch

    def rows(k):
        return order(index + workers * (k % mine), number, seed, shuffle)

    if images.load_row is None:
        places = tf.data.Dataset.range(skipped * size, mine).batch(size)
        return places.map(lambda k: _gathered(images, rows(k)), tf.data.AUTOTUNE)

    def load(k):
        return k, images.load_row(_gathered(images, rows(k[None])[0]))

    # A second time around, for as many as could not be loaded in the first.
    places = tf.data.Dataset.range(skipped * size, 2 * mine)
    data = places.map(load, tf.data.AUTOTUNE).ignore_errors().take(mine - skipped * size)

    def count(expected, element):
        found, batch = element

        def report():
            missing = tf.sets.difference([tf.range(expected, found[-1])], [found]).values
            return tf.numpy_function(lambda lost: _warn(images, lost), [rows(missing)], tf.int64)

        complete = found[-1] - expected + 1 == tf.cast(tf.size(found), tf.int64)
        with tf.control_dependencies([tf.cond(complete, lambda: tf.constant(0, tf.int64), report)]):
            return found[-1] + 1, tf.nest.map_structure(tf.identity, batch)

    return data.batch(size).scan(skipped * size, count)


def shard(images, worker):
    """The pictures that fall to a worker, each once and in their order; loads no others.

    Args:
        images: tf.data.Dataset of dicts.
        worker: (index, number).

    Returns:
        tf.data.Dataset, without the pictures that cannot be loaded.
    """
    index, workers = worker
    if getattr(images, "load_row", None) is None:
        return images.shard(workers, index)
    rows = tf.data.Dataset.range(index, int(images.cardinality()), workers)
    return rows.map(
        lambda k: images.load_row(_gathered(images, k)), tf.data.AUTOTUNE
    ).ignore_errors()


def _gathered(images, rows):
    return {name: tf.gather(column, rows) for name, column in images.columns.items()}


def _loaded(images, rows):
    """One batch of the pictures in some rows; without those that cannot be loaded."""
    if images.load_row is None:
        return tf.data.Dataset.from_tensors(_gathered(images, rows))
    rows = tf.data.Dataset.from_tensor_slices(_gathered(images, rows))
    return rows.map(images.load_row, tf.data.AUTOTUNE).ignore_errors().batch(2**31)


def _warn(images, rows):
    """Says once of each picture that it cannot be read, and counts it in `images.skipped`."""
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
    return rows.size  # an int64, as declared
