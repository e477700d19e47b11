import atexit
import collections
import os
import re
import shutil
import struct
import tempfile
import warnings

import cv2
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from keras_ssl import data
from keras_ssl.data import columns, frame_store, video_files
from keras_ssl.data.videos import Clip, starts_of
from keras_ssl.ops import images

SIZE = (64, 128)
Usage = collections.namedtuple("Usage", "free")
BLOCK = 8  # pixels of a bit of the frame's number


def background(scene):
    noise = np.random.default_rng(scene).integers(0, 256, (8, 16, 3), np.uint8)
    return cv2.resize(noise, SIZE[::-1], interpolation=cv2.INTER_CUBIC)


def frame(number, scene=0):
    """(64, 128, 3) uint8 RGB, with the number in bits of low contrast, so that it is no cut."""
    image = background(scene)
    for bit in range(8):
        value = 180 if number >> bit & 1 else 80
        image[: 2 * BLOCK, 2 * BLOCK * bit : 2 * BLOCK * (bit + 1)] = 128
        image[4:12, 2 * BLOCK * bit + 4 : 2 * BLOCK * bit + 12] = value
    return image


def numbers(frames):
    """The numbers of frames (..., 64, 128, 3)."""
    rows = frames[..., 6:10, :, :].mean(axis=(-3, -1))
    bits = [rows[..., 2 * BLOCK * k + 6 : 2 * BLOCK * k + 10].mean(axis=-1) > 128 for k in range(8)]
    return sum(2**k * bit.astype(int) for k, bit in enumerate(bits)).tolist()


def write(path, codec="mp4v", scenes=(0,) * 30):
    path.parent.mkdir(parents=True, exist_ok=True)
    code = cv2.VideoWriter_fourcc(*codec)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, 25, SIZE[::-1])
    assert writer.isOpened()
    for k, scene in enumerate(scenes):
        writer.write(frame(k, scene)[..., ::-1].copy())
    writer.release()
    return path


def read(folder, frames=1, stride=1, **arguments):
    """The arrays of a dataset, of which no warning is expected."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = data.from_videos(folder, frames, stride, SIZE, **arguments)
    return data.to_arrays(dataset)


def boxes(content):
    start = 0
    while start < len(content):
        length, kind = struct.unpack(">I4s", content[start : start + 8])
        yield kind, content[start + 8 : start + length]
        start += length


def with_durations(content, durations):
    """An MP4 whose frames have these durations; without its edit list, which would cut it."""
    changed = b""
    for kind, body in boxes(content):
        if kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
            body = with_durations(body, durations)
        elif kind == b"stts":
            body = struct.pack(">II", 0, len(durations))
            body += b"".join(struct.pack(">II", 1, duration) for duration in durations)
        if kind != b"edts":
            changed += struct.pack(">I4s", len(body) + 8, kind) + body
    return changed


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "mp4v"),
        ("a.mov", "mp4v"),
        ("a.avi", "MJPG"),
        ("a.mkv", "mpg2"),
        ("a.webm", "VP80"),
    ],
)
def test_formats(tmp_path, name, codec):
    write(tmp_path / name, codec)
    arrays = read(tmp_path, 4, 2)
    expected = np.arange(24)[:, None] + [0, 2, 4, 6]
    assert numbers(arrays["frames"]) == expected.tolist()
    np.testing.assert_array_equal(arrays["image"], arrays["frames"][:, 1])
    assert arrays["id"].tolist() == list(range(24))
    np.testing.assert_allclose(arrays["time"], (np.arange(24) + 2) / 25, atol=1e-3)
    error = np.abs(arrays["image"][0].astype(int) - frame(2)).mean(axis=(0, 1))
    assert (error < 12).all()  # RGB, not BGR


def test_rows_by_index_are_the_frames_in_order_with_b_frames_of_a_variable_rate(tmp_path):
    path = write(tmp_path / "a.mp4", "mpg2", scenes=(0,) * 40)
    durations = np.random.default_rng(0).integers(100, 2000, 40)
    path.write_bytes(with_durations(path.read_bytes(), durations.tolist()))
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    kinds, expected, times = "", [], []
    while capture.grab():
        kinds += chr(int(capture.get(cv2.CAP_PROP_FRAME_TYPE)))
        expected.append(capture.retrieve()[1][..., ::-1])
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    assert "B" in kinds
    assert len(set(np.diff(times).round(4))) > 20
    clips = data.from_videos(tmp_path, 3, 2, SIZE)
    rows = np.random.default_rng(1).permutation(36)
    arrays = data.to_arrays(data.subset(clips, rows))
    np.testing.assert_array_equal(arrays["frames"], np.array(expected)[rows[:, None] + [0, 2, 4]])
    np.testing.assert_allclose(arrays["time"], np.array(times)[rows + 2], rtol=1e-5)
    assert arrays["id"].tolist() == rows.tolist()


def test_the_frames_of_a_real_film_with_b_frames(tmp_path):
    folder = os.path.join(os.path.dirname(__file__), "../../../shared/data/videos")
    if not os.path.isdir(folder):
        pytest.skip("no films")
    shutil.copy(os.path.join(folder, "bikes.mp4"), tmp_path)
    capture, expected = cv2.VideoCapture(str(tmp_path / "bikes.mp4"), cv2.CAP_FFMPEG), []
    while capture.grab():
        image = capture.retrieve()[1][..., ::-1]
        expected.append(images.resize(image.copy(), 34, 80))
    rows = np.arange(249, -1, -7)
    arrays = data.to_arrays(data.subset(data.from_videos(tmp_path, 1, 1, (34, 80)), rows))
    np.testing.assert_array_equal(arrays["image"], np.array(expected)[rows])
    clips = data.from_videos(tmp_path, 2, 1, (34, 80))
    first = clips.columns["first"].numpy()
    assert sorted(set(range(249)) - set(first)) == [29, 75, 136, 186, 241]  # its cuts


def test_frames_are_resized_as_images_are(tmp_path):
    write(tmp_path / "a.avi", "FFV1", scenes=(0,) * 2)
    image = read(tmp_path, 2)["image"]
    (tmp_path / "images").mkdir()
    Image.fromarray(image[0]).save(tmp_path / "images/0.png")
    small = data.to_arrays(data.from_videos(tmp_path, 1, 1, 24))["image"]
    expected = data.to_arrays(data.from_folder(tmp_path / "images", 24))["image"]
    np.testing.assert_array_equal(small[0], expected[0])


def test_gif_with_durations(tmp_path):
    frames = [Image.fromarray(frame(k)) for k in range(6)]
    durations = [40, 200, 40, 100, 500, 40]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=durations)
    arrays = read(tmp_path, 2)
    assert numbers(arrays["frames"]) == [[k, k + 1] for k in range(5)]
    np.testing.assert_allclose(arrays["time"], np.cumsum([0, *durations[:4]]) / 1000, atol=1e-6)


def test_clips_cross_no_cut(tmp_path):
    write(tmp_path / "a.mp4", scenes=[0] * 10 + [1] * 7 + [2] * 3 + [0] * 10)
    arrays = read(tmp_path, 4)
    starts = [clip[0] for clip in numbers(arrays["frames"])]
    assert starts == [*range(7), *range(10, 14), *range(20, 27)]
    arrays = read(tmp_path, 4, step=4)
    assert [clip[0] for clip in numbers(arrays["frames"])] == [0, 4, 10, 20, 24]


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.5, 0.5, 40, 0.5, 0.5], [2]),
        ([12, 13, 30, 12, 14], []),  # a pan
        ([12, 13, 50, 12, 14], [2]),
        ([0, 12, 0, 13, 0, 12, 0], []),  # a pan in which frames are repeated
        ([2, 9.9, 2], []),
        ([50], [0]),
        ([50, 40, 0, 0], []),  # noise from one frame to the next
        ([], []),
    ],
)
def test_cuts(differences, expected):
    assert np.flatnonzero(frame_store.cuts(np.array(differences, float))).tolist() == expected


@given(
    st.lists(st.booleans(), max_size=30),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_starts(joined, frames, stride, step):
    joined = np.array(joined, bool)
    clip = Clip(frames, stride, step, 0.0)
    starts = starts_of(joined, clip).tolist()
    valid = [k for k in range(len(joined) + 2 - clip.span) if joined[k : k + clip.span - 1].all()]
    scene = np.concatenate([[0], np.cumsum(~joined)])
    begins = np.searchsorted(scene, scene)  # the first frame of the scene of each
    assert starts == [k for k in valid if (k - begins[k]) % step == 0]


def test_numbered_images(tmp_path):
    for name, kept in (("walk", [3, 4, 5, 6, 8, 9]), ("run", range(0, 25, 5))):
        (tmp_path / name).mkdir()
        for k in kept:
            Image.fromarray(frame(k)).save(tmp_path / name / f"frame_{k:04}.png")
    Image.fromarray(frame(1)).save(tmp_path / "poster1.jpg")
    Image.fromarray(frame(1)).save(tmp_path / "logo.png")
    with pytest.warns(UserWarning, match=r"damaged or missing frames \(1: walk\)"):
        dataset = data.from_videos(tmp_path, 2, 1, SIZE)
    arrays = data.to_arrays(dataset)
    assert numbers(arrays["frames"]) == [
        [0, 5], [5, 10], [10, 15], [15, 20], [3, 4], [4, 5], [5, 6], [8, 9]
    ]  # fmt: skip
    assert arrays["time"].tolist() == [0, 5, 10, 15, 3, 4, 5, 8]
    assert [os.path.basename(path) for path in dataset.paths] == ["run"] * 4 + ["walk"] * 4
    assert dataset.class_names is None
    (tmp_path / "walk/frame_0005.png").write_bytes(b"text")
    with pytest.warns(UserWarning, match=r"damaged or missing frames \(2: \.\)"):
        dataset = data.from_videos(tmp_path / "walk", 2, 1, SIZE)
    assert numbers(data.to_arrays(dataset)["frames"]) == [[3, 4], [8, 9]]


def test_classes_are_subfolders(tmp_path):
    for name in ("walk", "run"):
        write(tmp_path / name / "1.avi", scenes=(0,) * 3)
    (tmp_path / "walk/2").mkdir()
    for k in range(3):
        Image.fromarray(frame(k)).save(tmp_path / f"walk/2/{k}.png")
    dataset = data.from_videos(tmp_path, 2, 1, SIZE)
    assert dataset.class_names == ["run", "walk"]
    assert data.to_arrays(dataset)["label"].tolist() == [0, 0, 1, 1, 1, 1]
    assert data.subset(dataset, [0]).class_names == ["run", "walk"]


def test_damaged_files_are_skipped_and_counted(tmp_path):
    write(tmp_path / "good.mp4", scenes=(0,) * 6)
    write(tmp_path / "short.mp4", scenes=(0,) * 3)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video")
    content = write(tmp_path / "moov.mp4").read_bytes()
    (tmp_path / "moov.mp4").write_bytes(content[: len(content) // 2])
    content = write(tmp_path / "cut.avi", "MJPG").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    os.mkfifo(tmp_path / "fifo.mp4")  # reading it would wait forever
    with pytest.warns(UserWarning, match="skipped parts of") as record:
        dataset = data.from_videos(tmp_path, 4, 1, SIZE)
    (warning,) = [str(w.message) for w in record]
    assert "unreadable (3: empty.mp4, moov.mp4, text.mp4)" in warning
    assert "shorter than a clip (1: short.mp4)" in warning
    assert "no regular file, no permission to read, or read already (1: fifo.mp4)" in warning
    (lost,) = re.findall(r"damaged or missing frames \((\d+): cut.avi\)", warning)
    kept = 30 - int(lost)
    assert 5 < kept < 25
    found = numbers(data.to_arrays(dataset)["frames"])
    assert found == [[k, k + 1, k + 2, k + 3] for k in [*range(kept - 3), 0, 1, 2]]


def test_damaged_packets_break_clips(tmp_path):
    """After a packet that is lost, the frames up to the next key frame are not as they were."""
    path = write(tmp_path / "a.mp4", scenes=(0,) * 40)  # a key frame every 12 frames
    content = bytearray(path.read_bytes())
    sizes = content[content.find(b"stsz") + 16 :]
    sizes = [struct.unpack(">I", sizes[4 * k : 4 * k + 4])[0] for k in range(40)]
    start = content.find(b"mdat") + 4 + sum(sizes[:15])
    content[start : start + sizes[15]] = bytes(sizes[15])
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"damaged or missing frames \(9: a.mp4\)"):
        dataset = data.from_videos(tmp_path, 2, 1, SIZE)
    found = [clip[0] for clip in numbers(data.to_arrays(dataset)["frames"])]
    assert found == [*range(14), *range(24, 39)]


def test_nothing_is_left(tmp_path):
    with pytest.raises(ValueError, match="there is no folder '.*nowhere'"):
        data.from_videos(tmp_path / "nowhere", 1, 1, 8)
    with pytest.raises(
        ValueError, match="has no videos: expected files ending in .mp4, .*numbered"
    ):
        data.from_videos(tmp_path, 1, 1, 8)
    write(tmp_path / "short.mp4", scenes=(0,) * 3)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(
        ValueError, match=r"no clip of 4 frames with stride 1: shorter than a clip \(1: sh"
    ):
        data.from_videos(tmp_path, 4, 1, 8)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"frames": 0}, "frames must be"), ({"stride": 1.5}, "stride must be"), ({"size": 0}, "size must be"),
     ({"step": 0}, "step must be"), ({"min_motion": -1}, "min_motion must be a number of at least 0"),
     ({"min_motion": 0.1, "size": 8}, "min_motion needs a size of at least 12"),
     ({"cache": __file__}, "cache must be a folder")],
)  # fmt: skip
def test_invalid_arguments(tmp_path, arguments, words):
    write(tmp_path / "a.mp4", scenes=(0,) * 2)
    with pytest.raises(ValueError, match=words):
        data.from_videos(tmp_path, **{"frames": 1, "stride": 1, "size": 16, **arguments})


def test_too_little_space(tmp_path, monkeypatch):
    write(tmp_path / "a.mp4", scenes=(0,) * 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2 * 64 * 128 * 3))
    with pytest.raises(ValueError, match="the 2 frames need 0.0 GB, .*give cache= a folder"):
        data.from_videos(tmp_path, 1, 1, SIZE)


def test_clips_that_move(tmp_path):
    """Textures that move by 0, 2 and 4 pixels per frame."""
    wide = cv2.resize(
        np.random.default_rng(0).integers(0, 256, (16, 64, 3), np.uint8),
        (256, 64),
        interpolation=cv2.INTER_CUBIC,
    )
    for name, speed in (("a", 0), ("b", 2), ("c", 4)):
        (tmp_path / name).mkdir()
        for k in range(8):
            Image.fromarray(wide[:, speed * k : speed * k + 128]).save(tmp_path / name / f"{k}.png")
    for least, kept in ((0, "abc"), (1 / 64, "bc"), (3 / 64, "c")):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="skipped parts.*without enough motion")
            clips = data.from_videos(tmp_path, 3, 2, SIZE, min_motion=least)
        assert sorted({path[-1] for path in clips.paths}) == list(kept)
    with pytest.raises(ValueError, match=r"without enough motion \(3: a, b, c\)"):
        data.from_videos(tmp_path, 3, 2, SIZE, min_motion=8 / 64)
    fastest = video_files.find(tmp_path)[0][2]
    stored = frame_store.store(fastest, SIZE, str(tmp_path / "stored"))
    np.testing.assert_allclose(frame_store.speeds(stored, SIZE), 4 / 64, rtol=0.2)


def test_flow_column(tmp_path):
    wide = cv2.resize(
        np.random.default_rng(0).integers(0, 256, (16, 64, 3), np.uint8),
        (256, 64),
        interpolation=cv2.INTER_CUBIC,
    )
    for k in range(4):
        Image.fromarray(wide[:, 2 * k : 2 * k + 128]).save(tmp_path / f"{k}.png")
    clips = data.with_flow(data.from_videos(tmp_path, 3, 1, SIZE))
    flow = data.to_arrays(clips)["flow"]
    assert flow.shape == (2, *SIZE, 2)
    np.testing.assert_allclose(np.nanmedian(flow, axis=(1, 2)), [[-2, 0]] * 2, atol=0.1)
    assert len(clips.paths) == 2
    with pytest.raises(ValueError, match="have a column 'flow' already"):
        data.with_flow(clips)
    for frames, size in ((1, 16), (2, 8)):
        with pytest.raises(ValueError, match="clips must have `frames`"):
            data.with_flow(data.from_videos(tmp_path, frames, 1, size))
    with pytest.raises(ValueError, match="clips must have random access"):
        data.with_flow(clips.take(1))


def test_kept_frames_are_not_decoded_again(tmp_path, monkeypatch):
    videos, cache = tmp_path / "videos", tmp_path / "cache"
    write(videos / "a.mp4", scenes=[0] * 5 + [1] * 5)
    first = read(videos, 2, cache=cache)
    expected, decode = {}, video_files.decode
    monkeypatch.setattr(video_files, "decode", lambda video: expected[video])
    again = read(videos.rename(tmp_path / "moved"), 2, cache=cache)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    os.utime(tmp_path / "moved/a.mp4", (1, 1))  # a file of the same size, which may be another one
    with pytest.raises(KeyError):
        read(tmp_path / "moved", 2, cache=cache)
    monkeypatch.setattr(video_files, "decode", decode)
    write(tmp_path / "moved/b.mp4", scenes=[0] * 4)
    write(tmp_path / "moved/a.mp4", scenes=[0] * 3)
    assert numbers(read(tmp_path / "moved", 2, cache=cache)["frames"]) == [
        [0, 1], [1, 2], [0, 1], [1, 2], [2, 3]
    ]  # fmt: skip


def test_a_damaged_frame_in_the_cache_is_not_returned(tmp_path):
    write(tmp_path / "videos/a.mp4", scenes=[0] * 5)
    clips = data.from_videos(tmp_path / "videos", 2, 1, SIZE, cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.tfrecord")
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(tf.errors.DataLossError):
        data.to_arrays(clips)
    assert len(data.to_arrays(data.subset(clips, [0, 1, 2]))["id"]) == 3


def test_fingerprint(tmp_path):
    write(tmp_path / "videos/a.mp4", scenes=[0] * 8)
    before = columns.fingerprint(data.from_videos(tmp_path / "videos", 2, 1, SIZE))
    moved = (tmp_path / "videos").rename(tmp_path / "moved")
    assert columns.fingerprint(data.from_videos(moved, 2, 1, SIZE)) == before
    assert columns.fingerprint(data.from_videos(moved, 2, 1, SIZE, step=2)) != before
    (moved / "a.mp4").rename(moved / "b.mp4")
    assert columns.fingerprint(data.from_videos(moved, 2, 1, SIZE)) != before


def test_temporary_frames_of_dead_processes_are_removed(tmp_path, monkeypatch):
    """Those of a process that runs are kept, and removed when it ends."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    at_exit = []
    monkeypatch.setattr(atexit, "register", lambda *call: at_exit.append(call))
    for name in ("keras_ssl_frames_dead", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".lock").touch()
    first = frame_store.temporary_folder.__wrapped__()
    frame_store.temporary_folder.__wrapped__()
    assert not (tmp_path / "keras_ssl_frames_dead").exists()
    assert (tmp_path / "other").exists()
    assert os.path.isdir(first)
    for function, *arguments in at_exit:
        function(*arguments)
    assert os.listdir(tmp_path) == ["other"]
