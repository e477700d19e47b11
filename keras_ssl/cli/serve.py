"""`keras-ssl serve`: serves a folder of models, with the flags of tensorflow_model_server."""

import argparse
import faulthandler
import logging
import os
import shutil
import sys
import tempfile
from concurrent import futures
from pathlib import Path

import click

from keras_ssl.cli import common
from keras_ssl.cli.stop_signal import StopSignal

EVERYWHERE = "0.0.0.0"  # the only address that tensorflow_model_server can listen on
STOP_SECONDS = 15.0  # `Server.stop` gives about half of it to the requests in flight
# Flags of tensorflow_model_server without an effect that a client could observe.
WITHOUT_EFFECT = (
    "num_load_threads", "num_unload_threads", "max_num_load_retries", "load_retry_interval_micros",
    "flush_filesystem_caches", "enable_model_warmup", "num_request_iterations_for_warmup",
    "remove_unused_fields_from_bundle_metagraph", "rest_api_num_threads", "saved_model_tags",
    "per_process_gpu_memory_fraction", "enable_grpc_healthcheck_service", "enable_profiler",
    "enforce_session_run_timeout", "enable_signature_method_name_check",
    "xla_cpu_compilation_enabled", "xla_gpu_compilation_enabled",
)  # fmt: skip


@click.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def serve(arguments):
    """Serves exported models over gRPC and REST."""
    main(list(arguments))


def _switch(text):
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"must be true or false, got {text!r}")
    return text.lower() in ("true", "1")


def parser():
    """Creates the argparse.ArgumentParser of the subcommand."""
    p = common.ArgumentParser(
        prog="keras-ssl serve",
        description="Serves the newest version of every model in DIRECTORY, or what the flags of "
        "tensorflow_model_server say. With --host 0.0.0.0, and without any of these flags but --port, "
        "this process becomes tensorflow_model_server where that is on the PATH.",
        allow_abbrev=False,
    )
    switch = {"nargs": "?", "const": True, "default": False, "type": _switch, "metavar": "BOOL"}
    p.add_argument("directory", nargs="?", help="a folder of models, or one model")
    p.add_argument("--port", type=int, default=8500, help="gRPC; 0 for a free port with DIRECTORY")
    p.add_argument("--host", help="address to listen on; 127.0.0.1 with DIRECTORY, else 0.0.0.0")
    p.add_argument("--rest_api_port", type=int, default=0, help="REST and metrics; 0 for none")
    p.add_argument("--rest_api_timeout_in_ms", type=int, default=30000)
    p.add_argument("--rest_api_max_request_bytes", type=int, default=2**23)
    p.add_argument(
        "--rest_api_max_connections_per_client", type=int, default=0, metavar="N",
        help="from one address; 0 for half of all; a proxy may need more",
    )  # fmt: skip
    p.add_argument("--grpc_socket_path", help="UNIX socket for gRPC")
    p.add_argument("--model_name", default="default")
    p.add_argument("--model_base_path", help="folder of one model")
    p.add_argument("--model_config_file", help="text-format ModelServerConfig")
    p.add_argument("--model_config_file_poll_wait_seconds", type=float, default=0)
    p.add_argument("--file_system_poll_wait_seconds", type=float, default=1)
    p.add_argument("--allow_version_labels_for_unavailable_models", **switch)
    p.add_argument("--monitoring_config_file", help="text-format MonitoringConfig")
    p.add_argument("--enable_batching", **switch)
    p.add_argument("--batching_parameters_file", help="text-format BatchingParameters")
    p.add_argument("--enable_serialization_as_tensor_content", **switch)
    p.add_argument("--grpc_channel_arguments", default="", help="a=1,b=2")
    p.add_argument("--grpc_max_threads", type=int, default=128, help="maximum concurrent requests")
    p.add_argument("--max_rows", type=int, default=1024, help="maximum rows (images) per request")
    p.add_argument("--enable_grpc_reflection", **{**switch, "default": True})
    p.add_argument("--ssl_config_file", help="text-format SSLConfig")
    p.add_argument(
        "--reload_config", choices=["off", "socket", "all"], default="off",
        help="who may call HandleReloadConfigRequest: clients of --grpc_socket_path, or all",
    )  # fmt: skip
    p.add_argument(
        "--reload_config_roots", default="",
        help="folders, separated by commas, from which such a request may load models",
    )  # fmt: skip
    p.add_argument("--tensorflow_session_parallelism", type=int, default=0)
    p.add_argument("--tensorflow_intra_op_parallelism", type=int, default=0)
    p.add_argument("--tensorflow_inter_op_parallelism", type=int, default=0)
    for name in WITHOUT_EFFECT:
        p.add_argument(f"--{name}", nargs="?", help=argparse.SUPPRESS)
    return p


def main(arguments):
    """Serves until SIGTERM or SIGINT, then finishes the requests in flight.

    Args:
        arguments: list of str, the command line.

    Raises:
        ValueError: invalid flags, no model that can be loaded, or a port that cannot be bound.
    """
    args = parser().parse_args(arguments)
    given = {name for name in vars(args) if getattr(args, name) != parser().get_default(name)}
    if args.directory is None and not (args.model_base_path or args.model_config_file):
        args.directory = "saved_models"
    _check(args)
    for name in WITHOUT_EFFECT:
        if name in given:
            print(f"--{name} has no effect in the embedded server", file=sys.stderr)

    common.import_tensorflow()
    binary = shutil.which("tensorflow_model_server")
    if binary and args.directory and given <= {"directory", "port", "host"}:
        # It listens on all addresses, which must be requested explicitly.
        if args.host == EVERYWHERE:
            _become(binary, args)
        print(
            f"the embedded server runs, and not {binary}, which --host {EVERYWHERE} would run",
            file=sys.stderr,
        )
    _log_requests()
    stop = StopSignal()
    host = args.host or ("127.0.0.1" if args.directory else EVERYWHERE)
    server = _started(args, host, stop)
    _announce(server, host)
    stop.wait()
    # Even if something hangs, the process ends and prints the stacks of its threads.
    faulthandler.dump_traceback_later(STOP_SECONDS, exit=True)
    server.stop()
    # Neither a hanging request, whose client has already received a response, nor a model that is being
    # loaded may keep the process alive. And on a busy machine, Python needs seconds to shut down TensorFlow.
    _exit()


def _check(args):
    """Raises ValueError for flags that contradict each other or name a folder that does not exist."""
    if args.directory and (args.model_base_path or args.model_config_file):
        raise ValueError(
            "serve: give DIRECTORY or --model_base_path or --model_config_file, not two of them"
        )
    # TensorFlow Serving waits for a path that does not exist; a typo is more likely.
    path = args.model_base_path
    if path and not args.model_config_file and not Path(path).is_dir():
        raise ValueError(f"serve: --model_base_path: no folder {path!r}")
    if args.batching_parameters_file and not args.enable_batching:
        raise ValueError("serve: --batching_parameters_file needs --enable_batching")
    if args.rest_api_port and args.rest_api_port == args.port:
        raise ValueError(f"serve: --rest_api_port and --port are both {args.port}")
    _channel_arguments(args.grpc_channel_arguments)


def _started(args, host, stop):
    """Starts the embedded server, or ends the process if `stop` comes while models are loaded."""
    # In a thread, since Python would handle a signal only after TensorFlow has returned.
    starting = futures.ThreadPoolExecutor(1).submit(_server, args, host)
    while not starting.done():
        if stop.wait(0.02):
            _exit()
    return starting.result()


def _exit():
    """Ends the process at once, without waiting for its threads."""
    sys.stdout.flush()
    os._exit(0)


def _become(binary, args):
    """Replaces this process by tensorflow_model_server."""
    from google.protobuf import text_format

    from keras_ssl.serving.server import configs

    models = configs.models_in(args.directory)
    with tempfile.NamedTemporaryFile("w", suffix=".config", delete=False) as file:
        file.write(text_format.MessageToString(configs.config_of(models)))
    port = args.port or common.free_port()
    print(f"{binary} serves {', '.join(models)} on {EVERYWHERE}:{port}", flush=True)
    os.execv(binary, [binary, f"--port={port}", f"--model_config_file={file.name}"])


def _log_requests():
    logger = logging.getLogger("keras_ssl.serving")
    logger.setLevel(logging.INFO)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)


def _server(args, host):
    """Starts the embedded server with these flags and returns it."""
    from keras_ssl.serving.server import configs
    from keras_ssl.serving.server.embedded import Server
    from keras_ssl.serving.server.unix_socket import is_held

    socket_path = args.grpc_socket_path
    # TensorFlow Serving would take over the socket of the other server, and also listen on its port.
    port = args.port if args.directory or args.port else None
    if socket_path and port is not None and args.reload_config != "socket" and is_held(socket_path):
        print(
            f"error: --grpc_socket_path {socket_path!r} is held by another server, which keeps it; this "
            "one listens on its port only",
            file=sys.stderr,
            flush=True,
        )
        socket_path = None
    server = Server(
        args.directory,
        port=port,
        host=host,
        rest_port=args.rest_api_port or None,
        socket_path=socket_path,
        config=_model_config(args),
        config_poll_seconds=args.model_config_file_poll_wait_seconds,
        poll_seconds=args.file_system_poll_wait_seconds,
        batching=_batching(args),
        monitoring=_read(args.monitoring_config_file, configs.MonitoringConfig),
        tls=_read(args.ssl_config_file, configs.SSLConfig),
        rest_timeout=args.rest_api_timeout_in_ms / 1000,
        rest_max_request_bytes=args.rest_api_max_request_bytes,
        rest_max_connections_per_client=args.rest_api_max_connections_per_client,
        tensor_content=args.enable_serialization_as_tensor_content,
        limit=args.grpc_max_threads,
        max_rows=args.max_rows,
        reflection=args.enable_grpc_reflection,
        channel_arguments=_channel_arguments(args.grpc_channel_arguments),
        session_config=_session_config(args),
        any_labels=args.allow_version_labels_for_unavailable_models,
        reload=args.reload_config,
        reload_roots=list(filter(None, args.reload_config_roots.split(","))),
    )
    server.__enter__()
    return server


def _model_config(args):
    """Returns the ModelServerConfig of the flags, or its path; None if DIRECTORY is given."""
    from keras_ssl.serving.server import configs

    if args.model_config_file:
        return args.model_config_file
    if args.model_base_path:
        return configs.config_of({args.model_name: Path(args.model_base_path).resolve()})
    return None


def _batching(args):
    from keras_ssl.serving.server import configs

    if not args.enable_batching:
        return None
    if not args.batching_parameters_file:
        return configs.BatchingParameters()
    return configs.read(args.batching_parameters_file, configs.BatchingParameters)


def _read(path, message):
    from keras_ssl.serving.server import configs

    return configs.read(path, message) if path else None


def _session_config(args):
    import tensorflow as tf

    both = args.tensorflow_session_parallelism
    return tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=args.tensorflow_intra_op_parallelism or both,
        inter_op_parallelism_threads=args.tensorflow_inter_op_parallelism or both,
    )


def _channel_arguments(text):
    """Parses "a=1,b=x" to a dict, with numbers as int, as gRPC requires."""
    arguments = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise ValueError(f"--grpc_channel_arguments must be a=1,b=2, got {part!r}")
        arguments[key] = int(value) if value.lstrip("-").isdecimal() else value
    return arguments


def _announce(server, host):
    for name in server.models.names():
        numbers = ", ".join(str(version) for version in server.models.versions(name))
        print(f"{name} version {numbers}", flush=True)
    rest = f" and port {server.rest_port} (REST)" if server.rest_port else ""
    print(f"embedded server listens on {host}:{server.port} (gRPC){rest}; Ctrl-C stops", flush=True)
