"""The index of TFRecord files agrees with TensorFlow, also on damaged ones."""

import os
import struct
import tempfile

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_ssl.data.records import read, scan


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 70), max_size=12), st.integers(0, 40), st.integers(0, 2**32))
def test_scan_agrees_with_tensorflow(lengths, cut, seed):
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/some.tfrecord"
        with tf.io.TFRecordWriter(file) as writer:
            for length in lengths:
                writer.write(np.random.default_rng(seed).bytes(length))
        offsets, found, damaged = scan(file)
        expected = list(tf.data.TFRecordDataset(file).as_numpy_iterator())
        assert (found.tolist(), damaged) == (lengths, [])
        assert [read(file, o, n).numpy() for o, n in zip(offsets, found, strict=True)] == expected
        size = os.path.getsize(file)
        cut = max(size - cut, 0)
        os.truncate(file, cut)
        whole = [o for o, n in zip(offsets, found, strict=True) if o + 16 + n <= cut]
        left, _, damaged = scan(file)
        assert left.tolist() == whole
        assert sum(end - start for start, end in damaged) == cut - sum(
            16 + n for n in lengths[: len(whole)]
        )


def test_a_length_beyond_all_files_is_damage(tmp_path):
    (tmp_path / "a.tfrecord").write_bytes(struct.pack("<Q", 2**64 - 1) + bytes(50))
    assert scan(tmp_path / "a.tfrecord")[2] == [(0, 58)]


def test_a_run_of_zeros_among_many_records(tmp_path):
    file = tmp_path / "a.tfrecord"
    with tf.io.TFRecordWriter(str(file)) as writer:
        for i in range(9000):
            writer.write(bytes(i % 7))
    offsets, lengths, damaged = scan(file)
    assert (lengths.tolist(), damaged) == ([i % 7 for i in range(9000)], [])
    data = bytearray(file.read_bytes())
    data[offsets[5000] + 3 : offsets[8000] + 5] = bytes(offsets[8000] - offsets[5000] + 2)
    file.write_bytes(data)
    left, _, damaged = scan(file)
    # The first header begins with zeros anyway, but its checksum is overwritten.
    assert left.tolist() == [*offsets[:5000], *offsets[8001:]]
    assert damaged == [(offsets[5000], offsets[8001])]
