"""Threads in which clients take turns."""

import collections
import threading
from concurrent import futures


class Turns:
    """Runs functions in a few threads. Clients take turns, each with the function that it submitted first.

    A client gets another thread only if more threads are free than it already has. So a single client gets
    half of the threads (one of two), and other clients never have to wait until a function of that client has
    finished, however many functions it has submitted.

    Args:
        threads: int.
        name: str, prefix of the names of the threads.

    Example:
        >>> turns = Turns(1, "parse")
        >>> turns.submit("10.0.0.1", len, "abc").result()
        3
        >>> turns.close()
    """

    def __init__(self, threads, name):
        self._threads = futures.ThreadPoolExecutor(threads, name)
        self._free = threads  # threads that run no function
        self._idle = threads  # free threads that do not look for a function, either
        self._closed = False
        self._running = collections.Counter()  # by client
        # client -> deque of (Future, function, arguments); the client whose turn is next comes first.
        self._waiting = collections.OrderedDict()
        self._lock = threading.Lock()

    def submit(self, client, function, *arguments):
        """Runs a function when it is the turn of a client.

        Args:
            client: hashable, such as the address of a client.
            function: function of `arguments`.

        Returns:
            concurrent.futures.Future of what it returns or raises.

        Raises:
            RuntimeError: `close` was called.
        """
        future = futures.Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("no functions can be submitted after the end")
            self._waiting.setdefault(client, collections.deque()).append(
                (future, function, arguments)
            )
            self._wake()
        return future

    def close(self):
        """Ends the threads when the running functions are done; waiting functions are not run."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
        self._threads.shutdown(wait=False)

    def _wake(self):
        """Lets an idle thread look for a function, if one may run now; to be called with the lock."""
        if self._idle and self._next() is not None:
            self._threads.submit(self._work)
            self._idle -= 1

    def _work(self):
        try:
            while (task := self._take()) is not None:
                client, future, function, arguments = task
                del task
                try:
                    if future.set_running_or_notify_cancel():
                        future.set_result(function(*arguments))
                except BaseException as error:
                    future.set_exception(error)
                finally:
                    del future, function, arguments  # a body may have megabytes
                    with self._lock:
                        self._free += 1
                        self._running[client] -= 1
                        if not self._running[client]:
                            del self._running[client]
        finally:
            with self._lock:
                self._idle += 1
                self._wake()  # for what was submitted since `_take`

    def _next(self):
        """Returns the client whose turn it is, or None if nothing may run now."""
        return next((one for one in self._waiting if self._running[one] < self._free), None)

    def _take(self):
        """Returns (client, Future, function, arguments) of the next function; None if nothing may run now."""
        with self._lock:
            client = self._next()
            if client is None:
                return None
            self._free -= 1
            self._running[client] += 1
            tasks = self._waiting[client]
            task = tasks.popleft()
            if tasks:
                self._waiting.move_to_end(client)
            else:
                del self._waiting[client]
            self._wake()  # the end of a function may let two others run
            return client, *task
