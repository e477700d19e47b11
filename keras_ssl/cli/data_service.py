"""`keras-ssl data-service`: the dispatcher and the workers of TensorFlow's tf.data service."""

import argparse
import os
import signal
import socket
import threading

import tensorflow as tf

from keras_ssl.cli.serve import free_port

# A worker that is killed is missed after this time; its place is then no longer asked for batches.
WORKER_TIMEOUT = 5  # seconds
UNUSED_JOB = 20  # seconds after which the workers forget a training that is gone


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(f"data-service: {message} (keras-ssl data-service --help)")


def parser():
    """The argparse.ArgumentParser of the command."""
    p = _Parser(
        prog="keras-ssl data-service",
        description="TensorFlow's tf.data service: one dispatcher and any number of workers, which make "
        "the batches of task.dataset(..., service='grpc://host:port'). Whoever reaches a port can run "
        "what TensorFlow can run: open them to machines of your own only.",
        allow_abbrev=False,
    )
    roles = p.add_subparsers(dest="role", required=True, metavar="dispatcher|worker")
    dispatcher = roles.add_parser("dispatcher", allow_abbrev=False)
    dispatcher.add_argument("--port", type=int, default=5050, help="0 is a free one")
    dispatcher.add_argument("--work-dir", help="where to keep what a restarted one needs to go on")
    worker = roles.add_parser("worker", allow_abbrev=False)
    worker.add_argument("--dispatcher", required=True, metavar="HOST:PORT")
    worker.add_argument("--port", type=int, default=0, help="0, the default, is a free one")
    worker.add_argument(
        "--address", metavar="HOST:PORT",
        help="where trainings reach this worker; by default where the dispatcher sees it",
    )  # fmt: skip
    return p


def main(arguments):
    """Serves until SIGTERM or SIGINT.

    Args:
        arguments: list of str, the command line.

    Raises:
        ValueError: flags that make no sense, a dispatcher that does not answer, a port that is taken.
    """
    args = parser().parse_args(arguments)
    if not 0 <= args.port < 2**16:
        raise ValueError(f"data-service: --port must be in 0..65535, got {args.port}")
    if args.port:
        try:  # which gRPC does not: it would share the port
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("", args.port))
        except OSError as error:
            raise ValueError(
                f"data-service: --port {args.port} cannot be had ({error.strerror})"
            ) from None
    # Held, since the server ends with its last reference.
    _server, said = _dispatcher(args) if args.role == "dispatcher" else _worker(args)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    print(f"{said}; Ctrl-C stops", flush=True)
    stopped.wait()
    # Without server.stop(), which for a worker whose dispatcher is gone takes an hour. What a worker has in
    # hand is made by the training, and the dispatcher's journal is written before it answers.
    os._exit(0)


def _dispatcher(args):
    server = tf.data.experimental.service.DispatchServer(
        tf.data.experimental.service.DispatcherConfig(
            port=args.port,
            work_dir=args.work_dir,
            fault_tolerant_mode=args.work_dir is not None,
            worker_timeout_ms=WORKER_TIMEOUT * 1000,
            job_gc_check_interval_ms=1000,  # how often it looks for lost workers too
            job_gc_timeout_ms=UNUSED_JOB * 1000,
        )
    )
    port = server.target.rpartition(":")[2]
    return server, f"dispatcher listens on port {port}"


def _worker(args):
    host, colon, port = args.dispatcher.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ValueError(f"data-service: --dispatcher must be HOST:PORT, got {args.dispatcher!r}")
    try:
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            seen = connection.getsockname()[0]
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"data-service: no dispatcher answers at {args.dispatcher!r} ({error}): start one by "
            "keras-ssl data-service dispatcher"
        ) from None
    port = args.port or free_port()
    address = args.address or (f"[{seen}]:{port}" if ":" in seen else f"{seen}:{port}")
    server = tf.data.experimental.service.WorkerServer(
        tf.data.experimental.service.WorkerConfig(
            dispatcher_address=args.dispatcher,
            worker_address=address,
            port=port,
            heartbeat_interval_ms=1000,
        )
    )
    return server, f"worker listens on port {port} and is known as {address}"
