"""Waits for SIGTERM or SIGINT in the commands that serve."""

import select
import signal
import socket


class StopSignal:
    """Catches SIGTERM or SIGINT from now on; to be created in the main thread.

    The system may deliver a signal to any thread, but Python runs its handler only in the main thread, after
    a blocking call there has returned. If the main thread waited for a `threading.Event` that the handler
    sets, the process would never end. So this class uses the socket into which Python writes each signal in
    the thread that receives it.

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
        """Waits up to `seconds`, by default forever, and returns whether the signal has arrived."""
        return bool(select.select([self._arrived], [], [], seconds)[0])
