"""Connection to a Ray cluster: a running one, or one on this machine that ends with the command."""

import contextlib
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading

from keras_ssl.tables import ray_cleanup

CONNECT_SECONDS = 5
# Ray's ports are open to other machines. A process has only one token, since Ray reads the variable once.
TOKEN = secrets.token_hex(32)
STORE_BYTES = 2**28  # for results that wait for the driver, a few hundred kilobytes each
SOCKET_BYTES = 107  # longest name of a Unix socket
SESSION_BYTES = (
    75  # Ray appends to the name of its folder: session_<time>_<process>/sockets/plasma_store
)


def import_ray():
    """Imports Ray, without its usage reports.

    Raises:
        ImportError: Ray is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError:
        raise ImportError(
            '--engine ray needs Ray: pip install "keras-ssl[ray]", or pip install ray'
        ) from None
    return ray


def check_address(address):
    """Raises ValueError unless an address is of the form HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not (port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(
            f"--address must be of the form HOST:PORT, that of `ray start --head`, got {address!r}"
        )


@contextlib.contextmanager
def connected(address=None):
    """Connects to a cluster, or starts one with this machine's processors and ends it afterwards.

    Args:
        address: "HOST:PORT" of a running cluster that this machine is a part of, or None.

    Yields:
        the module `ray`.

    Raises:
        ValueError: no cluster answers at that address, Ray cannot join it, or this process has joined one.
        RuntimeError: Ray does not start on this machine.
        ImportError: Ray is not installed.
    """
    ray = import_ray()
    if ray.is_initialized():
        raise ValueError("this process is connected to a Ray cluster: call ray.shutdown() first")
    with contextlib.ExitStack() as stack:
        # Ray prints the deaths of processes on stdout, whatever its log level is.
        nothing = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(contextlib.redirect_stdout(nothing))
        quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if address:
            _check_alive(address)
            started = {"address": address}
        else:
            folder = stack.enter_context(_folder())
            stack.enter_context(_token())
            started = {
                "address": "local", "num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False,
                "object_store_memory": STORE_BYTES, "_temp_dir": folder,
            }  # fmt: skip
        stack.callback(ray.shutdown)
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**started, **quiet)
            # Ray's own handler would print a stack.
            if threading.current_thread() is threading.main_thread() and before is not None:
                signal.signal(signal.SIGTERM, before)
        except Exception as error:  # Ray's exceptions are not documented
            reason = " ".join(str(error).split())[:200]
            if address:
                raise ValueError(
                    f"--address: cannot join the Ray cluster at {address!r}, which must include this "
                    f"machine and have its versions of Ray and Python: {reason}"
                ) from None
            raise RuntimeError(f"Ray does not start on this machine: {reason}") from None
        yield ray


def _check_alive(address):
    """Raises ValueError unless a cluster answers; Ray itself would try for two minutes and print messages."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    check_address(address)
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        if not os.environ.get("RAY_USE_TLS"):
            with grpc.insecure_channel(address) as channel:
                request = health_pb2.HealthCheckRequest()
                health_pb2_grpc.HealthStub(channel).Check(request, timeout=CONNECT_SECONDS)
    except OSError as error:
        reason = error.strerror or str(error)
    except grpc.RpcError as error:
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return  # a cluster that requires a token
        reason = "what listens there is not Ray's"
    else:
        return
    raise ValueError(
        f"--address: no Ray cluster answers at {address!r} ({reason}): start it by `ray start --head "
        "--port PORT` there, and by `ray start --address HOST:PORT` on the other machines"
    )


@contextlib.contextmanager
def _token():
    """Sets the variables of a cluster's token, of which Ray sets one, and then resets them.

    Programs that this process starts later need not know the token. Without a token, Ray would keep one in
    ~/.ray.
    """
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE")}
    os.environ.setdefault("RAY_AUTH_TOKEN", TOKEN)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _folder():
    """Yields a folder for the files of a cluster, and removes it, even if this process is killed."""
    folder = os.path.realpath(tempfile.mkdtemp(prefix="kssl-"))  # as /proc names it
    if len(os.fsencode(folder)) + SESSION_BYTES > SOCKET_BYTES:
        os.rmdir(folder)
        folder = os.path.realpath(tempfile.mkdtemp(prefix="kssl-", dir="/tmp"))
    cleaner = subprocess.Popen(
        [sys.executable, "-I", "-S", ray_cleanup.__file__, folder, str(os.getpid())],
        stdin=subprocess.PIPE, start_new_session=True, cwd="/",
    )  # fmt: skip
    try:
        yield folder
    finally:
        cleaner.stdin.close()
        cleaner.wait()
