"""Distributed training: strategies for several devices and machines, and exchange between workers."""

import contextlib

import numpy as np
import tensorflow as tf

from keras_ssl.training import cluster

HEALTH_CHECK_SECONDS = 3  # interval of TensorFlow's checks of other workers; delays exit by as much


class MultiWorkerStrategy(tf.distribute.MultiWorkerMirroredStrategy):
    """Patches TensorFlow's strategy for several machines, so that Keras 3 can fit, evaluate and predict.

    Keras reduces structures and scalars, which TensorFlow refuses (keras issue 20585), and averages integer
    batches, for which there is no collective operation. Weights are mirrored on all workers, and gradients
    are summed over all replicas.

    Args:
        resolver: tf.distribute.cluster_resolver.ClusterResolver that describes the workers and this
            process.

    Raises:
        RuntimeError: TensorFlow has already executed operations: create the strategy first.

    Attributes:
        worker: (index, number) of this process among the workers; 0 is the chief, the only one that writes
            files.
    """

    def __init__(self, resolver):
        cluster, chiefs = resolver.cluster_spec().as_dict(), 0
        if resolver.task_type == "worker":
            chiefs = len(cluster.get("chief", []))
        self.worker = (resolver.task_id + chiefs, sum(len(tasks) for tasks in cluster.values()))
        with contextlib.suppress(ImportError):  # private; the default is 30 seconds
            from tensorflow.python.distribute import collective_all_reduce_strategy as private

            private.CollectiveAllReduceExtended._check_health_interval = HEALTH_CHECK_SECONDS
        super().__init__(cluster_resolver=resolver)

    def reduce(self, reduce_op, value, axis=None):
        return tf.nest.map_structure(lambda v: self._reduce(reduce_op, v, axis), value)

    def _reduce(self, reduce_op, value, axis):
        local = self.experimental_local_results(value)[0]
        if local.dtype in (tf.uint8, tf.bool):
            # In a tf.function, since TensorFlow warns of eager calls of `run`.
            value = tf.function(lambda v: self.run(tf.cast, args=(v, tf.float32)))(value)
        return super().reduce(reduce_op, value, axis if local.shape.rank else None)


def strategy(name="auto"):
    """Creates a strategy, in whose scope encoder and task are created: `with strategy().scope(): ...`.

    Create it before TensorFlow executes any operation.

    Args:
        name: "mirrored" for all GPUs of this machine (or its logical CPUs if there is none);
            "multi_worker" for all replicas of several machines, each of which runs this program, described
            by the environment variable TF_CONFIG or by Slurm; "auto" for several machines if the
            environment describes them, else several GPUs if there are any, else one device.

    Returns:
        tf.distribute.Strategy; for a single device the default one, which needs no scope.

    Raises:
        ValueError: `name` is unknown, or is "multi_worker" and the workers are not described; TF_CONFIG
            does not describe this process.

    Reference: https://www.tensorflow.org/guide/distributed_training

    Example:
        >>> strategy("auto").num_replicas_in_sync
        1
    """
    if name not in ("auto", "mirrored", "multi_worker"):
        raise ValueError(f'strategy must be "auto", "mirrored" or "multi_worker", got {name!r}')
    gpus = tf.config.list_physical_devices("GPU")
    if name != "mirrored":
        resolver = cluster.resolver()
        if resolver is not None:
            return MultiWorkerStrategy(resolver)
        if name == "multi_worker":
            raise ValueError(
                "strategy multi_worker finds no other worker: set TF_CONFIG to "
                '{"cluster": {"worker": ["host1:port", "host2:port"]}, '
                '"task": {"type": "worker", "index": 0}} '
                "with the index of this process, or start it by srun with several tasks"
            )
        if len(gpus) < 2:
            return tf.distribute.get_strategy()
    kind = "GPU" if gpus else "CPU"
    number = len(tf.config.list_logical_devices(kind))
    return tf.distribute.MirroredStrategy([f"{kind}:{i}" for i in range(number)])


def all_gather(tensor):
    """Gathers the rows of all replicas, with gradients, for losses that need the whole batch.

    Args:
        tensor: (B, ...) tensor, the rows of this replica.

    Returns:
        (N, ...) tensor, in the order of the replicas; `tensor` itself if there is only one replica.

    Example:
        >>> all_gather(tf.constant([[1.0, 2.0]])).shape
        TensorShape([1, 2])
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tensor
    # `identity`, since the input of a traced step has no device, but several workers need one.
    return context.all_gather(tf.identity(tensor), axis=0)


def first_row(tensor):
    """Returns the index of this replica's first row in `all_gather(tensor)`.

    Args:
        tensor: (B, ...) tensor, the rows of this replica.

    Returns:
        int32 scalar.

    Example:
        >>> int(first_row(tf.constant([[1.0, 2.0]])))
        0
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tf.constant(0)
    sizes = all_gather(tf.shape(tensor)[:1])
    return tf.reduce_sum(sizes[: context.replica_id_in_sync_group])


def balance(loss, tensor):
    """Scales the gradient of this replica's loss, so that the mean over replicas is the mean over all images.

    Keras averages the losses of the replicas, even if their parts of the last batch differ in size. The value
    does not change, since Keras itself weights it by the number of images.

    Args:
        loss: scalar tensor, the mean over the images of this replica.
        tensor: (B, ...) tensor, the rows of this replica.

    Returns:
        scalar tensor, `loss` with another gradient.

    Example:
        >>> float(balance(tf.constant(3.0), tf.zeros((2, 8))))
        3.0
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return loss
    own = tf.shape(tensor)[:1]
    sizes = tf.cast(all_gather(own), loss.dtype)
    factor = tf.cast(own[0], loss.dtype) / tf.reduce_mean(sizes)
    return factor * loss + tf.stop_gradient((1 - factor) * loss)


def worker(strategy):
    """Returns (index, number) of this process among the workers of a strategy; (0, 1) for a single one.

    Example:
        >>> worker(tf.distribute.get_strategy())
        (0, 1)
    """
    return getattr(strategy, "worker", (0, 1))


def per_worker(strategy, dataset):
    """Wraps the batches of this worker, so that Keras does not shard them again.

    Args:
        strategy: tf.distribute.Strategy.
        dataset: tf.data.Dataset of this worker's batches, as returned by `PretextModel.dataset`.

    Returns:
        tf.distribute.DistributedDataset; `dataset` itself if there is only one worker.
    """
    if worker(strategy)[1] == 1:
        return dataset
    replicas = len(strategy.extended.worker_devices)
    if replicas > 1:
        parts = tf.data.Dataset.range(replicas)
        dataset = dataset.flat_map(
            lambda *batch: parts.map(
                lambda k: tf.nest.map_structure(lambda rows: rows[k::replicas], batch)
            )
        )
    return strategy.distribute_datasets_from_function(lambda context: dataset)


def first_replica(strategy, iterator):
    """Returns the part of the first batch that the first replica of this worker gets.

    Args:
        strategy: tf.distribute.Strategy.
        iterator: the epoch iterator that Keras passes to `_maybe_symbolic_build`.

    Returns:
        The batch, a structure of tensors.
    """
    batch = next(next(iter(iterator))[2])
    return tf.nest.map_structure(lambda v: strategy.experimental_local_results(v)[0], batch)


def from_chief(strategy, arrays):
    """Broadcasts arrays from the chief to all workers, bit for bit.

    Args:
        strategy: tf.distribute.Strategy.
        arrays: list of numpy arrays, of the same shapes and dtypes on all workers.

    Returns:
        list of numpy arrays, the chief's.

    Example:
        >>> from_chief(tf.distribute.get_strategy(), [np.arange(3)])
        [array([0, 1, 2])]
    """
    if worker(strategy)[1] == 1:
        return arrays
    # As a single array of integers: adding zeros keeps every bit, even those of NaN and -0.0.
    data = b"".join(array.tobytes() for array in arrays)
    packed = np.frombuffer(data + bytes(-len(data) % 4), np.int32)
    packed = packed if worker(strategy)[0] == 0 else np.zeros_like(packed)
    data, received, start = sum_over_workers(strategy, packed).tobytes(), [], 0
    for array in arrays:
        part = np.frombuffer(data, array.dtype, array.size, start)
        received.append(part.reshape(array.shape))
        start += array.nbytes
    return received


def sum_over_workers(strategy, array):
    """Sums an array over all workers.

    Args:
        strategy: tf.distribute.Strategy.
        array: numpy array, of the same shape and dtype on all workers.

    Returns:
        numpy array, bit for bit the same on all workers.

    Example:
        >>> sum_over_workers(tf.distribute.get_strategy(), np.arange(3)).tolist()
        [0, 1, 2]
    """
    if worker(strategy)[1] == 1:
        return array

    def own(context):
        local = context.replica_id_in_sync_group % len(strategy.extended.worker_devices) == 0
        return tf.constant(array if local else np.zeros_like(array))

    values = strategy.experimental_distribute_values_from_function(own)
    return strategy.reduce("SUM", values).numpy()


@contextlib.contextmanager
def lost_worker(strategy, checkpoint=None):
    """Replaces TensorFlow's errors by a RuntimeError if another worker has failed.

    Args:
        strategy: tf.distribute.Strategy.
        checkpoint: callbacks.Checkpoint of the training run, or None.

    Raises:
        RuntimeError: another worker failed.
    """
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        index, number = worker(strategy)
        if number == 1:
            raise
        resume = f"; training resumes from {checkpoint.directory}" if checkpoint else ""
        raise RuntimeError(
            f"worker {index} of {number} stopped: another worker failed; restart all workers{resume}"
        ) from error
