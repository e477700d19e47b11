"""The command on a folder of videos: train on frames, extract their features here and from a server."""

import cv2
import numpy as np
import pytest
from PIL import Image

from keras_ssl import serving


@pytest.fixture
def videos(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        noise = np.random.default_rng(seed).integers(0, 256, (8, 32, 3), np.uint8)
        wide = cv2.resize(noise, (200, 48), interpolation=cv2.INTER_CUBIC)
        (tmp_path / "videos").mkdir(exist_ok=True)
        file, code = tmp_path / f"videos/{name}.mp4", cv2.VideoWriter_fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(file), cv2.CAP_FFMPEG, code, 25, (64, 48))
        for k in range(14):
            writer.write(wide[:, 2 * k : 2 * k + 64].copy())
        writer.release()
    return tmp_path / "videos"


def test_pretrain_and_preview(command, videos):
    small = ("--width", 2, "--blocks", 1, "--size", 16, "--epochs", 1, "--batch-size", 8)
    code, out, _ = command("pretrain", "rotation", "--data", videos, "--cache", "kept", *small)
    assert code == 0
    assert "rotation on" in out
    assert "28 images, 4 steps per epoch" in out
    assert len(list((videos.parent / "kept").glob("*.tfrecord"))) == 2
    code, out, _ = command("preview", "rotation_videos.keras", "--data", videos, "--frames", 3)
    assert code == 0
    assert Image.open("preview.png").size[0] > 300
    code, _, err = command("preview", "rotation", "--stride", 3)
    assert code == 2
    assert (
        "--frames, --stride, --cache and --min-motion are for a folder of videos, got 'digits'"
        in err
    )


def test_pretrain_on_clips_that_move(command, videos):
    writer = cv2.VideoWriter(
        str(videos / "still.mp4"), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), 25, (64, 48)
    )
    for _ in range(14):
        writer.write(np.full((48, 64, 3), 90, np.uint8))
    writer.release()
    small = ("--width", 2, "--blocks", 1, "--size", 64, "--epochs", 1, "--batch-size", 8)
    clips = ("--data", videos, "--frames", 2, "--stride", 1)
    code, out, _ = command("pretrain", "rotation", *clips, *small, "--min-motion", 0.01)
    assert code == 0
    assert "26 images" in out  # 13 clips of each video that moves


@pytest.mark.parametrize(
    ("options", "rows", "dimensions"),
    [((), 28, 8), (("--frames", 3, "--stride", 2, "--pool", "concat"), 4, 24)],
)
def test_extract(command, videos, exported, options, rows, dimensions):
    assert command("extract", videos, "--model", exported, *options)[0] == 0
    local = dict(np.load("features.npz"))
    assert local["features"].shape == (rows, dimensions)
    assert [path[-5:] for path in local["path"]] == ["a.mp4"] * (rows // 2) + ["b.mp4"] * (
        rows // 2
    )
    times = np.arange(14) / 25 if rows == 28 else np.array([2, 8]) / 25
    np.testing.assert_allclose(local["time"], np.tile(times, 2), atol=1e-4)
    with serving.Server(exported.parent) as server:
        address = f"localhost:{server.port}"
        code, out, _ = command(
            "extract", videos, "--model", exported.name, "--server", address, "--out", "served.npz",
            *options,
        )  # fmt: skip
    assert code == 0
    assert f"wrote served.npz: {rows} x {dimensions}" in out
    served = dict(np.load("served.npz"))
    assert sorted(served) == sorted(local)
    for name in local:
        if name == "path":
            assert served[name].tolist() == local[name].tolist()
        else:
            np.testing.assert_allclose(served[name], local[name], rtol=1e-5, atol=1e-5)


def test_unknown_models_of_a_server(command, videos, exported):
    with serving.Server(exported.parent) as server:
        code, _, err = command(
            "extract", videos, "--model", "nosuch", "--server", f"localhost:{server.port}"
        )
    assert code == 2
    assert "nosuch" in err
    assert err.count("\n") == 1
