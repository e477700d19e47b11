"""Batches made on other machines, by TensorFlow's own tf.data service.

The workers (`keras-ssl data-service`) get the graph that makes the batches, with all that is in memory:
pictures of `from_array` are sent whole, to each worker once a training, so whoever has more than some
hundred megabytes should give files instead. Of files only the paths are sent: they are read by the workers,
under the same paths. What a worker cannot read is read here.
"""

import threading
import time
import warnings

import grpc
import tensorflow as tf

WINDOW = 64  # batches that may be ahead of one that does not come
PATIENCE = 10.0  # seconds that a batch is waited for
TICK = 0.1  # seconds


def check(address, images):
    """Refuses what cannot be used as a tf.data service.

    Args:
        address: str, "grpc://host:port" of the dispatcher.
        images: tf.data.Dataset whose pictures the service shall load.

    Raises:
        ValueError: `address` is no address, no dispatcher answers there, or `images` is not addressable.
    """
    protocol, _, place = str(address).partition("://")
    host, _, port = place.rpartition(":")
    if protocol != "grpc" or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"service must be of the form grpc://host:port, got {address!r}")
    if not hasattr(images, "columns"):
        raise ValueError(
            "service needs images that can be asked for by their place, as the readers of keras_ssl.data "
            "make them, not a dataset derived from one"
        )
    # TensorFlow asks for hours where nobody, or somebody else, answers.
    with grpc.insecure_channel(place) as channel:
        try:
            channel.unary_unary("/tensorflow.data.DispatcherService/GetVersion")(b"", timeout=10)
        except grpc.RpcError as error:
            raise ValueError(
                f"service {address!r} is no dispatcher that answers ({error.details()}): start one by "
                "keras-ssl data-service dispatcher"
            ) from None


def served(one_step, first, last, address):
    """The batches of some steps, made by the workers of a tf.data service, in the order of the steps.

    The service deals the steps out to its workers as they ask for them, and hands each batch over once: what
    a worker had in hand when it was killed is lost. What does not come in time is made here, so the batches
    are those that this process would have made alone, whatever happens to workers and dispatcher.

    Args:
        one_step: function from an int64 scalar, the step, to a tf.data.Dataset of its one batch, as
            (bool, x, y): whether all pictures of the step are in it. One that lacks some is made here again.
        first, last: int, the first step and the one to stop before.
        address: "grpc://host:port" of the dispatcher.

    Returns:
        tf.data.Dataset of (x, y).

    Warns:
        UserWarning: the service has failed, or delivers nothing.
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
    arriving, spec = _with_ticks(remote), remote.element_spec[2:]

    @tf.function(input_signature=[tf.TensorSpec((), tf.int64)])
    def here(step):
        return one_step(step).get_single_element()[1:]

    def ordered():
        source, arrived, step = [iter(arriving)], {}, first
        asked, patience, warned = time.monotonic(), PATIENCE, False
        try:
            while step < last:
                number, complete, *batch = next(source[0])
                if number >= 0:
                    patience = PATIENCE
                if number >= step:
                    arrived[int(number)] = batch if complete else None
                looked = time.monotonic()
                late = looked - asked >= patience
                while step < last and (step in arrived or len(arrived) >= WINDOW or late):
                    if late and step not in arrived:
                        if patience and not arrived and not warned:
                            warned = True
                            _warn(
                                f"{address} has delivered nothing for {PATIENCE:g} s", "meanwhile"
                            )
                        patience = 0  # until it delivers something
                    yield tuple(arrived.pop(step, None) or here(step))
                    step, asked = step + 1, time.monotonic()
                    late = patience == 0 and asked - looked < TICK
        except tf.errors.OpError as error:
            _warn(f"{address} failed ({error.message})", f"from step {step} on")
            for rest in range(step, last):
                yield tuple(arrived.pop(rest, None) or here(rest))
        finally:
            # It takes leave of the dispatcher, which may hang.
            threading.Thread(target=source.clear, daemon=True).start()

    return tf.data.Dataset.from_generator(ordered, output_signature=spec)


def _with_ticks(dataset):
    """A dataset's elements as they come, and an empty one numbered -1 every TICK, so that nobody waits."""
    spec = dataset.element_spec

    def nothing(part):
        return tf.zeros([size or 0 for size in part.shape], part.dtype)

    empty = (tf.constant(-1, tf.int64), *tf.nest.map_structure(nothing, spec[1:]))
    ticks = tf.raw_ops.SleepDataset(
        input_dataset=tf.data.experimental.to_variant(tf.data.Dataset.from_tensors(empty).repeat()),
        sleep_microseconds=int(TICK * 1e6),
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
    warnings.warn(f"the tf.data service {what}: batches are made here {since}", stacklevel=3)
