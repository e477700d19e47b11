"""Measures the resident memory of this process, and returns freed memory to the operating system."""

import collections
import ctypes
import gc
import math
import os
import threading
import time

MAX_GROWTH = 3 * 2**28  # of the resident memory while messages arrive slowly
CALM = 4  # readings of the memory before the first slow message; it arrived before it was slow
TRIM_GROWTH = 1.05  # times the least resident memory; above this, it is trimmed
TRIM_SECONDS = 5.0  # between two trims; doubled after each, while memory does not grow further
MAX_TRIM_SECONDS = 320.0
BUSY_TRIM_SECONDS = 30.0  # minimum while requests run, which need trimmed memory again
TRIM_PAUSE = 0.5  # seconds after a trim of some 50 ms; `Memory` trims what is freed meanwhile

_PAGE = os.sysconf("SC_PAGE_SIZE")
_trimming = threading.Lock()

try:
    _trim_heap = ctypes.CDLL(None).malloc_trim
except AttributeError:  # not glibc
    _trim_heap = None


def resident():
    """Returns the resident memory of this process in bytes, or 0 if the system does not report it."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except FileNotFoundError:
        return 0


def trim():
    """Returns freed memory to the operating system, in another thread: it may take some 100 ms.

    glibc keeps tens of MiB after a large message, and almost everything after an attack.
    """
    if _trim_heap is not None:
        threading.Thread(target=_trim_now, name="trim", daemon=True).start()


def _trim_now():
    if _trimming.acquire(blocking=False):  # otherwise it has just been done
        try:
            if gc.get_freeze_count():  # otherwise a collection takes long: see `Heap`
                gc.collect()
            _trim_heap(0)
            time.sleep(TRIM_PAUSE)
        finally:
            _trimming.release()


class Heap:
    """Exempts objects that outlive requests, such as models and TensorFlow, from garbage collection.

    A full collection visits these 400,000 objects in 0.2 s, during which no other thread runs, and JSON of
    40,000 lists causes one. A program that calls `gc.freeze` itself is left alone.

    Attributes:
        collections: int, number of calls of `collect` in this process.
    """

    collections = 0

    def __init__(self):
        self._freezes = not gc.get_freeze_count()
        self._lock = threading.Lock()

    def collect(self):
        """Collects garbage, including exempt objects; to be called after models were loaded or unloaded."""
        with self._lock:
            self.thaw()
            gc.collect()
            if self._freezes:
                gc.freeze()
        Heap.collections += 1

    def thaw(self):
        """Ends the exemption until the next `collect`, since some objects will soon be free."""
        if self._freezes:
            gc.unfreeze()

    def close(self):
        """Collects garbage, and ends the exemption for good."""
        with self._lock:
            self.thaw()
            self._freezes = False
            gc.collect()


class Memory:
    """Compares the resident memory of this process with its memory in quieter times."""

    def __init__(self):
        self._lowest = self._settled = resident()
        self._calm = collections.deque([self._settled], maxlen=CALM)
        self._collections = Heap.collections
        self._trimmed, self._last, self._seconds = False, -math.inf, TRIM_SECONDS

    def is_short(self, slow):
        """Returns whether messages that arrive slowly take too much memory.

        gRPC does not report how much of a message has arrived.

        Args:
            slow: bool, whether there are such messages.
        """
        now = resident()
        # The memory of a newly loaded model does not count, even if a client always has a slow message open.
        if self._collections != Heap.collections:
            self._collections = Heap.collections
            self._calm.clear()
        if not slow or not self._calm:
            self._calm.append(now)
        return now - min(self._calm) > MAX_GROWTH

    def settle(self, busy):
        """Trims the memory if it has grown; to be called regularly.

        Memory that remains may belong to a newly loaded model or to requests, so it is trimmed again, but
        later.

        Args:
            busy: bool, whether requests are in flight. A server that is always busy is trimmed less often,
                but it is trimmed: otherwise glibc's heaps would grow for hours.
        """
        now, clock = resident(), time.monotonic()
        self._lowest = min(self._lowest, now)
        if not busy:  # what requests take does not show what the next trim will free
            if self._trimmed or now < self._settled:
                self._settled, self._trimmed = now, False
            if now > TRIM_GROWTH * self._settled:
                self._seconds = TRIM_SECONDS
        pause = BUSY_TRIM_SECONDS if busy else self._seconds
        if now > TRIM_GROWTH * self._lowest and clock - self._last > pause:
            self._last = clock
            if not busy:
                self._trimmed, self._seconds = True, min(2 * self._seconds, MAX_TRIM_SECONDS)
            trim()
