"""`keras-ssl data-service`: the dispatcher and the workers of TensorFlow's tf.data service."""

import os
import socket

import click

from keras_ssl.cli import common
from keras_ssl.cli.stop_signal import StopSignal

WORKER_TIMEOUT = 5  # seconds without a heartbeat until a worker gets no more requests
UNUSED_JOB = 20  # seconds until the workers drop the data of a training run that has ended


@click.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def data_service(arguments):
    """Runs a tf.data service that computes batches for training."""
    main(list(arguments))


def parser():
    """Creates the argparse.ArgumentParser of the subcommand."""
    p = common.ArgumentParser(
        prog="keras-ssl data-service",
        description="TensorFlow's tf.data service: one dispatcher and any number of workers, which make "
        "the batches of task.dataset(..., service='grpc://host:port'). Anyone who reaches a port can run "
        "whatever TensorFlow can run: open the ports only to machines that you trust.",
        allow_abbrev=False,
    )
    roles = p.add_subparsers(dest="role", required=True, metavar="dispatcher|worker")
    dispatcher = roles.add_parser("dispatcher", allow_abbrev=False)
    dispatcher.add_argument("--port", type=int, default=5050, help="0 for a free port")
    dispatcher.add_argument(
        "--work-dir", help="where to keep the state that a restart resumes from"
    )
    worker = roles.add_parser("worker", allow_abbrev=False)
    worker.add_argument("--dispatcher", required=True, metavar="HOST:PORT")
    worker.add_argument("--port", type=int, default=0, help="0 (the default) for a free port")
    worker.add_argument(
        "--address", metavar="HOST:PORT",
        help="address at which training processes reach this worker; default: as the dispatcher sees it",
    )  # fmt: skip
    return p


def main(arguments):
    """Serves until SIGTERM or SIGINT.

    Args:
        arguments: list of str, the command line.

    Raises:
        ValueError: invalid flags, a dispatcher that does not respond, or a port that is in use.
    """
    args = parser().parse_args(arguments)
    _check_port(args.port)
    address = _reachable_address(args) if args.role == "worker" else None

    common.import_tensorflow()
    # Referenced until the end, since the server stops with its last reference.
    _server, message = _dispatcher(args) if args.role == "dispatcher" else _worker(args, address)
    stop = StopSignal()
    print(f"{message}; Ctrl-C stops", flush=True)
    stop.wait()
    # Without server.stop(), which takes an hour for a worker whose dispatcher has exited. It is not needed:
    # the training process recomputes the batches of a worker, and the dispatcher writes its journal before it
    # responds.
    os._exit(0)


def _check_port(port):
    if not 0 <= port < 2**16:
        raise ValueError(f"data-service: --port must be in 0..65535, got {port}")
    if port:
        try:  # gRPC would not notice, and share the port
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("", port))
        except OSError as error:
            raise ValueError(
                f"data-service: --port {port} is not available ({error.strerror})"
            ) from None


def _reachable_address(args):
    """Returns the worker's (address, port), by default the address that the dispatcher sees."""
    host, colon, port = args.dispatcher.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ValueError(f"data-service: --dispatcher must be HOST:PORT, got {args.dispatcher!r}")
    try:
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            own = connection.getsockname()[0]
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"data-service: no dispatcher answers at {args.dispatcher!r} ({error}): start one by "
            "keras-ssl data-service dispatcher"
        ) from None
    port = args.port or common.free_port()
    return args.address or (f"[{own}]:{port}" if ":" in own else f"{own}:{port}"), port


def _dispatcher(args):
    import tensorflow as tf

    server = tf.data.experimental.service.DispatchServer(
        tf.data.experimental.service.DispatcherConfig(
            port=args.port,
            work_dir=args.work_dir,
            fault_tolerant_mode=args.work_dir is not None,
            worker_timeout_ms=WORKER_TIMEOUT * 1000,
            job_gc_check_interval_ms=1000,  # also how often it looks for lost workers
            job_gc_timeout_ms=UNUSED_JOB * 1000,
        )
    )
    port = server.target.rpartition(":")[2]
    return server, f"dispatcher listens on port {port}"


def _worker(args, address):
    import tensorflow as tf

    name, port = address
    server = tf.data.experimental.service.WorkerServer(
        tf.data.experimental.service.WorkerConfig(
            dispatcher_address=args.dispatcher,
            worker_address=name,
            port=port,
            heartbeat_interval_ms=1000,
        )
    )
    return server, f"worker listens on port {port} and is known as {name}"
