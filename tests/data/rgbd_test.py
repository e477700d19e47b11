"""Recordings with depth and poses in the layout of TUM, and pairs of images and depth, also damaged ones."""

import os
import warnings

import numpy as np
import pytest
from PIL import Image
from recordings import HEIGHT, WIDTH, depth_of, motions, numbers, picture, save_depth, trajectory
from scipy.spatial.transform import Rotation

from keras_ssl import data
from keras_ssl.data import columns, rgbd_layouts


@pytest.fixture
def tum(tmp_path):
    """Six frames, 0.1 s apart; depth and poses 5 ms and 8 ms later, the lists not in order."""
    folder = tmp_path / "rgbd_dataset_freiburg1_desk"
    for name in ("rgb", "depth"):
        (folder / name).mkdir(parents=True)
    lines = {name: [f"# {name}", "# timestamp filename"] for name in ("rgb", "depth")}
    truth = ["# timestamp tx ty tz qx qy qz qw"]
    for k, pose in enumerate(trajectory(6)):
        stamp = 1305031910 + k / 10
        picture(k + 1).save(folder / f"rgb/{stamp:.6f}.png")
        save_depth(5 * depth_of(k + 1), folder / f"depth/{stamp + 0.005:.6f}.png")  # 5000 per meter
        lines["rgb"].append(f"{stamp:.6f} rgb/{stamp:.6f}.png")
        lines["depth"].append(f"{stamp + 0.005:.6f} depth/{stamp + 0.005:.6f}.png")
        numbers = [*pose[:3, 3], *(2 * Rotation.from_matrix(pose[:3, :3]).as_quat())]
        # A further pose between two frames, which is the nearest of none.
        truth.append(f"{stamp + 0.05:.4f} 9 9 9 0 0 0 1")
        truth.append(f"{stamp + 0.008:.4f} " + " ".join(f"{v:.9f}" for v in numbers))
    for name, text in lines.items():
        (folder / f"{name}.txt").write_text("\n".join([*text[:2], *text[:1:-1]]) + "\n")
    (folder / "groundtruth.txt").write_text("\n".join(truth) + "\n")
    return folder


@pytest.fixture
def pairs(tmp_path):
    for name in ("image", "depth"):
        (tmp_path / name).mkdir()
    for k in range(4):
        picture(k + 1).save(tmp_path / f"image/{k:04d}.jpg", quality=100)
        save_depth(depth_of(k + 1), tmp_path / f"depth/{k:04d}.png")
    return tmp_path


def meters(k):
    """The depth of image k at the original size."""
    values = depth_of(k)[..., None] / 1000
    return np.where(values == 0, np.nan, values)


def test_tum(tum):
    dataset = data.from_rgbd(tum, size=(HEIGHT, WIDTH), intrinsics=(20, 30, 9.5, 5.5))
    arrays = data.to_arrays(dataset)
    assert set(arrays) == {"image", "id", "depth", "intrinsics"}
    assert numbers(arrays["image"]) == [1, 2, 3, 4, 5, 6]  # in temporal order
    assert arrays["id"].tolist() == list(range(6))
    assert arrays["depth"].dtype == np.float32
    for k in range(6):
        np.testing.assert_allclose(arrays["depth"][k], meters(k + 1), rtol=1e-6)
    assert arrays["intrinsics"].tolist() == [[20, 30, 9.5, 5.5]] * 6
    assert [os.path.basename(path) for path in dataset.paths][:2] == [
        "1305031910.000000.png",
        "1305031910.100000.png",
    ]


def test_clips_of_tum(tum):
    dataset = data.from_rgbd(tum, size=8, frames=4)
    arrays = data.to_arrays(dataset)
    assert numbers(arrays["frames"]) == [[1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]]
    assert numbers(arrays["image"]) == [2, 3, 4]  # the frame (T - 1) // 2
    np.testing.assert_array_equal(arrays["frames"][:, 1], arrays["image"])
    steps = motions(trajectory(6))
    expected = np.stack([steps[k : k + 3] for k in range(3)])
    assert arrays["motion"].dtype == np.float32
    np.testing.assert_allclose(arrays["motion"], expected, atol=2e-6)
    # Depth is that of `image`: 8 of 20 columns after the height was reduced from 12 to 8.
    kept = arrays["depth"][0, 0, :, 0]
    assert (np.floor(kept[np.isfinite(kept)]) == 2).all()
    assert "intrinsics" not in arrays  # those of the data set belong to 640x480 pixels


def test_rows_are_loaded_by_their_index(tum):
    part = data.subset(data.from_rgbd(tum, size=8, frames=3), [3, 0])
    arrays = data.to_arrays(part)
    assert numbers(arrays["frames"]) == [[4, 5, 6], [1, 2, 3]]
    assert arrays["id"].tolist() == [3, 0]
    assert hasattr(part, "columns")


def test_fingerprint_does_not_depend_on_the_folder(tum):
    dataset = data.from_rgbd(tum, size=8, frames=3)
    before = columns.fingerprint(dataset)
    moved = tum.rename(tum.parent / "elsewhere")
    assert columns.fingerprint(data.from_rgbd(moved, size=8, frames=3)) == before
    assert columns.fingerprint(data.from_rgbd(moved, size=8, frames=2)) != before


def test_intrinsics_of_tum_belong_to_its_size(tum):
    for k, name in enumerate(sorted(os.listdir(tum / "rgb"))):
        Image.new("RGB", (640, 480), (k, 0, 0)).save(tum / "rgb" / name)
    for name in os.listdir(tum / "depth"):
        save_depth(np.full((480, 640), 5000), tum / "depth" / name)
    arrays = data.to_arrays(data.from_rgbd(tum, size=48))
    # A tenth of the size; (640 - 480) / 2 columns are cut off: 8 pixels.
    expected = [52.5, 52.5, (319.5 + 0.5) / 10 - 0.5 - 8, (239.5 + 0.5) / 10 - 0.5]
    np.testing.assert_allclose(arrays["intrinsics"], [expected] * 6, rtol=1e-6)
    np.testing.assert_array_equal(arrays["depth"], np.ones((6, 48, 48, 1)))


def test_pairs(pairs):
    arrays = data.to_arrays(data.from_rgbd(pairs, size=(HEIGHT, WIDTH)))
    assert set(arrays) == {"image", "id", "depth"}
    assert numbers(arrays["image"]) == [1, 2, 3, 4]
    for k in range(4):
        np.testing.assert_allclose(arrays["depth"][k], meters(k + 1), rtol=1e-6)
    (pairs / "image").rename(pairs / "rgb")
    assert numbers(data.to_arrays(data.from_rgbd(pairs, size=8))["image"]) == [1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"frames=2 need poses, and '.*' has none"):
        data.from_rgbd(pairs, size=8, frames=2)


def test_damaged_missing_and_unmatched_files_are_counted(tum):
    rgb, depth = (sorted((tum / name).iterdir()) for name in ("rgb", "depth"))
    rgb[0].write_bytes(rgb[0].read_bytes()[:60])
    save_depth(np.zeros((HEIGHT, WIDTH)), depth[1])
    os.unlink(rgb[2])
    os.unlink(depth[3])
    os.mkfifo(depth[3])  # reading it would wait forever
    save_depth(np.ones((HEIGHT, WIDTH - 1)), depth[4])
    lines = (tum / "rgb.txt").read_text()
    (tum / "rgb.txt").write_text(
        lines + "1305031950.0 rgb/late.png\nno number rgb/x.png\n1305031910.1\n"
    )
    with pytest.warns(UserWarning, match="skipped 6 of 7 frames") as record:
        arrays = data.to_arrays(data.from_rgbd(tum, size=8))
    assert numbers(arrays["image"]) == [6]
    (warning,) = [str(w.message) for w in record]
    for words in (
        "unreadable image or depth (1: rgb/1305031910.000000.png)",
        "depth without a measurement (1: rgb/1305031910.100000.png)",
        "missing image or depth (2: rgb/1305031910.200000.png, rgb/1305031910.300000.png)",
        "depth of another size (1: rgb/1305031910.400000.png)",
        "no depth within 0.02 s (1: rgb/late.png)",
        "unreadable line (2: rgb.txt: no number rgb/x.png, rgb.txt: 1305031910.1)",
    ):
        assert words in warning


def test_depth_of_8_bits_is_skipped(pairs):
    Image.fromarray(np.full((HEIGHT, WIDTH), 9, np.uint8)).save(pairs / "depth/0001.png")
    with pytest.warns(UserWarning, match=r"unreadable image or depth \(1: image/0001.jpg\)"):
        data.from_rgbd(pairs, size=8)


def test_unknown_poses(tum):
    text = (tum / "groundtruth.txt").read_text().splitlines()
    text[4] = text[4].split()[0] + " 1 2 3 nan 0 0 1"  # of the second frame
    text[8] = text[8].split()[0] + " 1 2 3 0 0 0 0"  # of the fourth one: no rotation
    (tum / "groundtruth.txt").write_text("\n".join([*text, "1 2 3"]) + "\n")
    words = "the pose of 2 frames is unknown, and so the motion to and from them is NaN: rgb/"
    with pytest.warns(UserWarning, match=words) as record:
        arrays = data.to_arrays(data.from_rgbd(tum, size=8, frames=2))
    assert len(record) == 1
    assert "unreadable line (1: groundtruth.txt: 1 2 3)" in str(record[0].message)
    unknown = np.isnan(arrays["motion"][:, 0])
    assert unknown.all(axis=1).tolist() == unknown.any(axis=1).tolist() == [True] * 4 + [False]
    with warnings.catch_warnings():  # without clips, poses are not used
        warnings.filterwarnings("error", message="the pose")
        warnings.filterwarnings("ignore", message="skipped")
        data.from_rgbd(tum, size=8)


@pytest.mark.parametrize(
    ("others", "expected"),
    [([], [-1, -1]), ([1.015], [0, -1]), ([5.019, 0.99, 1.005], [2, 0]), ([1.03, 4.9], [-1, -1])],
)
def test_nearest_in_time(others, expected):
    found = rgbd_layouts._nearest(np.array([1.0, 5.0]), np.array(others))
    assert found.tolist() == expected


def test_nearest_in_time_is_the_nearest():
    rng = np.random.default_rng(0)
    stamps, others = rng.uniform(0, 1, 50), rng.uniform(0, 1, 40)
    gaps = np.abs(stamps[:, None] - others)
    expected = np.where(gaps.min(axis=1) <= 0.02, gaps.argmin(axis=1), -1)
    np.testing.assert_array_equal(rgbd_layouts._nearest(stamps, others), expected)
    assert 0 < (expected < 0).sum() < 50


def test_an_empty_list_has_no_frame(tum):
    (tum / "rgb.txt").write_text("# nothing\n")
    with pytest.raises(ValueError, match="has no complete frame"):
        data.from_rgbd(tum, size=8, frames=2)
