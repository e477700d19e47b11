"""Features of clips through a server: each frame once, pooled, and resumed."""

import itertools
import os

import numpy as np
import pytest
from PIL import Image

from keras_ssl import data
from keras_ssl.serving.client import clips as module
from keras_ssl.serving.client.clips import extract_clips


@pytest.fixture
def numbered_clips(tmp_path):
    """Six clips of three frames, of which frame k is image number k."""
    (tmp_path / "film").mkdir()
    for k in range(18):
        Image.new("RGB", (8, 8), (k, 0, 9)).save(tmp_path / "film" / f"{k:03}.png")
    return data.from_videos(tmp_path, 3, 1, 8, step=3)


def check(out, clips, pool):
    numbers = np.arange(18.0).reshape(6, 3)
    with np.load(out) as found:
        assert sorted(found) == ["features", "id", "path", "time"]
        assert found["path"].tolist() == clips.paths
        assert found["id"].tolist() == list(range(6))
        assert found["time"].tolist() == list(range(1, 18, 3))
        rows = np.stack([numbers, -numbers], axis=-1)
        expected = rows.mean(axis=1) if pool == "mean" else rows.reshape(6, 6)
        np.testing.assert_array_equal(found["features"], expected)
        assert found["features"].dtype == np.float32


@pytest.mark.parametrize(("pool", "dimensions"), [("mean", 2), ("concat", 6)])
def test_clips(tmp_path, monkeypatch, fake_server, numbered_clips, pool, dimensions):
    monkeypatch.setattr(module, "CHUNK", 4)  # not a multiple of the frames of a clip
    monkeypatch.setattr("keras_ssl.serving.client.partial_file.CHUNK", 4)
    fake, out = fake_server(), tmp_path / "features.npz"
    with fake.client(batch_size=5) as client:
        assert extract_clips(client, numbered_clips, out, pool) == (6, dimensions)
    assert sorted(itertools.chain(*fake.requests)) == list(range(18))
    check(out, numbered_clips, pool)
    assert not os.path.exists(f"{out}.part")


def test_single_frames(tmp_path, fake_server, numbered_clips):
    frames, out = data.from_videos(tmp_path, 1, 1, 8), tmp_path / "features.npz"
    with fake_server().client(batch_size=5) as client:
        assert extract_clips(client, frames, out) == (18, 2)
    with np.load(out) as found:
        np.testing.assert_array_equal(found["features"], [[k, -k] for k in range(18)])


def test_resumes_in_the_middle_of_a_clip(tmp_path, capsys, fake_server, numbered_clips):
    out, calls = tmp_path / "features.npz", itertools.count()

    def fail(numbers, context):
        if next(calls) == 3:
            context.abort(13, "broken")

    with (
        fake_server(fail).client(batch_size=2, window=1) as client,
        pytest.raises(
            RuntimeError, match=r"broken.*; 5 of 18 images are in '.*part', run the same"
        ),
    ):
        extract_clips(client, numbered_clips, out)
    fake = fake_server()
    with fake.client(batch_size=2) as client:
        other = data.from_videos(tmp_path, 3, 1, 8, step=3)
        with pytest.raises(ValueError, match="belongs to another extraction .*clips"):
            extract_clips(client, data.from_videos(tmp_path, 2, 1, 8, step=2), out)
        extract_clips(client, other, out, progress=True)
    assert "resuming at image 6 of 18" in capsys.readouterr().err
    assert sorted(itertools.chain(*fake.requests)) == list(range(5, 18))
    check(out, numbered_clips, "mean")


def test_pool_is_checked(tmp_path, fake_server, numbered_clips):
    with (
        fake_server().client() as client,
        pytest.raises(ValueError, match="pool must be 'mean' or 'concat', got 'max'"),
    ):
        extract_clips(client, numbered_clips, tmp_path / "features.npz", pool="max")
