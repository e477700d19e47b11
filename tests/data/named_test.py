import cv2
import numpy as np
import pytest
from PIL import Image

import keras_ssl as kssl
from keras_ssl.data.named import load_dataset
from keras_ssl.tasks import TASKS


def test_train_and_test_folders_are_used_as_they_are(tmp_path):
    for part, number in (("train", 10), ("test", 1)):
        for name in ("red", "blue"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(number):
                Image.new("RGB", (9, 9)).save(tmp_path / part / name / f"{i}.png")
            if (part, name) == (
                "test",
                "red",
            ):  # alone it would be class 0; in train/ it is class 1
                with pytest.raises(ValueError, match="same class folders"):
                    load_dataset(str(tmp_path), 16, split=True)
    train, test = load_dataset(str(tmp_path), 16, split=True)
    assert (int(train.cardinality()), int(test.cardinality())) == (20, 2)
    assert kssl.data.to_arrays(test)["label"].tolist() == [0, 1]
    assert int(load_dataset(str(tmp_path), 16)[0].cardinality()) == 20


def test_every_fifth_image_of_a_folder_is_a_test_image(tmp_path):
    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.new("RGB", (9, 9)).save(tmp_path / name / f"{i}.png")
    train, test = load_dataset(str(tmp_path), 16, split=True)
    assert (int(train.cardinality()), int(test.cardinality())) == (16, 4)
    assert sorted(kssl.data.to_arrays(test)["label"]) == [0, 0, 1, 1]


def test_scenes_are_rendered_in_the_size_and_with_the_frames_that_are_needed():
    train, test = load_dataset("scenes", 16, split=True)
    assert (int(train.cardinality()), int(test.cardinality())) == (10_000, 2_000)
    first, other = (next(part.as_numpy_iterator()) for part in (train, test))
    assert first["image"].shape == (16, 16, 3)
    assert "flow" not in first
    assert (first["image"] != other["image"]).any()
    clips, none = load_dataset("scenes", (16, 16), needs=("image", "flow"))
    assert none is None
    assert clips.element_spec["frames"].shape == (3, 16, 16, 3)
    clips, _ = load_dataset("scenes", 16, needs=("frames",))  # TemporalOrder needs five
    assert clips.element_spec["frames"].shape == (5, 16, 16, 3)
    with pytest.raises(ValueError, match="scenes has square images"):
        load_dataset("scenes", (16, 20))


def test_real_images_are_paired_with_rendered_ones(tmp_path):
    pairs, _ = load_dataset("digits", 32, needs=("image", "depth", "real"))
    digits = next(kssl.data.digits().as_numpy_iterator())
    row = next(pairs.as_numpy_iterator())
    assert int(pairs.cardinality()) == 1437
    assert (row["real"] == digits["image"]).all()
    assert row["depth"].shape == (32, 32, 1)
    kssl.data.to_tfrecord(kssl.data.scenes(3, 32, seed=5), tmp_path, verbose=0)
    pairs, _ = load_dataset("digits", 32, needs=("image", "real"), synthetic=str(tmp_path))
    assert int(pairs.cardinality()) == 3
    expected = next(kssl.data.scenes(3, 32, seed=5).as_numpy_iterator())
    assert (next(pairs.as_numpy_iterator())["image"] == expected["image"]).all()


def write_video(path, number):
    """A texture that moves by a pixel per frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (16, 64, 3), np.uint8)
    wide = cv2.resize(noise, (256, 64), interpolation=cv2.INTER_CUBIC)
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), 25, (64, 64)
    )
    for k in range(number):
        writer.write(wide[:, k : k + 64].copy())
    writer.release()


def test_folders_of_videos(tmp_path):
    write_video(tmp_path / "a.mp4", 20)
    (tmp_path / "poster.gif").write_bytes(b"no image")
    name = str(tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "poster.jpg")
    with pytest.warns(UserWarning, match="poster.gif"):
        images, _ = load_dataset(name, 16, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.tfrecord"))) == 1
    assert "frames" not in images.element_spec
    assert int(images.cardinality()) == 20
    (tmp_path / "poster.gif").unlink()
    clips, _ = load_dataset(name, 16, needs=("frames",))
    assert clips.element_spec["frames"].shape == (5, 16, 16, 3)
    assert clips.span == 13
    clips, _ = load_dataset(name, 16, needs=("image", "flow"), frames=2, stride=1)
    assert clips.element_spec["frames"].shape == (2, 16, 16, 3)
    assert clips.element_spec["flow"].shape == (16, 16, 2)
    clips, _ = load_dataset(name, 16, needs=("image", "moving"))
    assert clips.element_spec["moving"].shape == (16, 16, 1)
    scenes, _ = load_dataset("scenes", 16, needs=("image", "moving"))
    assert scenes.element_spec["moving"].shape == (16, 16, 1)
    reader = {row.name: row.task.reader for row in TASKS}["relative_depth"]
    needs = ("image", "relative_depth")
    clips, _ = load_dataset(name, 16, reader=reader, needs=needs)
    assert clips.element_spec["relative_depth"].shape == (16, 16, 1)
    assert "flow" not in clips.element_spec  # estimated flow is not trusted as an exact one


def test_a_folder_of_images_with_some_videos(tmp_path):
    write_video(tmp_path / "a.mp4", 4)
    for k in range(2):
        Image.new("RGB", (9, 9)).save(tmp_path / f"photo{k}.png")
    assert int(load_dataset(str(tmp_path), 16)[0].cardinality()) == 2


def test_numbered_images_are_a_video_if_a_task_needs_frames(tmp_path):
    for k in range(14):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{k}.png")
    assert "time" not in load_dataset(str(tmp_path), 16)[0].element_spec
    clips, _ = load_dataset(str(tmp_path), 16, needs=("frames",))
    assert int(clips.cardinality()) == 2
    with pytest.raises(
        ValueError, match="--frames, --stride, --cache and --min-motion are for a folder of videos"
    ):
        load_dataset(str(tmp_path), 16, stride=2)
    with pytest.raises(ValueError, match="--frames, --stride, --cache and --min-motion are for"):
        load_dataset("digits", 32, frames=2)


def test_training_and_test_clips_have_no_frame_in_common(tmp_path):
    for name, number in (("a", 40), ("b", 30)):
        write_video(tmp_path / f"{name}.mp4", number)
    train, test = load_dataset(str(tmp_path), 16, split=True, needs=("frames",), frames=3, stride=2)
    firsts = [
        [
            part.columns["first"].numpy()[part.columns["video"].numpy() == k]
            for part in (train, test)
        ]
        for k in (0, 1)
    ]
    assert [part.tolist() for part in firsts[0]] == [list(range(25)), list(range(29, 36))]
    assert [part.tolist() for part in firsts[1]] == [list(range(17)), list(range(21, 26))]
    masked = load_dataset(
        str(tmp_path), 16, split=True, needs=("image", "moving"), frames=3, stride=2
    )
    for part, other in zip((train, test), masked, strict=True):  # a computed column changes nothing
        np.testing.assert_array_equal(other.columns["first"], part.columns["first"])
    for name in "cdef":
        write_video(tmp_path / f"{name}.mp4", 3)
    train, test = load_dataset(str(tmp_path), 16, split=True)
    assert set(train.columns["video"].numpy()) == {0, 1, 2, 3, 5}
    assert set(test.columns["video"].numpy()) == {4}
