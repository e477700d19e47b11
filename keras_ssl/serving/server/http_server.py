"""An HTTP/1.1 server for untrusted clients: aiohttp's server with limits and deadlines."""

import asyncio
import contextlib
import errno
import json
import socket
import threading
from http import HTTPStatus

from aiohttp import web

from keras_ssl.serving.server.addresses import owner
from keras_ssl.serving.server.connections import BODIES, Connections, Phase, available_connections
from keras_ssl.serving.server.errors import invalid_argument, log

MAX_HEAD = 2**15  # bytes
BACKLOG = 128
CHECK_SECONDS = 0.5  # between two checks for connections that are too slow
DISCARD_SECONDS = 2.0  # maximum pause of a client that sends a rejected body
RELIEF, RELIEF_SECONDS = (
    64,
    0.5,
)  # connections to close if no descriptors are left, at most so often
CLOSING_SECONDS = 1.0  # for responses that are being sent when the server stops
JSON = "application/json"


def response(status, body, content_type=JSON):
    """Creates a response from bytes."""
    return web.Response(
        status=status, body=body, headers={"Content-Type": content_type, "Server": "keras-ssl"}
    )


def error_response(status, message):
    """Creates a response with an error as TensorFlow Serving writes it."""
    return response(status, json.dumps({"error": message}).encode())


class HttpServer:
    """Serves HTTP on a port from an event loop in a separate thread, from `start` to `close`.

    Args:
        respond: async function of an aiohttp.web.BaseRequest that returns a response; it reads the body
            by `read_body`.
        host: address to listen on.
        port: int, 0 for a free one (see the attribute `port`).
        max_body: int, maximum size of a body in bytes.
        per_client: int, maximum number of connections of a client address; 0 for half of all.

    Raises:
        OSError: `port` cannot be bound.
    """

    def __init__(self, respond, host, port, max_body, per_client):
        self._respond, self.max_body, self._per_client = respond, max_body, per_client
        self._socket = socket.create_server((host, port), backlog=BACKLOG)
        self.port = self._socket.getsockname()[1]
        self._next_relief = 0.0
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._on_error)
        self._thread = threading.Thread(target=self._loop.run_forever, name="http", daemon=True)

    def start(self):
        """Starts accepting connections."""
        number = available_connections()
        self.connections = Connections(
            number, self._per_client or max(1, number // 2), BODIES * self.max_body
        )
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    def close(self):
        """Waits a moment for responses that are being sent, and frees the port."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()
        self._socket.close()

    async def read_body(self, request):
        """Reads the body of a request.

        Raises:
            StatusError: INVALID_ARGUMENT, it is too large or its size is not declared;
                RESOURCE_EXHAUSTED, all memory for bodies is in use.
            ConnectionError: the client has left.
        """
        length = request.content_length
        if length is None or "Transfer-Encoding" in request.headers:
            raise invalid_argument("a POST needs a Content-Length")
        if length > self.max_body:
            raise invalid_argument(
                f"the body must have at most {self.max_body} bytes, got {length}"
            )
        connection = request.protocol
        if request.headers.get("Expect", "").lower() == "100-continue":
            connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.enter(Phase.BODY)  # now, since `write` may have entered another phase
        parts = []
        try:
            async for part in request.content.iter_any():
                self.connections.hold(connection, len(part))
                parts.append(part)
                del part
            connection.enter(Phase.WORKING)
            return b"".join(parts)
        except web.RequestPayloadError as error:
            raise ConnectionResetError(*error.args) from None
        finally:
            parts.clear()  # the request keeps an error, which keeps this frame and so the request

    async def _listen(self):
        manager = web.Server(self._handle)
        self._server = await self._loop.create_server(
            lambda: _Connection(self.connections, manager, self._loop),
            sock=self._socket,
            backlog=BACKLOG,
        )
        self._check()

    async def _handle(self, request):
        connection = request.protocol
        connection.enter(Phase.WORKING)
        try:
            # llhttp reads "" as 0. The parser refuses all other values that are not numbers.
            if request.headers.get("Content-Length") == "":
                answer = error_response(400, "Empty Content-Length")
            else:
                answer = await self._respond(request)
            # Where proxies and servers disagree about the end of a request, nothing may follow it.
            if "Transfer-Encoding" in request.headers or answer.status == 501:
                answer.force_close()
            if not request.content.is_eof():
                answer.force_close()
                self.connections.release(connection)
                await self._discard_body(request, answer)
            return answer
        finally:
            self.connections.release(connection)
            connection.leave()

    async def _discard_body(self, request, answer):
        """Sends a response before the body of its request is complete, and reads the rest of it.

        Otherwise the system would reset the connection, and the client might not get the response.
        """
        await answer.prepare(request)
        await answer.write_eof()
        request.protocol.enter(Phase.DISCARDING)
        with contextlib.suppress(asyncio.TimeoutError, web.RequestPayloadError):
            while await asyncio.wait_for(request.content.readany(), DISCARD_SECONDS):
                pass

    def _check(self):
        self.connections.close_late(self._loop.time())
        self._loop.call_later(CHECK_SECONDS, self._check)

    def _on_error(self, loop, context):
        """Closes connections if the process has no descriptors left; asyncio tries again in a second."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            if loop.time() > self._next_relief:  # asyncio calls this up to BACKLOG times
                self._next_relief = loop.time() + RELIEF_SECONDS
                self.connections.close_some(RELIEF)
        else:
            loop.default_exception_handler(context)

    async def _stop(self):
        self._server.close()
        end = self._loop.time() + CLOSING_SECONDS
        await asyncio.sleep(0.01)  # for connections that are being accepted
        while self._is_busy() and self._loop.time() < end:
            await asyncio.sleep(0.01)
        for one in self.connections:
            one.reject(503, "the server is shutting down")
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSING_SECONDS)

    def _is_busy(self):
        return any(one.phase >= Phase.SENDING for one in self.connections)


class _Connection(web.RequestHandler):
    """aiohttp's protocol of a connection, with the phase that the connection is in."""

    def __init__(self, connections, manager, loop):
        super().__init__(
            manager, loop=loop, access_log=None, auto_decompress=False, lingering_time=0,
            max_headers=64, read_bufsize=2**16,
        )  # fmt: skip
        self._connections, self._own_transport = connections, None
        self.address, self.held, self._head, self._served = "", 0, 0, False
        self.enter(Phase.IDLE)

    @property
    def is_open(self):
        """bool, whether the client has not left. Any thread may read it."""
        return self.transport is not None

    def enter(self, phase):
        """Enters a phase, which has a deadline from now on."""
        self._served |= phase == Phase.WORKING
        self.phase, self.since = phase, self._loop.time()

    def leave(self):
        """Leaves the phase of a request."""
        self.enter(Phase.SENDING if self.writing_paused else Phase.IDLE)

    def write(self, data):
        """Sends bytes directly, bypassing aiohttp."""
        self._own_transport.write(data)

    def unread(self):
        """Returns how many bytes of the response the client has not read."""
        return self._own_transport.get_write_buffer_size()

    def is_closing(self):
        """Returns whether the connection stays open only until the client has read the response."""
        return self._own_transport.is_closing()

    def reject(self, status, message):
        """Closes the connection, with an error as the response if the client waits for one."""
        if self.phase in (Phase.HEAD, Phase.BODY) or (status == 503 and not self._served):
            body = json.dumps({"error": message}).encode()
            self.write(
                b"HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n"
                b"Connection: close\r\n\r\n%s"
                % (status, HTTPStatus(status).phrase.encode(), JSON.encode(), len(body), body)
            )
        self._own_transport.abort()

    async def start(self):
        try:
            await super().start()
        finally:
            # aiohttp responds to bytes that are not HTTP without `_handle`, and drops requests that follow
            # the last response. Their connection is WORKING since `data_received`, and would stay in that
            # phase.
            if self.phase == Phase.WORKING:
                self.leave()

    def connection_made(self, transport):
        super().connection_made(transport)
        self._own_transport = transport  # aiohttp forgets it before everything has been sent
        self.address = owner((transport.get_extra_info("peername") or [""])[0])
        self._connections.add(self)

    def connection_lost(self, exc):
        self._connections.remove(self)
        super().connection_lost(exc)

    def data_received(self, data):
        if data and self.phase == Phase.IDLE:
            self.enter(Phase.HEAD)
            self._head = 0
        super().data_received(data)
        if self.phase == Phase.HEAD:
            self._head += len(data)
            if self._messages:  # those that are parsed and wait for `_handle`
                self.enter(Phase.WORKING)
            elif self._head > MAX_HEAD:
                self.reject(431, f"the headers must have at most {MAX_HEAD} bytes")

    def pause_writing(self):
        super().pause_writing()
        self.enter(Phase.SENDING)
        self._connections.limit_unread()

    def resume_writing(self):
        super().resume_writing()
        if self.phase == Phase.SENDING:  # not if it is WORKING or reads the next request's body
            self.enter(Phase.IDLE)

    def handle_error(self, request, status=500, exc=None, message=None):
        """Responds to a request that is not HTTP or that this server failed to handle."""
        if isinstance(exc, ConnectionError) or request.writer.output_size:
            raise ConnectionResetError("the client has left, or has got a part of the response")
        if status >= 500:
            log.error("a request failed", exc_info=exc)
        answer = error_response(status, (message or "internal error").split(":\n")[0])
        answer.force_close()
        return answer
