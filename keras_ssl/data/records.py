"""Random access to TFRecord files: indexes their records, and reads single ones."""

import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from keras_ssl.files import listed

FILE_NAMES = re.compile(r"(?!\.)(.+\.tfrecords?(-\d{5}-of-\d{5})?|[^.]+-\d{5}-of-\d{5})")
HEADERS_AT_ONCE = 4096  # verifying many checksums together is much faster than one by one


def record_files(path):
    """Returns the sorted list of TFRecord files in a folder, recognized by their names."""
    names = os.listdir(path) if os.path.isdir(path) else []
    return sorted(os.path.join(path, name) for name in names if FILE_NAMES.fullmatch(name))


def scan(file):
    """Finds the records of a TFRecord file by their headers, without reading their data.

    Args:
        file: path of an uncompressed TFRecord file.

    Returns:
        (offsets, lengths, damaged): (N,) int64 arrays, the byte at which the header of each record begins and
        the number of bytes of its data; a list of (start, end) of bytes outside complete records.
    """
    offsets, lengths, damaged = [], [], []
    position, size = 0, os.path.getsize(file)
    with open(file, "rb") as content:
        while position < size:
            starts, headers, end = _read_headers(content, position, size)
            bad = np.flatnonzero(~_valid(headers))
            number = bad[0] if len(bad) else len(starts)
            offsets.append(starts[:number])
            lengths.append(headers[:number, :8].copy().view("<i8")[:, 0])
            position = int(starts[number]) if len(bad) else end
            if len(bad) or (len(starts) < HEADERS_AT_ONCE and end < size):
                start, position = position, _next_header(content, position + 1, size)
                damaged.append((start, position))
    return (
        np.concatenate([*offsets, np.empty(0, int)]),
        np.concatenate([*lengths, np.empty(0, int)]),
        damaged,
    )


def _read_headers(file, position, size):
    """Reads the headers of successive records, without verifying them.

    A record consists of its length (uint64), the masked CRC32C of the length, the data, and the masked CRC32C
    of the data. A wrong length gives wrong positions, so the headers are verified after every few thousand.

    Returns:
        (starts, headers, end): (n,) int64 positions, (n, 12) uint8 headers, and the position after the last
        record, at which no complete record follows if n is less than HEADERS_AT_ONCE.
    """
    starts, headers = [], []
    while position + 16 <= size and len(starts) < HEADERS_AT_ONCE:
        file.seek(position)
        header = file.read(12)
        end = position + 16 + int.from_bytes(header[:8], "little")
        if end > size:
            break
        starts.append(position)
        headers.append(header)
        position = end
    headers = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, 12)
    return np.array(starts, np.int64), headers, position


def _valid(headers):
    """Verifies the checksums of (n, 12) bytes of record headers: (n,) bool."""
    # A CRC is linear: the CRC of eight bytes is the exclusive or of one table entry per byte.
    crc = np.bitwise_xor.reduce(CRC_TABLES[np.arange(8), headers[:, :8]], axis=1) ^ CRC_OF_ZEROS
    masked = (crc >> 15 | crc << 17) + np.uint32(0xA282EAD8)
    return masked == headers[:, 8:].copy().view("<u4")[:, 0]


def _tables():
    """Computes CRC32C (Castagnoli) tables of each byte value at each of 8 positions, and the CRC of zeros."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = table >> 1 ^ np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0))
    tables = [table]
    for _ in range(7):
        tables.append(tables[-1] >> 8 ^ table[tables[-1] & 255])
    tables = np.array(tables[::-1])
    # CRC32C inverts the first four bytes and the result.
    zeros = np.bitwise_xor.reduce(tables[:4, 255]) ^ np.uint32(0xFFFFFFFF)
    return tables, zeros


CRC_TABLES, CRC_OF_ZEROS = _tables()


def _next_header(file, start, size):
    """Finds the next position at which a complete record can begin; `size` if there is none."""
    while start + 16 <= size:
        file.seek(start)
        block = np.frombuffer(file.read(2**20), np.uint8)
        windows = np.lib.stride_tricks.sliding_window_view(block, 12)
        # No file has 2**48 bytes, so the upper bytes of a length are zero. A crash of the machine can leave
        # long runs of zeros; these are not headers, since the checksum of a zero length is not zero.
        checksum = block[8:-3] | block[9:-2] | block[10:-1] | block[11:]
        places = np.flatnonzero((block[6:-5] == 0) & (block[7:-4] == 0) & (checksum != 0))
        places = places[_valid(windows[places])]
        for place in places.tolist():
            length = int.from_bytes(block[place : place + 8].tobytes(), "little")
            if start + place + 16 + length <= size:
                return start + place
        start += len(windows)
    return size


def index(path, files):
    """Finds the records of many files by reading 12 bytes of each record.

    Args:
        path: folder, for the messages.
        files: list of str, as `record_files` returns them.

    Returns:
        dict of (N,) arrays, one row for each complete record: `file` (int32, index in `files`), `offset` and
        `length` as in `scan`, and `id` (int64, the index of the row).

    Raises:
        ValueError: no file contains a complete record.

    Warns:
        UserWarning: which parts of which files are damaged.
    """
    # Network file systems have a high latency, so several files are scanned at once.
    with ThreadPoolExecutor(8) as pool:
        scans = list(pool.map(scan, files))
    lost = [(file, *span) for file, (_, _, d) in zip(files, scans, strict=True) for span in d]
    number = sum(len(offsets) for offsets, _, _ in scans)
    if not number:
        raise ValueError(
            f"none of the {len(files)} TFRecord files in {str(path)!r} holds a whole record: they are "
            "empty, damaged or compressed (then decompress them)"
        )
    if lost:
        names = listed([f"{os.path.basename(f)} ({b - a} bytes at {a})" for f, a, b in lost])
        warnings.warn(
            f"skipped {len(lost)} damaged parts of TFRecord files in {str(path)!r}, one record each or more: "
            f"{names}",
            stacklevel=3,
        )
    counts = [len(offsets) for offsets, _, _ in scans]
    return {
        "file": np.repeat(np.arange(len(files), dtype=np.int32), counts),
        "offset": np.concatenate([offsets for offsets, _, _ in scans]),
        "length": np.concatenate([lengths for _, lengths, _ in scans]),
        "id": np.arange(number, dtype=np.int64),
    }


def read(file, offset, length):
    """Reads one record, in TensorFlow.

    Args:
        file: () string tensor.
        offset, length: () int64 tensors, as in `scan`.

    Returns:
        () string tensor.

    Raises:
        tf.errors.DataLossError: the checksum of the header or of the data is wrong.
    """
    # tf.data.TFRecordDataset cannot start in the middle, and FixedLengthRecordDataset reads all the bytes
    # that it should skip (header_bytes). This operation seeks, and verifies the data. With this buffer size
    # it reads once.
    records = tf.raw_ops.TFRecordDatasetV2(
        filenames=[file], compression_type="", buffer_size=length + 16, byte_offsets=[offset]
    )
    kind = {"output_types": [tf.string], "output_shapes": [[]]}
    one = tf.raw_ops.TakeDataset(input_dataset=records, count=1, **kind)
    return tf.raw_ops.DatasetToSingleElement(dataset=one, **kind)[0]
