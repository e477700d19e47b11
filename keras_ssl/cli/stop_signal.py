"""Waits for SIGTERM or SIGINT in the commands that serve."""

import select
import signal
import socket


class StopSignal:
    """SIGTERM or SIGINT, from now on; to be created in the main thread.

    The system may hand a signal to any thread. Python's handler would then run once the main thread returns
    from whatever it waits for, and a `threading.Event` that it sets never comes: the process would not end.
    Python writes the signal into a socket in whichever thread gets it.

    Example:
        >>> stop = StopSignal()
        >>> stop.wait(0.01)
        False
    """

    def __init__(self):
        self._arrived, self._arriving = socket.socketpair()
        self._arriving.setblocking(False)
        signal.set_wakeup_fd(self._arriving.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)

    def wait(self, seconds=None):
        """Waits up to `seconds`, for ever by default, and returns whether the signal has come."""
        return bool(select.select([self._arrived], [], [], seconds)[0])
