"""Blocks of rows in a file, for matrices that are larger than the memory."""

import collections
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np

AHEAD = 4  # blocks in memory at once


class DiskBlocks:
    """Arrays in a file without a name, which the system deletes with the last reference or with the process.

    Args:
        folder: str, on a disk with as much space as the arrays take.
        arrays: iterable of tensors, read once.

    Raises:
        OSError: the folder does not exist, or the disk is full.

    Example:
        >>> blocks = DiskBlocks("/tmp", [np.ones((2, 3)), np.zeros((1, 3))])
        >>> [block.shape for block in blocks], blocks.map(lambda b: b.sum().item())
        ([(2, 3), (1, 3)], [6.0, 0.0])
    """

    def __init__(self, folder, arrays):
        self._file, self._places = tempfile.TemporaryFile(dir=folder), []  # noqa: SIM115, open as long as this
        for array in map(np.asarray, arrays):
            self._places.append((self._file.tell(), array.shape, array.dtype))
            self._file.write(np.ascontiguousarray(array).view(np.uint8))
        self._file.flush()

    def __len__(self):
        return len(self._places)

    def __iter__(self):
        return self._in_order(lambda block: block)

    def map(self, function, *others):
        """Returns [function(block, ...) for each block], computed in threads while others are read."""
        return list(self._in_order(function, *others))

    def _in_order(self, function, *others):
        running = collections.deque()
        with ThreadPoolExecutor(AHEAD) as pool:
            for place, *rest in zip(self._places, *others, strict=True):
                running.append(
                    pool.submit(
                        lambda place, *rest: function(self._read(*place), *rest), place, *rest
                    )
                )
                if len(running) == AHEAD:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()

    def _read(self, offset, shape, dtype):
        array = np.empty(shape, dtype)
        target = memoryview(array.view(np.uint8)).cast("B")
        while target:  # a read may stop early
            number = os.preadv(self._file.fileno(), [target], offset)
            if not number:
                raise OSError(
                    f"{self._file.name!r} is {len(target)} bytes shorter than was written"
                )
            target, offset = target[number:], offset + number
        return array
