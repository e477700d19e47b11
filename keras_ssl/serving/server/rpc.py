"""A gRPC server that needs no thread for a call that waits.

`grpc.server` gives every call a thread before its message has arrived, so that a few hundred calls without a
message stop a server. `grpc.aio` does not, but takes one and a half times as much CPU time per call. This
server handles the events of gRPC's completion queue itself, as `grpc.server` does, with the same private
module.
"""

import logging
import threading
import time
import typing

import grpc
from grpc._cython import cygrpc

from keras_ssl.serving.server.calls import Call, Calls
from keras_ssl.serving.server.connections import MAX_CONNECTIONS, available_connections
from keras_ssl.serving.server.errors import StatusError, from_exception, invalid_argument
from keras_ssl.serving.server.sockets import Sockets

MAX_MESSAGE_BYTES = 2**26  # of a request, even after decompression
MAX_LEFT = 100  # calls of a connection that end before their message within SWEEP_SECONDS
ACCEPTED = 64  # calls that gRPC may hand over before this server has handled the first
SWEEP_SECONDS = 0.25

log = logging.getLogger("keras_ssl.serving")


class Method(typing.NamedTuple):
    """A method of a service.

    Attributes:
        handle: function of (bytes, Call) that is called with each message. It runs in the server's only
            thread, and must return within milliseconds; the response may be sent later.
        max_bytes: int, size of a message.
        streams: bool, the response is a stream, and the request may be one, too.
    """

    handle: typing.Callable
    max_bytes: int = 2**16
    streams: bool = False


class RpcServer:
    """Serves methods from one thread, between `start` and `stop`.

    Args:
        channel_arguments: dict of gRPC channel arguments, which replace the defaults.

    Attributes:
        methods: dict from the path of a method, such as "/package.Service/Method", to its Method.
    """

    def __init__(self, channel_arguments=None):
        connections = available_connections()
        options = {
            "grpc.so_reuseport": 0,  # a second server on the same port is an error
            "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
            # gRPC would decompress in the server's only thread: 64 KB of gzip can contain 63 MiB.
            "grpc.compression_enabled_algorithms_bitset": 1,  # none
            "grpc.max_send_message_length": -1,
            "grpc.max_concurrent_streams": 100,  # of a connection; further requests wait at the client
            # gRPC cancels calls at random when more than this number wait for `request_call`.
            "grpc.server.max_pending_requests": 3000,
            # Without these, a client that connects and does nothing keeps a file descriptor forever.
            "grpc.max_allowed_incoming_connections": connections,
            "grpc.max_connection_idle_ms": 15_000,
            "grpc.server_handshake_timeout_ms": 10_000,
            "grpc.keepalive_time_ms": 60_000,
            **(channel_arguments or {}),
        }
        self.methods = {}
        self._server = cygrpc.Server(tuple(options.items()), False)
        self._queue = cygrpc.CompletionQueue()
        self._server.register_completion_queue(self._queue)
        self._calls, self._sockets = Calls(), Sockets(connections)
        self._heard = {}  # connection -> time of its last message
        self._stopping, self._shut_down = False, False
        # The lock keeps the server from being freed while another thread is about to shut it down.
        self._ending, self._finished = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._serve, name="grpc", daemon=True)

    def bind(self, address, credentials=None):
        """Binds to an address; to be called before `start`.

        Args:
            address: str, "host:port" or "unix:path".
            credentials: grpc.ServerCredentials, or None.

        Returns:
            int, the port, or 0 if the address cannot be bound.
        """
        arguments = [] if credentials is None else [credentials._credentials]
        port = self._server.add_http2_port(address.encode(), *arguments)
        self._sockets.ports.add(port)
        return port

    def start(self):
        """Starts serving `methods`."""
        self._server.start()
        for _ in range(ACCEPTED):
            self._request_call()
        self._thread.start()

    def stop(self, grace=0.0):
        """Accepts no further call, waits for those in progress, and frees the ports.

        Args:
            grace: float, seconds after which calls are cancelled.
        """
        if not self._thread.ident:
            self.start()  # gRPC aborts the process if a server with ports is freed without it
        self._stopping = True
        with self._ending:
            self._server.shutdown(self._queue, self._on_shutdown)
        if not self._finished.wait(grace):
            with self._ending:
                if not self._finished.is_set():
                    self._server.cancel_all_calls()
            self._finished.wait()

    def receive(self, call):
        """Waits for the next message of a call, and passes it to the call's method."""
        call.receive(lambda event: self._on_message(call, event))

    def _serve(self):
        swept = time.monotonic()
        while not (self._shut_down and not self._calls):
            event = self._queue.poll(time.time() + SWEEP_SECONDS)
            now = time.monotonic()
            try:
                if event.completion_type != cygrpc.CompletionType.queue_timeout:
                    event.tag(event)
                if now - swept > SWEEP_SECONDS:
                    swept = now
                    self._sweep(now)
            except Exception:
                log.exception("an event of gRPC failed")
            # An event that outlives its call would keep gRPC busy.
            event = None
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
        event.call.start_server_batch(
            (cygrpc.ReceiveCloseOnServerOperation(0),), lambda event: self._on_close(call)
        )
        try:
            self._calls.add(call)
            if method is None:
                raise StatusError(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            self.receive(call)
        except StatusError as error:
            call.fail(error)

    def _on_message(self, call, event):
        if call.dropped:
            return
        call.waiting = 0.0
        data = event.batch_operations[0].message()
        try:
            if data is None:  # the client has closed its side, or the call
                if call.method.streams:
                    call.end()
                else:
                    raise invalid_argument("send exactly one message, and all of it")
            elif len(data) > call.method.max_bytes:
                raise StatusError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"the message has {len(data)} bytes, more than the {call.method.max_bytes} of this "
                    "method; shorten it",
                )
            else:
                self._heard[call.connection] = time.monotonic()
                call.method.handle(data, call)
        except Exception as exception:
            call.fail(from_exception(exception))

    def _on_close(self, call):
        call.close()
        self._calls.remove(call)

    def _on_shutdown(self, event):
        self._shut_down = True

    def _sweep(self, now):
        self._calls.sweep(now)
        if len(self._heard) > 2 * MAX_CONNECTIONS:
            self._heard = {key: then for key, then in self._heard.items() if now - then < 60}
        # A connection that opens calls and cancels them keeps this thread busy.
        self._sockets.close([one for one, n in self._calls.left.items() if n > MAX_LEFT])
        self._calls.left.clear()
        if self._sockets.are_many():
            working = (
                call for call in self._calls if call.is_working() and not call.method.streams
            )
            self._sockets.relieve({call.connection for call in working}, self._heard)
