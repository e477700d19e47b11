"""Batches from other machines, by the tf.data service of TensorFlow.

The workers (`keras-ssl data-service`) receive the graph that computes the batches, including all data that is
in memory: images of `from_array` are sent to each worker once per training run, so data sets of more than
some hundred megabytes should be files. For files, only the paths are sent, and the workers read the files
under the same paths. This process reads the files that a worker cannot read.
"""

import threading
import time
import warnings

import grpc
import tensorflow as tf

MAX_AHEAD = 64  # maximum number of batches that arrive before a missing one
WAIT_SECONDS = 10.0  # seconds to wait for a batch before this process computes it
TICK_SECONDS = 0.1  # seconds between two checks of the time


def check(address, images):
    """Validates the address of a tf.data service and the dataset for it.

    Args:
        address: str, "grpc://host:port" of the dispatcher.
        images: tf.data.Dataset whose images the service should load.

    Raises:
        ValueError: `address` is malformed, no dispatcher responds at this address, or `images` has no random
            access or is computed by Python code.
    """
    protocol, _, target = str(address).partition("://")
    host, _, port = target.rpartition(":")
    if protocol != "grpc" or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"service must be of the form grpc://host:port, got {address!r}")
    if not hasattr(images, "columns"):
        raise ValueError(
            "service needs images with random access, as the readers of keras_ssl.data make them; take, map "
            "and the like lose it, keras_ssl.data.subset does not"
        )
    if images.load_row is not None and _calls_python(images):
        raise ValueError(
            "service cannot compute images by Python code, such as rendered scenes: write them by "
            "keras_ssl.data.to_tfrecord, and read these files"
        )
    # TensorFlow itself retries for hours if no server or another one responds.
    with grpc.insecure_channel(target) as channel:
        try:
            channel.unary_unary("/tensorflow.data.DispatcherService/GetVersion")(b"", timeout=10)
        except grpc.RpcError as error:
            raise ValueError(
                f"service {address!r} is no dispatcher that answers ({error.details()}): start one by "
                "keras-ssl data-service dispatcher"
            ) from None


def _calls_python(images):
    """Returns whether loading a row runs Python code, which only this process has."""
    row = {name: tf.TensorSpec(c.shape[1:], c.dtype) for name, c in images.columns.items()}
    graph = tf.function(images.load_row).get_concrete_function(row).graph.as_graph_def()
    functions = (function.node_def for function in graph.library.function)
    return any("PyFunc" in node.op for nodes in (graph.node, *functions) for node in nodes)


def served(one_step, first, last, address):
    """Creates a dataset of the batches that the workers of a tf.data service compute, in order.

    The service assigns the steps to its workers on demand and delivers each batch once, so the batches of a
    killed worker are lost. This process computes the batches that do not arrive in time. So the batches are
    the same as without the service, even if workers or the dispatcher fail.

    Args:
        one_step: function from an int64 scalar, the step, to a tf.data.Dataset of its single batch, a tuple
            (bool, x, y): whether the batch has all images of the step. If not, this process computes it
            again.
        first, last: int, the first step, and the step to stop before.
        address: str, "grpc://host:port" of the dispatcher.

    Returns:
        tf.data.Dataset of (x, y).

    Warns:
        UserWarning: the service has failed or delivers nothing.
    """

    def numbered(step):
        return one_step(step).map(lambda *batch: (step, *batch))

    steps = tf.data.Dataset.range(first, last)
    remote = steps.interleave(
        numbered, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False
    ).apply(
        tf.data.experimental.service.distribute(
            tf.data.experimental.service.ShardingPolicy.DYNAMIC, address, max_outstanding_requests=8
        )
    )
    arriving = _with_ticks(remote)

    @tf.function(input_signature=[tf.TensorSpec((), tf.int64)])
    def compute(step):
        return one_step(step).get_single_element()[1:]

    return tf.data.Dataset.from_generator(
        lambda: _in_order(arriving, compute, first, last, address),
        output_signature=remote.element_spec[2:],
    )


def _in_order(arriving, compute, first, last, address):
    """Yields the batches of all steps in order, and computes those that the service does not deliver.

    Args:
        arriving: tf.data.Dataset of (step, complete, x, y) in any order, with ticks.
        compute: function from a step to its batch.
        first, last, address: as in `served`.
    """
    source, arrived, step = [iter(arriving)], {}, first
    waiting_since, patience, warned = time.monotonic(), WAIT_SECONDS, False
    try:
        while step < last:
            number, complete, *batch = next(source[0])
            if number >= 0:
                patience = WAIT_SECONDS
            if number >= step:
                arrived[int(number)] = batch if complete else None
            now = time.monotonic()
            late = now - waiting_since >= patience
            if late and step not in arrived:
                if patience and not arrived and not warned:
                    warned = True
                    _warn(f"{address} has delivered nothing for {WAIT_SECONDS:g} s", "meanwhile")
                patience = 0  # until it delivers a batch
            while step < last and (step in arrived or len(arrived) >= MAX_AHEAD or late):
                yield tuple(arrived.pop(step, None) or compute(step))
                step, waiting_since = step + 1, time.monotonic()
                late = patience == 0 and waiting_since - now < TICK_SECONDS
    except tf.errors.OpError as error:
        _warn(f"{address} failed ({error.message})", f"from step {step} on")
        for rest in range(step, last):
            yield tuple(arrived.pop(rest, None) or compute(rest))
    finally:
        # The iterator disconnects from the dispatcher, which may hang.
        threading.Thread(target=source.clear, daemon=True).start()


def _with_ticks(dataset):
    """Interleaves a dataset with an empty element numbered -1 every TICK_SECONDS, so that nothing blocks."""
    spec = dataset.element_spec

    def zeros(part):
        return tf.zeros([size or 0 for size in part.shape], part.dtype)

    empty = (tf.constant(-1, tf.int64), *tf.nest.map_structure(zeros, spec[1:]))
    ticks = tf.raw_ops.SleepDataset(
        input_dataset=tf.data.experimental.to_variant(tf.data.Dataset.from_tensors(empty).repeat()),
        sleep_microseconds=int(TICK_SECONDS * 1e6),
        output_types=[part.dtype for part in tf.nest.flatten(spec)],
        output_shapes=[part.shape for part in tf.nest.flatten(spec)],
    )
    both = tf.stack([tf.data.experimental.to_variant(dataset), ticks])
    return tf.data.Dataset.range(2).interleave(
        lambda k: tf.data.experimental.from_variant(both[k], spec),
        cycle_length=2,
        num_parallel_calls=2,
        deterministic=False,
    )


def _warn(what, since):
    warnings.warn(f"the tf.data service {what}: batches are computed here {since}", stacklevel=4)
