"""Reading rectified stereo pairs: the test writes folders in the layouts of three data sets."""

import json
import os
import re
import warnings

import numpy as np
import pytest
from PIL import Image
from skimage import data as samples

from keras_ssl import data
from keras_ssl.data.columns import fingerprint

# fx, fy, cx, cy in pixels, baseline in meters, offset in pixels of the right principal point.
CAMERA = (40.0, 42.0, 14.5, 9.25, 0.2, 3.0)
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
DISPARITY = (np.arange(600).reshape(20, 30) % 97 + 1).astype(np.float32) / 4


def pfm(values, little=True):
    height, width = values.shape
    kind = "<f4" if little else ">f4"
    head = f"Pf\n{width} {height}\n{-1.0 if little else 1.0}\n".encode()
    return head + values[::-1].astype(kind).tobytes()


def png(path, disparity, bias=0):
    """Writes a disparity map, NaN where unknown, as 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.where(np.isnan(disparity), 0, np.round(256 * disparity) + bias)
    Image.fromarray(stored.astype(np.uint16)).save(path)


def save(path, pixels=PIXELS):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def middlebury(folder, disparity=DISPARITY, little=True):
    fx, fy, cx, cy, baseline, offset = CAMERA
    save(folder / "im0.png")
    (folder / "disp0.pfm").write_bytes(pfm(disparity, little))
    (folder / "calib.txt").write_text(
        f"cam0=[{fx} 0 {cx}; 0 {fy} {cy}; 0 0 1]\ncam1=[{fx} 0 {cx + offset}; 0 {fy} {cy}; 0 0 1]\n"
        f"doffs={offset}\nbaseline={1000 * baseline}\nwidth=30\nheight=20\nndisp=280\n"
    )


def kitti(folder, number="000007", disparity=DISPARITY, maps="disp_occ_0"):
    fx, fy, cx, cy, baseline, offset = CAMERA
    save(folder / "image_2" / f"{number}_10.png")
    save(folder / "image_2" / f"{number}_11.png")  # the next frame, which has no disparity
    png(folder / maps / f"{number}_10.png", disparity)
    (folder / "calib_cam_to_cam").mkdir(exist_ok=True)
    (folder / "calib_cam_to_cam" / f"{number}.txt").write_text(
        "calib_time: 09-Jan-2012 13:57:47\ncorner_dist: 9.95e-02\n"
        f"P_rect_02: {fx} 0 {cx} {fx * 0.06} 0 {fy} {cy} 0.2 0 0 1 0.002\n"
        f"P_rect_03: {fx} 0 {cx + offset} {fx * (0.06 - baseline)} 0 {fy} {cy} 2.2 0 0 1 0.003\n"
    )


def cityscapes(folder, name="aachen_000000_000019", disparity=DISPARITY):
    fx, fy, cx, cy, baseline, _ = CAMERA
    save(folder / "leftImg8bit" / "train" / "aachen" / f"{name}_leftImg8bit.png")
    png(folder / "disparity" / "train" / "aachen" / f"{name}_disparity.png", disparity, bias=1)
    camera = folder / "camera" / "train" / "aachen" / f"{name}_camera.json"
    camera.parent.mkdir(parents=True, exist_ok=True)
    intrinsic = {"fx": fx, "fy": fy, "u0": cx, "v0": cy}
    camera.write_text(
        json.dumps({"extrinsic": {"baseline": baseline, "pitch": 0.038}, "intrinsic": intrinsic})
    )


def by_hand(disparity, offset=3.0):
    depth = np.full(disparity.shape, np.nan)
    for row, column in np.ndindex(disparity.shape):
        d = disparity[row, column]
        if np.isfinite(d) and d > 0:
            depth[row, column] = 40 * 0.2 / (d + offset)
    return depth[..., None]


UNKNOWN = DISPARITY.copy()
UNKNOWN[0, :2], UNKNOWN[3, 5], UNKNOWN[19, 29] = np.inf, 0, np.nan


@pytest.mark.parametrize(
    ("write", "offset"), [(middlebury, 3), (kitti, 3), (cityscapes, 0)], ids=lambda v: str(v)[:18]
)
def test_every_layout_at_its_own_size(write, offset, tmp_path):
    stored = UNKNOWN
    if write is not middlebury:
        stored = np.where(np.isfinite(UNKNOWN) & (UNKNOWN > 0), UNKNOWN, np.nan)
    write(tmp_path / "some" / "where", disparity=stored)
    dataset = data.from_stereo(tmp_path, (20, 30))
    arrays = data.to_arrays(dataset)
    np.testing.assert_array_equal(arrays["image"], PIXELS[None])
    np.testing.assert_allclose(arrays["depth"][0], by_hand(UNKNOWN, offset), rtol=1e-5)
    assert np.isnan(arrays["depth"]).sum() == 4
    np.testing.assert_allclose(arrays["intrinsics"], [CAMERA[:4]], rtol=1e-6)
    assert {k: (a.dtype, a.shape) for k, a in arrays.items()} == {
        "image": (np.uint8, (1, 20, 30, 3)),
        "depth": (np.float32, (1, 20, 30, 1)),
        "intrinsics": (np.float32, (1, 4)),
        "id": (np.int64, (1,)),
    }
    assert len(dataset.paths) == 1
    assert dataset.class_names is None


def test_big_endian_and_the_other_names_of_disparity_maps(tmp_path):
    middlebury(tmp_path / "big", little=False)
    middlebury(tmp_path / "gt")
    (tmp_path / "gt" / "disp0.pfm").rename(tmp_path / "gt" / "disp0GT.pfm")
    middlebury(tmp_path / "png")
    (tmp_path / "png" / "disp0.pfm").unlink()
    png(tmp_path / "png" / "disp0.png", DISPARITY)
    kitti(tmp_path / "sparse", maps="disp_noc_0")
    arrays = data.to_arrays(data.from_stereo(tmp_path, (20, 30)))
    assert arrays["id"].tolist() == [0, 1, 2, 3]
    for depth in arrays["depth"]:
        np.testing.assert_allclose(depth, by_hand(DISPARITY), rtol=1e-5)


def test_a_point_is_found_where_the_resized_intrinsics_project_it(tmp_path):
    """Every pixel's 3D point, of its column and row, is the same before and after resizing."""
    rows, columns = np.mgrid[:60, :90]
    fx, fy, cx, cy, baseline, _ = camera = (80.0, 84.0, 40.5, 33.25, 0.2, 0.0)
    disparity = (4 + rows / 20 + columns / 10).astype(np.float32)
    folder = tmp_path / "scene"
    middlebury(folder, disparity)
    (folder / "calib.txt").write_text(
        f"cam0=[{fx} 0 {cx}; 0 {fy} {cy}; 0 0 1]\nbaseline={1000 * baseline}\n"
    )
    save(folder / "im0.png", np.stack([2 * rows, 2 * columns, 0 * rows], -1).astype(np.uint8))
    assert camera[5] == 0  # no doffs in the file
    arrays = data.to_arrays(data.from_stereo(tmp_path, (20, 24)))
    fx2, fy2, cx2, cy2 = arrays["intrinsics"][0]
    assert (fx2, fy2) == pytest.approx((fx / 3, fy / 3))
    depth = arrays["depth"][0, ..., 0]
    rows2, columns2 = np.mgrid[:20, :24]
    # The original pixel of each new one: from its ray, and from the colors, which are coordinates.
    x = (columns2 - cx2) / fx2 * fx + cx
    y = (rows2 - cy2) / fy2 * fy + cy
    inside = arrays["image"][0, 1:-1, 1:-1].astype(float) / 2
    np.testing.assert_allclose(y[1:-1, 1:-1], inside[..., 0], atol=0.26)
    np.testing.assert_allclose(x[1:-1, 1:-1], inside[..., 1], atol=0.26)
    # Nearest neighbor: depth is that of the pixel in the center of 3x3, never a mean.
    expected = 80 * 0.2 / (4 + np.round(y) / 20 + np.round(x) / 10)
    np.testing.assert_allclose(depth, expected, rtol=1e-5)


def test_incomplete_and_damaged_scenes_are_named_in_one_warning(tmp_path):
    middlebury(tmp_path / "good")
    for name in ("no_disparity", "no_calibration", "cut", "size", "text", "far", "image", "color"):
        middlebury(tmp_path / name)
    (tmp_path / "no_disparity/disp0.pfm").unlink()
    (tmp_path / "no_calibration/calib.txt").unlink()
    whole = (tmp_path / "cut/disp0.pfm").read_bytes()
    (tmp_path / "cut/disp0.pfm").write_bytes(whole[:-5])
    (tmp_path / "size/disp0.pfm").write_bytes(pfm(DISPARITY[:, :-1]))
    (tmp_path / "text/calib.txt").write_text("cam0=[1 0 1; 0 1 1; 0 0 1]\nbaseline=wide\n")
    (tmp_path / "far/calib.txt").write_text("cam0=[1 0 1; 0 1 1; 0 0 1]\nbaseline=0\n")
    (tmp_path / "image/im0.png").write_bytes(b"hello")
    (tmp_path / "color/disp0.pfm").write_bytes(whole.replace(b"Pf", b"PF", 1))
    kitti(tmp_path / "kitti")
    save(tmp_path / "kitti/disp_occ_0/000007_10.png")  # 8 bits and in color
    with pytest.warns(UserWarning, match="skipped 9 of 10 scenes") as record:
        dataset = data.from_stereo(tmp_path, 16)
    assert len(record) == 1
    for name in ("no_disparity/im0.png", "cut/im0.png", "kitti/image_2/000007_10.png"):
        assert name in str(record[0].message)
    assert dataset.paths == [str(tmp_path / "good/im0.png")]
    assert data.to_arrays(dataset)["depth"].shape == (1, 16, 16, 1)


def test_files_that_are_no_regular_files_are_not_read(tmp_path):
    """Each file of a scene is a FIFO once: reading it would wait forever."""
    middlebury(tmp_path / "good")
    for layout, write in enumerate((middlebury, kitti, cityscapes)):
        for k in range(3):
            folder = tmp_path / f"{layout}{k}"
            write(folder)
            files = [p for p in folder.rglob("*") if p.is_file() and "_11.png" not in p.name]
            file = sorted(files)[k]
            file.unlink()
            os.mkfifo(file)
    with pytest.warns(UserWarning, match="skipped 9 of 10 scenes"):
        dataset = data.from_stereo(tmp_path, 16, check=False)
    assert dataset.paths == [str(tmp_path / "good/im0.png")]


def test_without_check_a_damaged_file_fails_on_loading(tmp_path):
    middlebury(tmp_path / "a")
    middlebury(tmp_path / "b")
    (tmp_path / "a/disp0.pfm").write_bytes(b"")
    dataset = data.from_stereo(tmp_path, 16, check=False)
    assert int(dataset.cardinality()) == 2
    assert data.to_arrays(dataset.ignore_errors())["id"].tolist() == [1]


def test_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"no folder '.*/nowhere'"):
        data.from_stereo(tmp_path / "nowhere", 16)
    with pytest.raises(ValueError, match="no complete and readable one; incomplete: none"):
        data.from_stereo(tmp_path, 16)
    save(tmp_path / "im0.png")
    with pytest.raises(ValueError, match=re.escape(f"incomplete: {tmp_path}/im0.png")):
        data.from_stereo(tmp_path, 16)
    with pytest.raises(ValueError, match="size must be at least 1 pixel"):
        data.from_stereo(tmp_path, 0)


def test_a_moved_folder_has_the_same_fingerprint(tmp_path):
    middlebury(tmp_path / "a" / "room")
    before = fingerprint(data.from_stereo(tmp_path / "a", 16))
    (tmp_path / "a").rename(tmp_path / "b")
    assert fingerprint(data.from_stereo(tmp_path / "b", 16)) == before
    (tmp_path / "b/room/disp0.pfm").write_bytes(pfm(DISPARITY) + b"\n")
    assert fingerprint(data.from_stereo(tmp_path / "b", 16, check=False)) != before


def test_the_motorcycle_of_middlebury(tmp_path):
    """The scene of 2014 that scikit-image ships, a quarter of its size, with the calibration in its docs."""
    try:
        left, _, disparity = samples.stereo_motorcycle()
    except Exception as error:  # a ConnectionError, or that of a missing downloader
        pytest.skip(f"scikit-image's motorcycle is not installed: {error}")
    folder = tmp_path / "motorcycle"
    middlebury(folder, disparity)
    save(folder / "im0.png", left)
    (folder / "calib.txt").write_text(
        "cam0=[994.978 0 311.193; 0 994.978 254.877; 0 0 1]\ndoffs=31.086\nbaseline=193.001\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = data.from_stereo(tmp_path, (500, 741))
    depth = row["depth"].numpy()
    known = np.isfinite(disparity)
    np.testing.assert_array_equal(np.isfinite(depth[..., 0]), known)
    assert known.mean() == pytest.approx(0.927, abs=0.001)
    expected = 994.978 * 0.193001 / (disparity[known] + 31.086)
    np.testing.assert_allclose(depth[known][:, 0], expected, rtol=1e-5)
    assert 2 < np.nanmin(depth) < np.nanmax(depth) < 5.1  # a workshop
    # Half the size: each pixel has the depth of a single one of the original.
    (half,) = data.from_stereo(tmp_path, (250, 370))
    rows = np.floor((np.arange(250) + 0.5) * 500 / 250).astype(int)
    columns = np.floor((np.arange(370) + 0.5) * 741 / 370).astype(int)
    np.testing.assert_array_equal(half["depth"], depth[rows][:, columns])
