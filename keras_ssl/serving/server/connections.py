"""Limits of HTTP connections, and which of them are closed if there are too many or they are too slow."""

import collections
import enum
import itertools
import os
import resource

import grpc

from keras_ssl.serving.server.errors import StatusError

MAX_CONNECTIONS = 2048
MIN_CONNECTIONS = 16
RESERVE = 32  # descriptors for files and models
BODIES = 8  # memory for bodies, in bodies of the maximum size
MAX_UNREAD = 2**28  # bytes of responses that wait for clients that read slowly, or not at all


class Phase(enum.IntEnum):
    """What a connection is doing; those with the lowest number are closed first."""

    IDLE = 0  # waits for a request
    DISCARDING = 1  # has been rejected, and still sends its body
    HEAD = 2  # has received a part of the head
    BODY = 3  # has received the head and a part of the body
    SENDING = 4  # the client does not read the response
    WORKING = 5  # is not closed by the server, unless its transport has been closing for too long


# How long a client may take to read the rest of the response when its connection is closing, in any phase.
CLOSING_SECONDS = 30.0
# How long a connection may be in a phase. Bytes that arrive meanwhile do not extend this.
SECONDS = dict.fromkeys(Phase, 30.0) | {Phase.HEAD: 10.0, Phase.WORKING: float("inf")}


def available_connections():
    """Returns how many connections REST or gRPC can have: half of the free descriptors, within bounds."""
    free = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - len(os.listdir("/dev/fd"))
    return min(max((free - RESERVE) // 2, MIN_CONNECTIONS), MAX_CONNECTIONS)


class Connections:
    """The open connections, and the bytes of bodies that each of them holds.

    For a new connection or body, the client address with the most connections (or bytes) loses the one that
    has been idle, or incomplete, for the longest time. If it has none of these, the next address loses one.
    The new one is refused only if all others are being worked on, or if no other client has as many. So a
    client that opens many connections and sends slowly only harms itself.

    A connection has the attributes `address`, `phase`, `since` (when the phase began) and `held` (bytes), and
    the methods `reject(status, message)`, which closes it, `unread()` (bytes of the response that the client
    has not read) and `is_closing()` (whether it only stays open until these are read).

    Args:
        number: int, maximum number of connections.
        per_client: int, maximum number of connections of a client address.
        max_bytes: int, maximum size of all bodies; half of it for a client address.
    """

    def __init__(self, number, per_client, max_bytes):
        self._number, self._per_client, self._max_bytes = number, per_client, max_bytes
        self._by_address = collections.defaultdict(set)
        self._bytes = collections.Counter()  # by address
        self._closing = {}  # connection -> when `close_late` first saw it closing
        self._count = self._held = 0

    def __iter__(self):
        return iter([one for group in self._by_address.values() for one in group])

    def add(self, connection):
        """Adds a connection, and closes another one, or this one, if there are too many."""
        mine = self._by_address[connection.address]
        mine.add(connection)
        self._count += 1
        if len(mine) > self._per_client:
            self._close_one([mine], connection)
        elif self._count > self._number:
            # Not from addresses with fewer connections than this one: its own may all be busy with requests.
            groups = [group for group in self._by_address.values() if len(group) >= len(mine)]
            self._close_one(sorted(groups, key=len, reverse=True), connection)

    def remove(self, connection):
        """Removes a connection that is closed; it may have been removed already.

        Its bytes count until they are released, since a body may wait for its turn after its client has left.
        """
        self._closing.pop(connection, None)
        mine = self._by_address.get(connection.address, ())
        if connection in mine:
            mine.remove(connection)
            self._count -= 1
            if not mine:
                del self._by_address[connection.address]

    def hold(self, connection, number):
        """Counts bytes of a body that a connection has received.

        Raises:
            StatusError: RESOURCE_EXHAUSTED, all memory for bodies is in use.
        """
        connection.held += number
        self._held += number
        self._bytes[connection.address] += number
        while True:
            mine = self._bytes[connection.address]
            if mine > self._max_bytes // 2:
                addresses = [connection.address]
            elif self._held > self._max_bytes:
                addresses = [one for one, number in self._bytes.items() if number >= mine]
            else:
                return
            slow = [
                one
                for address in addresses
                for one in self._by_address.get(address, ())
                if one.phase == Phase.BODY and one.held and one is not connection
            ]
            if not slow:
                raise StatusError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"{self._held} bytes of requests are in flight already; retry later",
                )
            self._reject(min(slow, key=lambda one: (-self._bytes[one.address], one.since)))

    def release(self, connection):
        """Stops counting the bytes of a connection."""
        self._held -= connection.held
        self._bytes[connection.address] -= connection.held
        if not self._bytes[connection.address]:
            del self._bytes[connection.address]
        connection.held = 0

    def close_some(self, number):
        """Closes the connections that are worth the least, at most `number` of them."""
        others = [one for one in self if one.phase != Phase.WORKING]
        for one in sorted(others, key=_worth)[:number]:
            self._reject(one)

    def limit_unread(self):
        """Closes connections that do not read, if their responses take more than MAX_UNREAD bytes.

        The last one stays, however large its response is.
        """
        unread = {one: one.unread() for one in self if one.phase == Phase.SENDING}
        sizes = collections.Counter()
        for one, size in unread.items():
            sizes[one.address] += size
        while len(unread) > 1 and sizes.total() > MAX_UNREAD:
            worst = min(unread, key=lambda one: (-sizes[one.address], one.since))
            sizes[worst.address] -= unread.pop(worst)
            self._reject(worst)

    def close_late(self, now):
        """Closes the connections that have been in a phase, or closing, for too long."""
        for one in self:
            # asyncio waits without limit until a client has read the rest of the response.
            closing = self._closing.setdefault(one, now) if one.is_closing() else now
            if now - one.since > SECONDS[one.phase] or now - closing > CLOSING_SECONDS:
                one.reject(408, f"no complete request after {SECONDS[one.phase]:.0f} seconds")
                self.remove(one)

    def _close_one(self, groups, new):
        """Closes the connection of the first groups that is worth the least, or else the new one."""
        for _, equal in itertools.groupby(groups, key=len):
            others = [one for group in equal for one in group if one is not new]
            if others := [one for one in others if one.phase != Phase.WORKING]:
                self._reject(min(others, key=_worth))
                return
        self._reject(new)

    def _reject(self, connection):
        connection.reject(503, "too many connections; retry later")
        self.remove(connection)
        if connection.phase == Phase.BODY:
            self.release(connection)  # at once, since `hold` looks at what is left


def _worth(connection):
    return connection.phase, connection.since
