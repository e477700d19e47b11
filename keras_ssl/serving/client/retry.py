"""Deadline and retries of one request."""

import random
import time

import grpc

# Seconds between retries: 0.7, 1.4, 2.8, 5.6, 11.2, then always 20.
INITIAL_BACKOFF, MAX_BACKOFF = 0.7, 20.0
JITTER = (
    0.2  # relative; without it all clients of a restarted server would retry at the same moment
)


class RetryPolicy:
    """Retries a request with exponential backoff while the server is UNAVAILABLE.

    The deadline covers all attempts together. Create one policy per request, when it is first sent.

    Args:
        timeout: float, seconds until the deadline.
        retries: int, maximum number of retries.
    """

    def __init__(self, timeout, retries):
        self._deadline = time.monotonic() + timeout
        self._backoffs = (min(INITIAL_BACKOFF * 2**n, MAX_BACKOFF) for n in range(retries))

    def remaining(self):
        """Returns the seconds left until the deadline."""
        return max(self._deadline - time.monotonic(), 0)

    def backoff(self, code):
        """Returns the seconds to wait before the next attempt, or None if there is none.

        Args:
            code: grpc.StatusCode of the attempt that failed.
        """
        if code != grpc.StatusCode.UNAVAILABLE:
            return None
        seconds = next(self._backoffs, None)
        if seconds is None:
            return None
        seconds *= random.uniform(1 - JITTER, 1 + JITTER)
        return seconds if seconds < self.remaining() else None
