"""Input pipeline: order of an epoch, parts of workers, unreadable images, memory."""

import subprocess
import sys
import textwrap
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_ssl as kssl
from keras_ssl.data.columns import random_access
from keras_ssl.training import pipeline


def ids_and_noise(batch, seed):
    """A pretext that returns the ids of its images and their random numbers."""
    return batch["id"], tf.random.stateless_uniform((), seed[0], 0, 1000, tf.int32) + tf.zeros(
        tf.shape(batch["id"]), tf.int32
    )


def numbered(n):
    return kssl.data.from_array(np.zeros((n, 2, 2, 3), np.uint8))


def run(images, batch_size, epochs=1, first_step=0, worker=(0, 1), whole=False, shuffle=True):
    task = SimpleNamespace(
        pretext=ids_and_noise, needs=(), whole_batches=whole,
        distribute_strategy=SimpleNamespace(worker=worker),
    )  # fmt: skip
    data = pipeline.batches(images, task, batch_size, epochs, first_step, shuffle, 5)
    return [x.tolist() for x, _ in data.as_numpy_iterator()]


@settings(max_examples=8, deadline=None)
@given(st.integers(4, 40), st.integers(1, 3), st.integers(1, 4), st.booleans(), st.booleans())
def test_workers_split_every_batch_without_overlap_or_loss(n, workers, each, known, whole):
    size = workers * each
    if 0 < n % size < workers:
        n += workers - n % size
    images = numbered(n) if known else numbered(n).map(lambda e: e)
    alone = run(images, size, epochs=2)
    parts = [run(images, size, 2, worker=(w, workers), whole=whole) for w in range(workers)]
    assert all(len(part) == len(alone) for part in parts)
    for step, batch in enumerate(alone):
        assert sorted(batch) == sorted(i for part in parts for i in part[step])
    half = len(alone) // 2
    for epoch in (alone[:half], alone[half:]):
        assert sorted(i for batch in epoch for i in batch) == list(range(n))


@pytest.mark.parametrize("known", [True, False])
def test_resumes_in_the_middle_of_an_epoch(known):
    images = numbered(21) if known else numbered(21).map(lambda e: e)
    whole = run(images, 4, epochs=3)
    for step in (1, 5, 6, 8, 17):
        assert run(images, 4, epochs=3, first_step=step) == whole[step:]
    assert whole[:6] != whole[6:12] != whole[12:]


def test_orders_of_epochs_are_independent():
    n = 20_000
    positions = tf.range(n, dtype=tf.int64)
    orders = [pipeline.order(positions, n, pipeline.derive_seeds(0, e)[1], True) for e in range(6)]
    assert all(np.array_equal(np.sort(o), positions) for o in orders)
    correlation = np.corrcoef([positions, *orders])
    assert np.abs(correlation - np.eye(7)).max() < 5 / np.sqrt(n)
    np.testing.assert_array_equal(pipeline.order(positions, n, None, False), positions)


def test_seeds_of_an_epoch_have_no_number_in_common():
    numbers = [np.append(*pipeline.derive_seeds(5, epoch)[::-1]) for epoch in range(3)]
    assert len(np.unique(numbers)) == 12


def folder_of(tmp_path, n, bad=()):
    for i in range(n):
        data = tf.io.encode_png(np.full((4, 4, 3), i, np.uint8)).numpy()
        (tmp_path / f"{i:03d}.png").write_bytes(data[:30] if i in bad else data)
    return kssl.data.from_folder(tmp_path, 4, check=False)


@pytest.mark.parametrize("workers", [1, 2])
def test_unreadable_images_are_skipped_and_counted(tmp_path, workers):
    bad = {3, 7, 8}
    images = folder_of(tmp_path, 20, bad)
    with pytest.warns(UserWarning, match=r"skipped \d+ unreadable images .*00[378]\.png"):
        parts = [run(images, 4, epochs=2, worker=(w, workers)) for w in range(workers)]
    assert images.skipped == bad
    for part in parts:
        assert [len(batch) for batch in part] == [4 // workers] * 10  # all batches are full
    first = [i for part in parts for batch in part[:5] for i in batch]
    assert set(first) == set(range(20)) - bad  # all other images, three of them twice


@pytest.mark.parametrize("shuffle", [True, False])
def test_unreadable_images_change_their_own_batch_only(tmp_path, shuffle):
    """So a run resumed in the middle of such an epoch gets the batches of an uninterrupted one."""
    (tmp_path / "good").mkdir()
    (tmp_path / "some").mkdir()
    bad = {0, 4, 5, 6, 7, 18}  # without shuffling a whole batch
    good, some = folder_of(tmp_path / "good", 19), folder_of(tmp_path / "some", 19, bad)
    expected = run(good, 4, epochs=2, shuffle=shuffle)
    with pytest.warns(UserWarning, match="unreadable"):
        whole = run(some, 4, epochs=2, shuffle=shuffle)
    for found, batch in zip(whole, expected, strict=True):
        kept = [i for i in batch if i not in bad]
        assert found[: len(kept)] == kept
        assert len(found) == len(batch)
        assert not bad & set(found)
    if not shuffle:
        assert whole[:2] == [[1, 2, 3, 8], [8, 9, 10, 11]]
        assert whole[4] == [16, 17, 1]  # the epoch begins again
    for step in (1, 2, 7):
        assert run(some, 4, epochs=2, first_step=step, shuffle=shuffle) == whole[step:]


def test_folder_without_images_is_refused_without_check(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="is a readable image"):
        kssl.data.from_folder(tmp_path, 4, check=False)


def test_shard_loads_only_the_images_of_the_worker():
    loaded = []

    def load(row):
        seen = tf.numpy_function(lambda i: (loaded.append(int(i)), i)[1], [row["id"]], tf.int64)
        return {"image": tf.zeros((2, 2, 3), tf.uint8), "id": tf.ensure_shape(seen, ())}

    images = random_access({"id": np.arange(10)}, load)
    own = [int(e["id"]) for e in pipeline.shard(images, (1, 3))]
    assert own == sorted(loaded) == [1, 4, 7]


MEMORY = """
    import sys
    import numpy as np, tensorflow as tf
    import keras_ssl as kssl

    def rss():
        return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

    folder = sys.argv[1]
    png = tf.io.encode_png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).numpy()
    open(folder + "/000000.png", "wb").write(png)
    import os
    for i in range(1, 20_000):
        os.link(folder + "/000000.png", f"{folder}/{i:06d}.png")
    before = rss()
    images = kssl.data.from_folder(folder, 32, check=False)
    listed = rss()
    encoder = kssl.encoders.resnet((32, 32, 3), width=1, blocks=(1,))
    task = kssl.tasks.Rotation(encoder)
    seen = []
    data = iter(task.dataset(images, 8, epochs=1, seed=1))
    for step in range(700):
        next(data)
        seen.append(rss())
    print(listed - before, np.median(seen[180:220]), np.median(seen[660:700]))
"""


def test_memory_does_not_grow_with_files_or_steps(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    listed, early, late = map(float, done.stdout.split())
    assert listed < 60  # for 20,000 files, without their pixels
    assert late - early < 8  # MiB, over 500 steps


def test_dataset_without_random_access_warns_once(task):
    images = kssl.data.digits("test")
    with pytest.warns(UserWarning, match=r"no random access.*\.take\(\).*data\.subset") as found:
        task.dataset(images.take(20), 4)
    assert len(found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task.dataset(kssl.data.subset(images, range(20)), 4)


def test_columns_of_clips_stay_together():
    """Frames and depth of an image stay together, including NaN, shuffled or not."""
    frames = np.arange(6 * 3 * 2 * 2 * 3, dtype=np.uint8).reshape(6, 3, 2, 2, 3)
    depth = np.where(frames[:, 0, ..., :1] % 5 == 0, np.nan, frames[:, 0, ..., :1]).astype("f4")
    images = random_access(
        {
            "image": frames[:, 1],
            "id": np.arange(6, dtype=np.int64),
            "frames": frames,
            "depth": depth,
        }
    )
    task = SimpleNamespace(
        pretext=lambda batch, seed: (batch, batch["id"]), needs=("frames", "depth"),
        whole_batches=False, distribute_strategy=SimpleNamespace(worker=(0, 1)),
    )  # fmt: skip
    for x, ids in pipeline.batches(images, task, 4, 2, 0, True, 5).as_numpy_iterator():
        assert set(x) == {"id", "frames", "depth"}
        np.testing.assert_array_equal(x["frames"], frames[ids])
        np.testing.assert_array_equal(x["depth"], depth[ids])
