"""Several devices, several machines: the strategies, and what losses and callbacks need of them."""

import contextlib
import json
import os

import numpy as np
import tensorflow as tf

LOOK = 3  # seconds between two looks at the other workers; a process that is done waits as long


class MultiWorkerStrategy(tf.distribute.MultiWorkerMirroredStrategy):
    """TensorFlow's strategy for several machines, mended for Keras 3: `fit`, `evaluate`, `predict` work.

    Keras reduces structures and scalars, which TensorFlow refuses (keras issue 20585), and averages batches
    of whole numbers, for which there is no collective. Weights are mirrored on all workers, gradients are
    summed over all replicas.

    Args:
        resolver: tf.distribute.cluster_resolver.ClusterResolver that knows the workers and which one this
            process is.

    Raises:
        RuntimeError: TensorFlow has run something before: make the strategy first.

    Attributes:
        worker: (index, number) of this process among the workers; 0 is the chief, the only one to write.
    """

    def __init__(self, resolver):
        cluster, chiefs = resolver.cluster_spec().as_dict(), 0
        if resolver.task_type == "worker":
            chiefs = len(cluster.get("chief", []))
        self.worker = (resolver.task_id + chiefs, sum(len(tasks) for tasks in cluster.values()))
        with contextlib.suppress(ImportError):  # private; without it they are TensorFlow's 30
            from tensorflow.python.distribute import collective_all_reduce_strategy as private

            private.CollectiveAllReduceExtended._check_health_interval = LOOK
        super().__init__(cluster_resolver=resolver)

    def reduce(self, reduce_op, value, axis=None):
        return tf.nest.map_structure(lambda v: self._reduce(reduce_op, v, axis), value)

    def _reduce(self, reduce_op, value, axis):
        one = self.experimental_local_results(value)[0]
        if one.dtype in (tf.uint8, tf.bool):
            # In a function: TensorFlow warns of `run` outside.
            value = tf.function(lambda v: self.run(tf.cast, args=(v, tf.float32)))(value)
        return super().reduce(reduce_op, value, axis if one.shape.rank else None)


def strategy(name="auto"):
    """The strategy to make the encoder and the task under: `with strategy(): ...`.

    Make it before anything else of TensorFlow runs.

    Args:
        name: "mirrored", all GPUs of this machine (without one, its logical CPUs); "multi_worker", all
            replicas of several machines, each of which runs this program, described by the environment
            variable TF_CONFIG or by Slurm; "auto", what fits: several machines where the environment
            describes them, several GPUs where there are, else one device.

    Returns:
        tf.distribute.Strategy; of one device the default one, which needs no scope.

    Raises:
        ValueError: an unknown name; "multi_worker" without a description of the workers, or one that does
            not fit this process.

    Reference: https://www.tensorflow.org/guide/distributed_training

    Example:
        >>> strategy("auto").num_replicas_in_sync
        1
    """
    if name not in ("auto", "mirrored", "multi_worker"):
        raise ValueError(f'strategy must be "auto", "mirrored" or "multi_worker", got {name!r}')
    gpus = tf.config.list_physical_devices("GPU")
    if name != "mirrored":
        resolver = _resolver()
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


def _resolver():
    """Who the workers are, by TF_CONFIG or Slurm; None where there is only this process."""
    described = os.environ.get("TF_CONFIG")
    if described:
        try:
            config = json.loads(described)
            cluster, task = config["cluster"], config["task"]
            cluster[task["type"]][int(task["index"])]  # is there
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"TF_CONFIG does not name this process ({type(error).__name__}: {error}): it must be "
                '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}, got '
                f"{described}"
            ) from None
        if {*cluster} - {"chief", "worker"}:
            raise ValueError(
                f"TF_CONFIG may have a chief and workers only, got {', '.join(cluster)}: all of them train"
            )
        if sum(map(len, cluster.values())) == 1:
            return None
        return tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        # Each job has ports of its own, since jobs may share a machine.
        port = 20000 + int(os.environ.get("SLURM_JOB_ID", 0)) * 16 % 10000
        if tf.config.list_physical_devices("GPU"):
            return tf.distribute.cluster_resolver.SlurmClusterResolver(port_base=port)
        # It counts in GPUs: one a task, which this machine does not have.
        tasks = int(os.environ["SLURM_STEP_NUM_TASKS"])
        slurm = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=port, gpus_per_node=tasks, gpus_per_task=1, auto_set_gpu=False
        )
        spec = slurm.cluster_spec()
        return tf.distribute.cluster_resolver.SimpleClusterResolver(
            spec, task_type="worker", task_id=slurm.task_id, num_accelerators={"GPU": 0}
        )
    return None


def all_gather(tensor):
    """The rows of all replicas, for losses that need the whole batch; gradients flow back to each.

    Args:
        tensor: (B, ...) tensor, the rows of this replica.

    Returns:
        (N, ...) tensor, the rows of the first replica first; `tensor` itself where there is one replica.

    Example:
        >>> all_gather(tf.constant([[1.0, 2.0]])).shape
        TensorShape([1, 2])
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tensor
    return context.all_gather(tensor, axis=0)


def first_row(tensor):
    """Where the rows of this replica start in `all_gather(tensor)`.

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
    sizes = context.all_gather(tf.shape(tensor)[:1], axis=0)
    return tf.reduce_sum(sizes[: context.replica_id_in_sync_group])


def worker(strategy):
    """(index, number) of this process among the workers of a strategy; (0, 1) where it is alone.

    Example:
        >>> worker(tf.distribute.get_strategy())
        (0, 1)
    """
    return getattr(strategy, "worker", (0, 1))


def share(strategy, dataset):
    """What `fit` needs to train on this worker's share of the batches, made by `PretextModel.dataset`.

    Args:
        strategy: tf.distribute.Strategy.
        dataset: tf.data.Dataset of this worker's batches.

    Returns:
        A dataset that Keras does not share out again; `dataset` itself where this process is alone.
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
    """The first batch of a Keras epoch iterator, as the first replica of this worker gets it.

    Args:
        strategy: tf.distribute.Strategy.
        iterator: the iterator that Keras hands to `_maybe_symbolic_build`.

    Returns:
        The batch, a structure of tensors.
    """
    batch = next(next(iter(iterator))[2])
    return tf.nest.map_structure(lambda v: strategy.experimental_local_results(v)[0], batch)


def from_chief(strategy, arrays):
    """What the chief has, on every worker, bit for bit.

    Args:
        strategy: tf.distribute.Strategy.
        arrays: list of numpy arrays, of the same shapes and dtypes on all workers.

    Returns:
        list of numpy arrays.

    Example:
        >>> from_chief(tf.distribute.get_strategy(), [np.arange(3)])
        [array([0, 1, 2])]
    """
    if worker(strategy)[1] == 1:
        return arrays
    # In one piece and as whole numbers: the sum with zeros keeps every bit, that of a NaN and of -0.0 too.
    data = b"".join(array.tobytes() for array in arrays)
    packed = np.frombuffer(data + bytes(-len(data) % 4), np.int32)

    def own(context):
        chief = context.replica_id_in_sync_group == 0
        return tf.constant(packed if chief else np.zeros_like(packed))

    values = strategy.experimental_distribute_values_from_function(own)
    data, received, start = strategy.reduce("SUM", values).numpy().tobytes(), [], 0
    for array in arrays:
        part = np.frombuffer(data, array.dtype, array.size, start)
        received.append(part.reshape(array.shape))
        start += array.nbytes
    return received


def gather(strategy, array):
    """The rows that each worker has, those of the first worker first.

    Args:
        strategy: tf.distribute.Strategy.
        array: (n, ...) numpy array, n may differ among the workers.

    Returns:
        numpy array.

    Example:
        >>> gather(tf.distribute.get_strategy(), np.arange(3)).tolist()
        [0, 1, 2]
    """
    if worker(strategy)[1] == 1:
        return array

    def own(context):
        local = context.replica_id_in_sync_group % len(strategy.extended.worker_devices) == 0
        return tf.constant(array if local else array[:0])

    values = strategy.experimental_distribute_values_from_function(own)
    return strategy.gather(values, axis=0).numpy()


@contextlib.contextmanager
def lost_worker(strategy, checkpoint=None):
    """Says in one sentence that another worker is gone, instead of what TensorFlow says.

    Args:
        strategy: tf.distribute.Strategy.
        checkpoint: callbacks.Checkpoint of the training, or None.

    Raises:
        RuntimeError: another worker is gone.
    """
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        index, number = worker(strategy)
        if number == 1:
            raise
        again = f" from {checkpoint.directory}" if checkpoint else ""
        raise RuntimeError(
            f"worker {index} of {number} stops, since another worker is gone: start all of them again"
            f"{again and ', and the training goes on' + again}"
        ) from error
