"""The open calls of a gRPC server, and which of them end if there are too many or they are too slow."""

import collections
import threading
import time
import urllib.parse

import grpc
from grpc._cython import cygrpc

from keras_ssl.serving.server import memory
from keras_ssl.serving.server.addresses import owner
from keras_ssl.serving.server.errors import StatusError

MESSAGE_SECONDS = 30.0  # that a message may take to arrive
READ_SECONDS = 30.0  # that a client may take to read the response
SLOW_SECONDS = 0.5  # after which a call may be ended early if there is too little memory
MAX_CALLS = 4096  # open ones; per connection see "grpc.max_concurrent_streams"
MAX_UNREAD = 2**28  # bytes of responses that clients have not read after SLOW_SECONDS
MAX_STREAMS = 256  # calls of streaming methods
MAX_STREAMS_PER_CONNECTION = 8

OK = cygrpc.StatusCode.ok
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


class Call:
    """A call of a client. Its methods can be used by any thread, and do nothing once the call has ended.

    Attributes:
        connection: str, the address of the client, such as "ipv4:10.0.0.1:4711" or "unix:".
        waiting: float, the time since when it waits for its message; 0 if it does not wait.
        answered: float, the time when the response was sent; 0 before.
        unread: int, bytes of that response.
    """

    def __init__(self, core, deadline, method):
        self._core, self.deadline, self.method = core, deadline, method
        self.connection = core.peer().decode()
        self._lock = threading.Lock()
        self._open, self._started = True, False
        self.waiting = self.answered = 0.0
        self.unread, self.dropped = 0, False

    def is_active(self):
        """Returns whether the client still waits for the response."""
        return self._open and time.time() < self.deadline

    def is_working(self):
        """Returns whether its message has arrived and has not been answered."""
        return not (self.waiting or self.answered)

    def respond(self, data):
        """Sends the only response, bytes, and ends the call."""
        self.unread = len(data)
        self._batch([cygrpc.SendMessageOperation(data, 0), _status(OK, "")], last=True)

    def fail(self, error):
        """Ends the call with the status of a StatusError."""
        self._batch([_status(error.code.value[0], error.message)], last=True)

    def end(self):
        """Ends a stream of responses."""
        self._batch([_status(OK, "")], last=True)

    def send(self, data, sent):
        """Sends one of several responses; the next one may only be sent after `sent` was called.

        Args:
            data: bytes.
            sent: function without arguments, which is called in the server's thread.
        """
        self._batch([cygrpc.SendMessageOperation(data, 0)], lambda event: event.success and sent())

    def receive(self, tag):
        """Waits for a message; `tag` is called with its event."""
        self.waiting = time.monotonic()
        self._core.start_server_batch((cygrpc.ReceiveMessageOperation(0),), tag)

    def drop(self, code, message):
        """Ends a call that waits for its message, or cancels one whose response is not read."""
        self.dropped = True
        if self.waiting:
            self.waiting = 0.0
            self.fail(StatusError(code, message))
        else:
            self.unread = 0
            self._core.cancel(code.value[0], message)

    def close(self):
        """To be called when the call has closed: the client has read the response, or has left."""
        with self._lock:
            self._open = False

    def _batch(self, operations, tag=lambda event: None, last=False):
        with self._lock:
            if not self._open:
                return
            if not self._started:
                operations.insert(0, cygrpc.SendInitialMetadataOperation(None, 0))
            self._started, self._open = True, not last
            if last:
                self.answered = time.monotonic()
            self._core.start_server_batch(operations, tag)


def _status(code, message):
    return cygrpc.SendStatusFromServerOperation(None, code, message.encode(), 0)


class Calls:
    """The open calls. Only the server's thread uses it.

    If some calls have to end, they are calls of the connection that has most of them, the oldest first. So a
    client that opens many calls, or is slow in many, only harms itself.
    """

    def __init__(self):
        self._open = set()
        self._by_connection = {}  # dict of calls, the oldest first, without those that were dropped
        self._streams = {}  # the oldest first
        self._memory, self._trim = memory.Memory(), False
        # By connection: calls that ended before their message came.
        self.left = collections.Counter()

    def __len__(self):
        return len(self._open)

    def __iter__(self):
        return iter(self._open)

    def add(self, call):
        """Adds a call, and ends another one if there are too many.

        If no other call may be ended, the new one is added nevertheless: it may be a health check, and the
        calls that are being processed have their own bounds, such as the places of Predictor and MAX_STREAMS.

        Raises:
            StatusError: RESOURCE_EXHAUSTED, its connection has too many streams.
        """
        self._open.add(call)
        self._by_connection.setdefault(call.connection, {})[call] = None
        if len(self._open) > MAX_CALLS:
            groups = sorted(self._by_connection.values(), key=len, reverse=True)
            others = (one for group in groups for one in group if one is not call)
            if old := next((one for one in others if not one.is_working()), None):
                self._drop(old)
        if call.method is not None and call.method.streams:
            self._add_stream(call)

    def _add_stream(self, call):
        mine = sum(one.connection == call.connection for one in self._streams)
        if mine >= MAX_STREAMS_PER_CONNECTION:
            raise StatusError(
                EXHAUSTED,
                f"{MAX_STREAMS_PER_CONNECTION} streams of this connection are open already; close one",
            )
        if len(self._streams) >= MAX_STREAMS:
            addresses = collections.Counter(address(one.connection) for one in self._streams)
            ((most, _),) = addresses.most_common(1)
            old = next(one for one in self._streams if address(one.connection) == most)
            del self._streams[old]
            old.fail(StatusError(EXHAUSTED, "this address has more streams than others; retry"))
        self._streams[call] = None

    def remove(self, call):
        """Removes a call that has closed."""
        if call.waiting:
            self.left[call.connection] += 1
        self._open.discard(call)
        self._streams.pop(call, None)
        self._forget(call)

    def sweep(self, now):
        """Ends calls that are too slow, or hold too much memory; to be called regularly."""
        slow, unread = [], []
        for call in self._open:
            if call.waiting and now - call.waiting > SLOW_SECONDS:
                slow.append(call)
            elif call.answered and now - call.answered > SLOW_SECONDS:
                unread.append(call)
        for call in slow:
            if now - call.waiting > MESSAGE_SECONDS:
                self._drop(call, grpc.StatusCode.DEADLINE_EXCEEDED)
        for call in unread:
            if now - call.answered > READ_SECONDS or call.dropped:
                self._drop(call)
        if self._trim:  # memory of the calls that were dropped last time
            memory.trim()
            self._trim = False
        self._save_memory(
            [call for call in slow if call.waiting], [call for call in unread if call.unread]
        )
        self._memory.settle(busy=len(self._open) > len(self._streams))

    def _save_memory(self, slow, unread):
        if self._memory.is_short(bool(slow)):
            # Only half of them: it takes a while to see how much memory this frees.
            for call in _worst(slow, lambda call: 1)[: (len(slow) + 1) // 2]:
                self._drop(call)
        size = sum(call.unread for call in unread)
        for call in _worst(unread, lambda call: call.unread)[: len(unread) - 1]:
            if size <= MAX_UNREAD:
                break
            size -= call.unread
            self._drop(call)

    def _drop(self, call, code=EXHAUSTED):
        self._trim = True
        self._forget(call)
        call.drop(code, "the message did not arrive, or the response was not read, in time")

    def _forget(self, call):
        mine = self._by_connection.get(call.connection, {})
        mine.pop(call, None)
        if not mine:
            self._by_connection.pop(call.connection, None)


def address(connection):
    """Returns the address of a connection without its port, as `addresses.owner` does."""
    host = connection.rpartition(":")[0].partition(":")[2]
    return owner(urllib.parse.unquote(host).strip("[]"))


def _worst(calls, weight):
    """Sorts calls by the sum of weights of their connection, largest first, and by age, oldest first."""
    weights = collections.Counter()
    for call in calls:
        weights[call.connection] += weight(call)
    return sorted(
        calls, key=lambda call: (-weights[call.connection], call.waiting or call.answered)
    )
