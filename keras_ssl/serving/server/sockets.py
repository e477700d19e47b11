"""The TCP connections of a gRPC server: gRPC's Python interface can neither list nor close them."""

import collections
import contextlib
import os
import socket
import stat
import time
import typing

from keras_ssl.serving.server.calls import address

NEARLY_FULL = 0.75  # of the connections; the rest is for new ones until some have been closed


class _Socket(typing.NamedTuple):
    fd: int
    peer: str  # as gRPC writes it
    since: float  # when it was first seen


class Sockets:
    """Closes connections by their descriptors, so that gRPC finds them closed by the client.

    If there are too many, the address that has most of them loses those that have never sent a message, and
    then those that have sent none for the longest time. A connection whose request is being worked on is
    never closed.

    Args:
        number: int, maximum number of connections.

    Attributes:
        ports: set of int, where the server listens.
    """

    def __init__(self, number):
        self._most, self.ports = int(NEARLY_FULL * number), set()
        self._known = {}  # inode -> _Socket, or None for sockets of others

    def are_many(self):
        """Returns whether there may be too many connections."""
        return len(os.listdir("/dev/fd")) > self._most

    def relieve(self, working, heard):
        """Closes connections if there are too many.

        Args:
            working: set of the peers whose requests are being worked on.
            heard: dict from peers to the time of their last message.
        """
        found = self._find()
        numbers = collections.Counter(address(one.peer) for one in found.values())
        idle = [(inode, one) for inode, one in found.items() if one.peer not in working]
        idle.sort(
            key=lambda pair: (
                -numbers[address(pair[1].peer)], heard.get(pair[1].peer, 0.0), pair[1].since
            )
        )  # fmt: skip
        for inode, one in idle[: max(0, len(found) - self._most)]:
            _shut_down(inode, one.fd)

    def close(self, peers):
        """Closes the connections of peers."""
        if peers:
            for inode, one in self._find().items():
                if one.peer in peers:
                    _shut_down(inode, one.fd)

    def _find(self):
        """Returns dict from the inodes of the connections to their _Socket."""
        known, now = {}, time.monotonic()
        for name in os.listdir("/dev/fd"):
            with contextlib.suppress(OSError):  # it has been closed
                status = os.fstat(int(name))
                if stat.S_ISSOCK(status.st_mode):
                    inode = status.st_ino
                    if inode in self._known:
                        known[inode] = self._known[inode]
                    else:
                        known[inode] = self._look(int(name), now)
        self._known = known
        return {inode: one for inode, one in known.items() if one is not None}

    def _look(self, fd, now):
        with socket.socket(fileno=os.dup(fd)) as one:
            if one.family not in (socket.AF_INET, socket.AF_INET6):
                return None
            if one.getsockname()[1] not in self.ports:
                return None
            try:
                host, port = one.getpeername()[:2]
            except OSError:  # it listens
                return None
        host = host.removeprefix("::ffff:").replace("%", "%25")
        return _Socket(
            fd, f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}", now
        )


def _shut_down(inode, fd):
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as one:
        if os.fstat(one.fileno()).st_ino == inode:  # not another socket by now
            one.shutdown(socket.SHUT_RDWR)
