"""`keras-ssl serve`: the flags of tensorflow_model_server, and a folder as the short form."""

import argparse
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

import tensorflow as tf
from google.protobuf import text_format

from keras_ssl.serving.server import configs
from keras_ssl.serving.server.embedded import Server

# Flags of tensorflow_model_server that change nothing a client could tell.
WITHOUT_EFFECT = (
    "num_load_threads", "num_unload_threads", "max_num_load_retries", "load_retry_interval_micros",
    "flush_filesystem_caches", "enable_model_warmup", "num_request_iterations_for_warmup",
    "remove_unused_fields_from_bundle_metagraph", "rest_api_num_threads", "saved_model_tags",
    "per_process_gpu_memory_fraction", "enable_grpc_healthcheck_service", "enable_profiler",
    "enforce_session_run_timeout", "enable_signature_method_name_check",
    "xla_cpu_compilation_enabled", "xla_gpu_compilation_enabled",
)  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(f"serve: {message} (keras-ssl serve --help)")


def _switch(text):
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"must be true or false, got {text!r}")
    return text.lower() in ("true", "1")


def parser():
    """The argparse.ArgumentParser of the command."""
    p = _Parser(
        prog="keras-ssl serve",
        description="Serves the newest version of every model in DIRECTORY, or what the flags of "
        "tensorflow_model_server say. Without any of these flags this process becomes "
        "tensorflow_model_server where that is on the PATH.",
        allow_abbrev=False,
    )
    switch = {"nargs": "?", "const": True, "default": False, "type": _switch, "metavar": "BOOL"}
    p.add_argument("directory", nargs="?", help="a folder of models, or one model")
    p.add_argument("--port", type=int, default=8500, help="gRPC; with DIRECTORY 0 is a free one")
    p.add_argument("--host", help="address to listen on; 127.0.0.1 with DIRECTORY, else 0.0.0.0")
    p.add_argument("--rest_api_port", type=int, default=0, help="REST and metrics; 0 for none")
    p.add_argument("--rest_api_timeout_in_ms", type=int, default=30000)
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
    p.add_argument("--grpc_max_threads", type=int, default=128, help="requests inside at most")
    p.add_argument("--ssl_config_file", help="text-format SSLConfig")
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
        ValueError: flags that make no sense, no model that loads, a port that cannot be bound.
    """
    args = parser().parse_args(arguments)
    given = {name for name in vars(args) if getattr(args, name) != parser().get_default(name)}
    if args.directory is None and not (args.model_base_path or args.model_config_file):
        args.directory = "saved_models"
    if args.directory and (args.model_base_path or args.model_config_file):
        raise ValueError(
            "serve: give DIRECTORY or --model_base_path or --model_config_file, not two of them"
        )
    binary = shutil.which("tensorflow_model_server")
    if binary and args.directory and given <= {"directory", "port", "host"}:
        _become(binary, args)
    for name in WITHOUT_EFFECT:
        if name in given:
            print(f"--{name} has no effect in the embedded server", file=sys.stderr)
    if args.batching_parameters_file and not args.enable_batching:
        raise ValueError("serve: --batching_parameters_file needs --enable_batching")
    if args.rest_api_port and args.rest_api_port == args.port:
        raise ValueError(f"serve: --rest_api_port and --port are both {args.port}")

    config = None
    if args.model_config_file:
        config = args.model_config_file
    elif args.model_base_path:
        # TensorFlow Serving waits for a path that is not there; a typo is likelier.
        if not Path(args.model_base_path).is_dir():
            raise ValueError(f"serve: --model_base_path: no folder {args.model_base_path!r}")
        config = configs.config_of({args.model_name: Path(args.model_base_path).resolve()})
    batching = None
    if args.enable_batching:
        batching = configs.BatchingParameters()
        if args.batching_parameters_file:
            batching = configs.read(args.batching_parameters_file, configs.BatchingParameters)

    def file(path, message):
        return configs.read(path, message) if path else None

    logger = logging.getLogger("keras_ssl.serving")
    logger.setLevel(logging.INFO)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    host = args.host or ("127.0.0.1" if args.directory else "0.0.0.0")
    server = Server(
        args.directory,
        port=args.port if args.directory or args.port else None,
        host=host,
        rest_port=args.rest_api_port or None,
        socket_path=args.grpc_socket_path,
        config=config,
        config_poll_seconds=args.model_config_file_poll_wait_seconds,
        poll_seconds=args.file_system_poll_wait_seconds,
        batching=batching,
        monitoring=file(args.monitoring_config_file, configs.MonitoringConfig),
        tls=file(args.ssl_config_file, configs.SSLConfig),
        rest_timeout=args.rest_api_timeout_in_ms / 1000,
        tensor_content=args.enable_serialization_as_tensor_content,
        limit=args.grpc_max_threads,
        channel_arguments=_channel_arguments(args.grpc_channel_arguments),
        session_config=tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=args.tensorflow_intra_op_parallelism
            or args.tensorflow_session_parallelism,
            inter_op_parallelism_threads=args.tensorflow_inter_op_parallelism
            or args.tensorflow_session_parallelism,
        ),
        any_labels=args.allow_version_labels_for_unavailable_models,
    )
    server.__enter__()
    for name in server.models.names():
        numbers = ", ".join(str(version) for version in server.models.versions(name))
        print(f"{name} version {numbers}", flush=True)
    rest = f" and port {server.rest_port} (REST)" if server.rest_port else ""
    print(f"embedded server listens on {host}:{server.port} (gRPC){rest}; Ctrl-C stops", flush=True)
    stopped.wait()
    if not server.stop():
        os._exit(0)  # a run that does not end must not keep the process: its client has been told


def _become(binary, args):
    models = configs.models_in(args.directory)
    with tempfile.NamedTemporaryFile("w", suffix=".config", delete=False) as file:
        file.write(text_format.MessageToString(configs.config_of(models)))
    port = args.port or free_port()
    print(f"{binary} serves {', '.join(models)} on port {port}", flush=True)
    os.execv(binary, [binary, f"--port={port}", f"--model_config_file={file.name}"])


def free_port():
    """A port that the system has free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _channel_arguments(text):
    """Dict of "a=1,b=x": numbers as int, as gRPC wants them."""
    arguments = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise ValueError(f"--grpc_channel_arguments must be a=1,b=2, got {part!r}")
        arguments[key] = int(value) if value.lstrip("-").isdecimal() else value
    return arguments
