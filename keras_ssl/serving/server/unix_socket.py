"""UNIX sockets: gRPC replaces anything at the path, even the socket of a running server."""

import contextlib
import os
import socket
import stat

UMASK = 0o117  # rw-rw----: connecting requires write permission
CONNECT_SECONDS = 1.0


@contextlib.contextmanager
def claimed(path):
    """Checks that no other server has the socket; sockets made in the context have the mode 0660.

    The mode follows from the umask of the process, so that other users cannot connect at any moment. Other
    threads must not create files meanwhile.

    Args:
        path: path of the socket. A socket that no server listens on is replaced.

    Raises:
        ValueError: a server listens on the socket, or `path` is something else.

    Example:
        >>> with claimed("/tmp/keras_ssl_doctest.socket"):
        ...     pass
    """
    try:
        taken = stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:  # there is none, or it cannot be created either
        taken = None
    if taken is False:
        raise ValueError(f"socket_path {path!r} exists and is no socket: choose another path")
    if taken and is_held(path):
        raise ValueError(
            f"socket_path {path!r} is held by another server: stop that or choose another path"
        )
    before = os.umask(UMASK)
    try:
        yield
    finally:
        os.umask(before)


def is_held(path):
    """Returns whether a server listens on the socket at `path`."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(CONNECT_SECONDS)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):  # none, or of a server that was killed
            return False
        except OSError:  # its queue of connections is full, or this user may not connect
            return True
    return True
