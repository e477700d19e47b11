"""Recordings in the layout of KITTI odometry."""

import re

import numpy as np
import pytest
import tensorflow as tf
from recordings import HEIGHT, WIDTH, motions, numbers, picture, save_depth, trajectory

from keras_ssl import data
from keras_ssl.tasks import EgoMotion


@pytest.fixture
def kitti(tmp_path):
    """Five frames of a sequence without depth."""
    folder = tmp_path / "dataset/sequences/00"
    (folder / "image_2").mkdir(parents=True)
    for k, pose in enumerate(trajectory(5)):
        picture(k + 1).save(folder / f"image_2/{k:06d}.png")
        with open(folder / "poses.txt", "a") as file:
            file.write(" ".join(f"{v:.9e}" for v in pose[:3].ravel()) + "\n")
    matrix = "20 0 9.5 0 0 30 5.5 0 0 0 1 0"
    (folder / "calib.txt").write_text(f"P0: {matrix}\nP2: {matrix}\nTr: 1 0\n")
    return folder


def test_kitti(kitti):
    arrays = data.to_arrays(data.from_rgbd(kitti, size=(HEIGHT // 2, WIDTH // 2), frames=2))
    assert set(arrays) == {"image", "id", "frames", "motion", "intrinsics"}
    assert numbers(arrays["frames"]) == [[1, 2], [2, 3], [3, 4], [4, 5]]
    assert numbers(arrays["image"]) == [1, 2, 3, 4]
    np.testing.assert_allclose(arrays["motion"][:, 0], motions(trajectory(5)), atol=2e-6)
    np.testing.assert_allclose(arrays["intrinsics"][0], [10, 15, 4.5, 2.5], rtol=1e-6)
    # Where the data set has them.
    (kitti.parents[1] / "poses").mkdir()
    (kitti / "poses.txt").rename(kitti.parents[1] / "poses/00.txt")
    again = data.to_arrays(data.from_rgbd(kitti, size=8, frames=2))
    np.testing.assert_array_equal(again["motion"], arrays["motion"])


def test_poses_of_kitti_are_those_of_another_camera(kitti):
    """Camera 2 is 6 cm to the left of camera 0: X_2 = X_0 + (0.06, 0, 0)."""
    (kitti / "calib.txt").write_text("P2: 20 0 9.5 1.2 0 30 5.5 0 0 0 1 0\n")
    to_camera_2 = np.eye(4)
    to_camera_2[0, 3] = 1.2 / 20
    expected = motions(trajectory(5) @ np.linalg.inv(to_camera_2))
    arrays = data.to_arrays(data.from_rgbd(kitti, size=8, frames=2))
    np.testing.assert_allclose(arrays["motion"][:, 0], expected, atol=2e-6)


def test_kitti_with_depth(kitti):
    (kitti / "depth").mkdir()
    for k in range(1, 5):  # the first frame has none
        save_depth(np.full((HEIGHT, WIDTH), 256 * (k + 1)), kitti / f"depth/{k:06d}.png")
    with pytest.warns(UserWarning, match="skipped 1 of 5 .*no depth of that name .*000000.png"):
        arrays = data.to_arrays(data.from_rgbd(kitti, size=8, frames=2))
    assert numbers(arrays["frames"]) == [[2, 3], [3, 4], [4, 5]]
    assert arrays["depth"][:, 0, 0, 0].tolist() == [2, 3, 4]
    np.testing.assert_allclose(arrays["motion"][:, 0], motions(trajectory(5))[1:], atol=2e-6)


def test_clips_do_not_span_a_gap(kitti):
    (kitti / "image_2/000002.png").unlink()
    arrays = data.to_arrays(data.from_rgbd(kitti, size=8, frames=2))
    assert numbers(arrays["frames"]) == [[1, 2], [4, 5]]
    np.testing.assert_allclose(arrays["motion"][:, 0], motions(trajectory(5))[[0, 3]], atol=2e-6)
    with pytest.raises(
        ValueError, match="frames must be at most the number of consecutive .* got 3"
    ):
        data.from_rgbd(kitti, size=8, frames=3)


def test_poses_of_kitti_that_are_no_rotations(kitti):
    rows = (kitti / "poses.txt").read_text().splitlines()
    rows[1] = rows[1].replace(" ", " 7", 1)  # no longer orthogonal
    rows[2] = "1 2"
    (kitti / "poses.txt").write_text("\n".join(rows[:4]))  # the last frame has none
    with pytest.warns(UserWarning, match="the pose of 3 frames is unknown"):
        arrays = data.to_arrays(data.from_rgbd(kitti, size=8, frames=2))
    assert np.isnan(arrays["motion"]).all()


def test_other_folders(tmp_path, kitti):
    with pytest.raises(ValueError, match="there is no folder '.*nowhere'"):
        data.from_rgbd(tmp_path / "nowhere", size=8)
    (tmp_path / "video.mp4").write_bytes(b"0000ftyp")
    with pytest.raises(ValueError, match=r"'.*video.mp4' is a file: extract the frames of a video"):
        data.from_rgbd(tmp_path / "video.mp4", size=8)
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match=r"has none of the layouts of from_rgbd: rgb.txt"):
        data.from_rgbd(tmp_path / "photos", size=8)
    for file in (kitti / "image_2").iterdir():
        file.write_text("text")
    with pytest.raises(ValueError, match=r"has no complete frame: unreadable image or depth \(5: "):
        data.from_rgbd(kitti, size=8)
    for file in (kitti / "image_2").iterdir():
        file.rename(file.with_name(f"frame{file.name}"))
    with pytest.raises(ValueError, match=r"has no complete frame: name is no number \(5: "):
        data.from_rgbd(kitti, size=8)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"size": 0}, "size must be at least 1"), ({"frames": 0}, "frames must be an integer"),
     ({"frames": 1.5}, "frames must be"), ({"intrinsics": 500.0}, "intrinsics must be fx, fy, cx, cy"),
     ({"intrinsics": (1, 2, 3)}, "intrinsics must be"), ({"intrinsics": (0, 1, 2, 3)}, "intrinsics"),
     ({"intrinsics": "abcd"}, "intrinsics"), ({"intrinsics": (1, 1, np.nan, 0)}, "intrinsics")],
)  # fmt: skip
def test_invalid_arguments(kitti, arguments, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        data.from_rgbd(kitti, **{"size": 8, **arguments})


def test_the_command_reads_clips_of_eight_frames(tmp_path):
    (tmp_path / "image_2").mkdir()
    for k, pose in enumerate(trajectory(9)):
        picture(k).save(tmp_path / f"image_2/{k}.png")
        with open(tmp_path / "poses.txt", "a") as file:
            file.write(" ".join(map(str, pose[:3].ravel())) + "\n")
    clips = EgoMotion.reader(tmp_path, 8)
    assert clips.element_spec["frames"].shape == (8, 8, 8, 3)
    assert clips.element_spec["motion"].shape == (7, 6)
    assert int(clips.cardinality()) == 2
    assert clips.element_spec["image"].dtype == tf.uint8
