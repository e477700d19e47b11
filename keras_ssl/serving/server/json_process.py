"""Parses large JSON bodies in a separate process."""

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe

import grpc
import numpy as np

from keras_ssl.serving.server import json_tensors
from keras_ssl.serving.server.errors import StatusError

PROGRAM = "import runpy, sys; sys.path[:] = {path}; runpy.run_path({file!r}, run_name='__main__')"


class JsonProcess:
    """A process that parses bodies one by one.

    The parser holds Python's lock: for a body of 8 MiB, all threads of the server would wait for up to a
    second. The process starts with the first body, has a memory limit that depends on the size of the body,
    and is killed if it is not done in time.

    Example:
        >>> process = JsonProcess()
        >>> with process.parse(b'{"inputs": [1, 2]}', time.monotonic() + 20) as body:
        ...     body.arrays({"x": "int32"})
        {'x': array([1, 2], dtype=int32)}
        >>> process.close()
    """

    def __init__(self):
        self._turn = threading.Lock()
        self._process = self._pipe = None
        self._closed = False

    @contextlib.contextmanager
    def parse(self, data, end):
        """Parses a body when it is its turn; others wait until its arrays are made or the context exits.

        Args:
            data: bytes or bytearray.
            end: float, the time (of `time.monotonic`) until which this may take.

        Yields:
            a body with the attributes and the method `arrays` of `json_tensors.Body`.

        Raises:
            JsonError: as `json_tensors.Body`, or the JSON takes too much memory.
            StatusError: DEADLINE_EXCEEDED, or UNAVAILABLE if the process cannot be started or was killed.
        """
        if not self._turn.acquire(timeout=max(0.0, end - time.monotonic())):
            raise _late()
        with contextlib.ExitStack() as turn:
            turn.callback(self._turn.release)
            self._prepare(end)
            body = _Body(self, *self._ask(data, end), end, turn)
            try:
                yield body
            finally:
                if not body.converted:
                    self._skip()

    def close(self):
        """Ends the process. The body that is being parsed and all later bodies are UNAVAILABLE."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._turn:  # the body whose turn it is finds the process dead
            self._kill()

    def _prepare(self, end):
        """Waits until the process is ready, and replaces a process that has ended."""
        with _unavailable(self._kill):
            if self._process is not None and not self._receive(end):
                self._kill()
            if self._process is None:
                self._start()
                self._receive(end)

    def _skip(self):
        """Informs the process that no arrays are needed; the client's response does not depend on it."""
        try:
            self._pipe.send(None)
        except OSError:  # the process died; elsewhere, a ConnectionError means a client that left
            self._kill()

    def _ask(self, message, end):
        """Sends a message to the process and returns its response."""
        with _unavailable(self._kill):
            self._pipe.send(message)
            response = self._receive(end)
        if isinstance(response, str):
            raise json_tensors.JsonError(response)
        return response

    def _receive(self, end):
        if self._closed:  # perhaps before the process started, so that `close` did not kill it
            raise EOFError("the server is shutting down")
        if not self._pipe.poll(max(0.0, end - time.monotonic())):
            self._kill()
            raise _late()
        return self._pipe.recv()

    def _start(self):
        self._pipe, theirs = Pipe()
        with theirs:
            program = PROGRAM.format(path=sys.path, file=json_tensors.__file__)
            self._process = subprocess.Popen(
                [sys.executable, "-c", program, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip

    def _kill(self):
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._pipe = None


class _Body:
    """A body in the process; see `json_tensors.Body`."""

    def __init__(self, process, signature_name, by_row, end, turn):
        self._process, self._end, self._turn = process, end, turn
        self.signature_name, self.by_row = signature_name, by_row
        self.converted = False

    def arrays(self, declared):
        self.converted = True
        parts = self._process._ask(declared, self._end)
        self._turn.close()  # the next body is parsed while the model runs
        return {name: _array(*part) for name, *part in parts}


@contextlib.contextmanager
def _unavailable(kill):
    """Kills the process if it cannot be started or has died, and reports that to the client."""
    try:
        yield
    except (EOFError, OSError) as error:  # the system has no memory or no descriptors left
        kill()
        raise StatusError(
            grpc.StatusCode.UNAVAILABLE, f"the JSON cannot be parsed now ({error!r}); retry later"
        ) from None


def _array(shape, sizes, values):
    """Builds an array from the data that `json_tensors` sends."""
    if sizes is None:
        return values
    array = np.empty(len(sizes), object)
    ends = np.cumsum(sizes).tolist()
    array[:] = [values[start:end] for start, end in itertools.pairwise([0, *ends])]
    return array.reshape(shape)


def _late():
    return StatusError(
        grpc.StatusCode.DEADLINE_EXCEEDED, "the request was not parsed before its time was over"
    )
