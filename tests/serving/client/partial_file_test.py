"""A partial file never takes what a power failure leaves for a row."""

import os
import random
import types
from pathlib import Path

import numpy as np
import pytest

from keras_ssl.serving.client.partial_file import PartialFile

CLIENT = types.SimpleNamespace(model="m", label=None, version=None)
UNREADABLE = {0, 3, 4, 11}


@pytest.fixture
def partial(tmp_path):
    """Twelve rows, four of them of unreadable images, and the function that opens the file again."""
    paths = [tmp_path / f"{i}.jpg" for i in range(12)]
    for path in paths:
        path.touch()

    def reopened():
        return PartialFile(str(tmp_path / "out.npz.part"), CLIENT, list(map(str, paths)))

    file = reopened()
    file.create(version=3, dimensions=5)
    for i in range(12):
        if i in UNREADABLE:
            file.append_unreadable(1)
        else:
            file.append(np.full((1, 5), i, np.float32))
    return file, reopened


def check(file, number):
    """Checks the first rows of a file, which has so many."""
    assert file.rows == number
    if number:
        readable = [i for i in range(number) if i not in UNREADABLE]
        assert np.flatnonzero(file.readable()).tolist() == readable
        assert np.concatenate(list(file.features()))[:, 0].tolist() == readable


def test_unreadable_rows_are_done_and_zeros_are_not(partial):
    file, reopened = partial
    check(reopened(), 12)
    size, row = os.path.getsize(file.path), file._row.itemsize
    for rows in (5, 4, 1, 0):  # row 4 is of an unreadable image
        os.truncate(file.path, size - (12 - rows) * row)
        os.truncate(file.path, size)  # the rest is zeros, as after a power failure
        check(reopened(), rows)


def test_no_flipped_bit_and_no_truncation_is_taken_for_a_row(partial):
    file, reopened = partial
    whole = Path(file.path).read_bytes()
    header, row = whole.index(b"\n") + 1, file._row.itemsize
    for bit in random.Random(0).sample(range(8 * header, 8 * len(whole)), 200):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        Path(file.path).write_bytes(flipped)
        check(reopened(), (bit // 8 - header) // row)
    for length in range(header, len(whole)):
        Path(file.path).write_bytes(whole[:length])
        check(reopened(), (length - header) // row)


def test_goes_on_after_a_damaged_row(partial):
    file, reopened = partial
    with open(file.path, "r+b") as damaged:
        damaged.seek(-3 * file._row.itemsize + 7, os.SEEK_END)
        damaged.write(b"\xff")
    again = reopened()
    check(again, 9)
    again.append(np.full((2, 5), [[9], [10]], np.float32))
    again.append_unreadable(1)
    check(reopened(), 12)
