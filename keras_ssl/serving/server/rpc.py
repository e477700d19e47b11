"""A gRPC server that needs no thread for a call that waits.

`grpc.server` gives every call a thread before its message has arrived, so that a few hundred calls without a
message stop a server; `grpc.aio` does not, but takes half as much CPU time again per call. This server
handles the events of gRPC's completion queue itself, as `grpc.server` does, with the same private module.
"""

import collections
import logging
import resource
import threading
import time
import typing

import grpc
from grpc._cython import cygrpc

from keras_ssl.serving.server.errors import StatusError, from_exception

MAX_MESSAGE_BYTES = 2**26  # of a request, also after decompression
MAX_CONNECTIONS = 2048
MESSAGE_SECONDS = 60.0  # that a message may take to arrive
MAX_WAITING = 4096  # calls without a message; the oldest ones are dropped
MAX_STREAMS = 256  # calls of streaming methods
MAX_STREAMS_PER_CONNECTION = 8

OK = cygrpc.StatusCode.ok
log = logging.getLogger("keras_ssl.serving")


class Method(typing.NamedTuple):
    """A method of a service.

    Attributes:
        handle: function of (bytes, Call) that is called with each message. It runs in the server's only
            thread, and must return within milliseconds; the response may be sent later.
        max_bytes: int, size of a message.
        streams: bool, the response is a stream, and so may be the request.
    """

    handle: typing.Callable
    max_bytes: int = 2**16
    streams: bool = False


class Call:
    """A call of a client. Its methods can be used by any thread, and do nothing once the call has ended."""

    def __init__(self, core, deadline, method):
        self._core, self.deadline, self.method = core, deadline, method
        self._lock = threading.Lock()
        self._open, self._started = True, False
        self.connection = None  # of streaming methods

    def peer(self):
        """Returns the address of the client, such as "ipv4:10.0.0.1:4711" or "unix:/run/models"."""
        return self._core.peer().decode()

    def is_active(self):
        """Returns whether the client still waits for the response."""
        return self._open and time.time() < self.deadline

    def respond(self, data):
        """Sends the only response, bytes, and ends the call."""
        self._batch([cygrpc.SendMessageOperation(data, 0), _status(OK, "")], last=True)

    def fail(self, error):
        """Ends the call with the status of a StatusError."""
        self._batch([_status(error.code.value[0], error.message)], last=True)

    def end(self):
        """Ends a stream of responses."""
        self._batch([_status(OK, "")], last=True)

    def send(self, data, sent):
        """Sends one of several responses; only when `sent` was called may the next one be sent.

        Args:
            data: bytes.
            sent: function without arguments, which is called in the server's thread.
        """
        self._batch([cygrpc.SendMessageOperation(data, 0)], lambda event: event.success and sent())

    def _batch(self, operations, tag=lambda event: None, last=False):
        with self._lock:
            if not self._open:
                return
            if not self._started:
                operations.insert(0, cygrpc.SendInitialMetadataOperation(None, 0))
            self._started, self._open = True, not last
            self._core.start_server_batch(operations, tag)

    def _close(self):
        with self._lock:
            self._open = False


def _status(code, message):
    return cygrpc.SendStatusFromServerOperation(None, code, message.encode(), 0)


def _max_connections():
    """Half of the file descriptors that this process may open: the rest is for REST and for models."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, soft // 2)


class RpcServer:
    """Serves methods from one thread, between `start` and `stop`.

    Args:
        channel_arguments: dict of gRPC channel arguments, which replace the defaults.

    Attributes:
        methods: dict from the path of a method, such as "/package.Service/Method", to its Method.
    """

    def __init__(self, channel_arguments=None):
        options = {
            "grpc.so_reuseport": 0,  # a second server on the same port is an error
            "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
            # gRPC would decompress in the server's only thread: 64 KB of gzip are 63 MiB.
            "grpc.compression_enabled_algorithms_bitset": 1,  # none
            "grpc.max_send_message_length": -1,
            "grpc.max_concurrent_streams": 1024,  # of a connection; further requests wait at the client
            # Without these a client that connects and does nothing keeps a file descriptor forever.
            "grpc.max_allowed_incoming_connections": _max_connections(),
            "grpc.max_connection_idle_ms": 15_000,
            "grpc.server_handshake_timeout_ms": 10_000,
            "grpc.keepalive_time_ms": 60_000,
            **(channel_arguments or {}),
        }
        self.methods = {}
        self._server = cygrpc.Server(tuple(options.items()), False)
        self._queue = cygrpc.CompletionQueue()
        self._server.register_completion_queue(self._queue)
        self._calls = set()  # which have not ended
        self._waiting = {}  # calls without a message -> time since when; the oldest is the first
        self._streams = collections.Counter()  # by connection
        self._stopping, self._shut_down = False, False
        # The lock keeps the server from being freed while another thread is about to shut it down.
        self._ending, self._finished = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._serve, name="grpc", daemon=True)

    def bind(self, address, credentials=None):
        """Listens on an address, before `start`.

        Args:
            address: str, "host:port" or "unix:path".
            credentials: grpc.ServerCredentials, or None.

        Returns:
            int, the port, or 0 if the address cannot be bound.
        """
        if credentials is None:
            return self._server.add_http2_port(address.encode())
        return self._server.add_http2_port(address.encode(), credentials._credentials)

    def start(self):
        """Starts serving `methods`."""
        self._server.start()
        self._request_call()
        self._thread.start()

    def stop(self, grace=0.0):
        """Accepts no further call, waits for those in progress, and frees the ports.

        Args:
            grace: float, seconds after which calls are cancelled.
        """
        if not self._thread.ident:
            self.start()  # gRPC aborts the process if a server that has ports is freed without
        self._stopping = True
        with self._ending:
            self._server.shutdown(self._queue, self._on_shutdown)
        if not self._finished.wait(grace):
            with self._ending:
                if not self._finished.is_set():
                    self._server.cancel_all_calls()
            self._finished.wait()

    def receive(self, call):
        """Waits for the next message of a call; its method is called with it."""
        call._core.start_server_batch(
            (cygrpc.ReceiveMessageOperation(0),), lambda event: self._on_message(call, event)
        )
        self._waiting[call] = time.monotonic()
        if len(self._waiting) > MAX_WAITING:
            self._drop(next(iter(self._waiting)), grpc.StatusCode.RESOURCE_EXHAUSTED)

    def _serve(self):
        swept = time.monotonic()
        while not (self._shut_down and not self._calls):
            event = self._queue.poll(time.time() + 1)
            if event.completion_type != cygrpc.CompletionType.queue_timeout:
                try:
                    event.tag(event)
                except Exception:
                    log.exception("an event of gRPC failed")
            # An event that outlives its call would keep gRPC busy.
            event = None
            now = time.monotonic()
            if now - swept > 1:
                swept = now
                self._drop_overdue(now)
        with self._ending:
            self._server.destroy()
            self._finished.set()

    def _request_call(self):
        self._server.request_call(self._queue, self._queue, self._on_call)

    def _on_call(self, event):
        if not self._stopping:
            self._request_call()
        if not event.success or event.call is None:
            return
        details = event.call_details
        method = self.methods.get(details.method.decode(errors="replace"))
        call = Call(event.call, details.deadline, method)
        self._calls.add(call)
        event.call.start_server_batch(
            (cygrpc.ReceiveCloseOnServerOperation(0),), lambda event: self._on_close(call)
        )
        if method is None:
            call.fail(StatusError(grpc.StatusCode.UNIMPLEMENTED, "Method not found!"))
        elif method.streams and not self._count_stream(call):
            call.fail(
                StatusError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"{MAX_STREAMS_PER_CONNECTION} streams of this connection or {MAX_STREAMS} of this "
                    "server are open already; close one",
                )
            )
        else:
            self.receive(call)

    def _count_stream(self, call):
        connection = call.peer()
        if (
            self._streams[connection] >= MAX_STREAMS_PER_CONNECTION
            or self._streams.total() >= MAX_STREAMS
        ):
            return False
        call.connection = connection
        self._streams[connection] += 1
        return True

    def _on_message(self, call, event):
        self._waiting.pop(call, None)
        data = event.batch_operations[0].message()
        try:
            if data is None:  # the client has closed its side, or the call
                if call.method.streams:
                    call.end()
                else:
                    raise StatusError(grpc.StatusCode.UNIMPLEMENTED, "send exactly one message")
            elif len(data) > call.method.max_bytes:
                raise StatusError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"the message has {len(data)} bytes, more than the {call.method.max_bytes} of this "
                    "method; shorten it",
                )
            else:
                call.method.handle(data, call)
        except Exception as exception:
            call.fail(from_exception(exception))

    def _on_close(self, call):
        call._close()
        self._calls.discard(call)
        self._waiting.pop(call, None)
        if call.connection is not None:
            self._streams[call.connection] -= 1
            if not self._streams[call.connection]:
                del self._streams[call.connection]

    def _on_shutdown(self, event):
        self._shut_down = True

    def _drop_overdue(self, now):
        while self._waiting:
            call = next(iter(self._waiting))
            if now - self._waiting[call] < MESSAGE_SECONDS:
                return
            self._drop(call, grpc.StatusCode.DEADLINE_EXCEEDED)

    def _drop(self, call, code):
        del self._waiting[call]
        call.fail(StatusError(code, "the message did not arrive in time"))
