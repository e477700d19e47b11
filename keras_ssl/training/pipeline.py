"""Input pipeline: shuffles the images of each epoch, splits them among workers, computes labels."""

import warnings

import tensorflow as tf

from keras_ssl import files
from keras_ssl.data import service
from keras_ssl.training import distribute

SHUFFLE_BYTES = 2**30  # shuffle buffer for data sets without random access
ROUNDS = (
    24  # rounds of the cipher in `order`; with TensorFlow's default of 4 two epochs are correlated
)


def batches(images, task, batch_size, epochs, first_step, shuffle, seed, address=None):
    """Creates the batches of a training run from `first_step` on, or this worker's part of them.

    Every random number is derived from (seed, epoch, id), and the order of the images from (seed, epoch). So
    the batches do not depend on where a run is resumed, or on the number of workers: in each step, the
    workers together get the same images with the same labels.

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
    # All datasets of a task share the traced function: tracing takes seconds for some tasks.
    pretext = vars(task).setdefault("_traced_pretext", tf.function(task.pretext, autograph=False))

    def labeled(batch, epoch_seed):
        ids = tf.cast(batch["id"], tf.int64)
        batch = {name: batch[name] for name in ("id", *task.needs)}
        x, y = pretext(batch, tf.stack([tf.fill(tf.shape(ids), epoch_seed), ids], axis=1))
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
        epoch_seed, order_seed = derive_seeds(seed, step // steps)
        parts = (index, workers, batch_size // workers)
        loaded = _load_step(images, number, order_seed, shuffle, step % steps, parts)
        return loaded.map(
            lambda missing, batch: (tf.size(missing) == 0, *labeled(batch, epoch_seed))
        )

    if address is None:
        data = tf.data.Dataset.range(first_epoch, epochs).flat_map(one_epoch)
    else:
        data = service.served(one_step, first_step, steps * epochs, address)
    return data.prefetch(tf.data.AUTOTUNE)


def derive_seeds(seed, epoch):
    """Derives independent seeds of an epoch from (seed, epoch).

    Args:
        seed, epoch: int or int64 scalar tensor.

    Returns:
        (epoch_seed, order_seed): int64 tensors: a scalar, the seed of the labels, and (3,), the seed of the
        order of the images.
    """
    pair = tf.stack([tf.cast(seed, tf.int64), tf.cast(epoch, tf.int64)])
    # A single draw, since two draws of different shapes from one seed begin with the same numbers.
    numbers = tf.random.stateless_uniform((4,), pair, None, None, tf.int64)
    return numbers[0], numbers[1:]


def order(positions, number, seed, shuffle):
    """Computes the rows at given positions of an epoch, by a permutation that needs no memory.

    Args:
        positions: (n,) int64, in 0..number-1.
        number: int, images.
        seed: (3,) int64, the `order_seed` of the epoch.
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
    size, own = parts[2], _own(number, parts)
    if images.load_row is None:
        positions = tf.data.Dataset.range(skipped * size, own).batch(size)
        return positions.map(
            lambda k: _take_rows(images, _rows(k, number, seed, shuffle, parts)), tf.data.AUTOTUNE
        )

    def load(step):
        return _load_step(images, number, seed, shuffle, step, parts)

    def counted(missing, batch):
        def report():
            rows = _rows(missing, number, seed, shuffle, parts)
            return tf.numpy_function(lambda r: _warn(images, r), [rows], tf.int64)

        none = tf.size(missing) == 0
        with tf.control_dependencies([tf.cond(none, lambda: tf.constant(0, tf.int64), report)]):
            return tf.nest.map_structure(tf.identity, batch)

    steps = tf.data.Dataset.range(skipped, -(-own // size))
    return steps.interleave(load, cycle_length=2, num_parallel_calls=2).map(counted)


def _load_step(images, number, seed, shuffle, step, parts):
    """Creates a dataset of one (missing, batch): the images that fail to load, and the batch without them.

    `missing` has their positions in this worker's order of the epoch. The batch is filled up with the next
    images of the epoch that can be loaded, so it depends on the step only.
    """
    size, own = parts[2], _own(number, parts)
    start, stop = step * size, tf.minimum((step + 1) * size, own)

    def load(k):
        row = _take_rows(images, _rows(k[None], number, seed, shuffle, parts)[0])
        return k, row if images.load_row is None else images.load_row(row)

    def missing(found, batch):
        return tf.sets.difference([tf.range(start, stop)], [found]).values, batch

    wanted = tf.data.Dataset.range(start, stop).map(load, tf.data.AUTOTUNE)
    others = tf.data.Dataset.range(stop, stop + own).map(load)  # loaded only if some are missing
    data = wanted.ignore_errors().concatenate(others.ignore_errors()).take(stop - start)
    return data.batch(size).map(missing)


def _own(number, parts):
    """Returns how many images of an epoch a worker has."""
    index, workers, _ = parts
    return len(range(index, number, workers))


def _rows(k, number, seed, shuffle, parts):
    """Computes the rows of the k-th images of a worker in an epoch; the epoch begins again at its end."""
    index, workers, _ = parts
    return order(index + workers * (k % _own(number, parts)), number, seed, shuffle)


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
