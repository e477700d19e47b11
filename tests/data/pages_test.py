"""Pages of handwriting to patches around keypoints."""

import numpy as np
import pytest
from PIL import Image

import keras_ssl as kssl
from keras_ssl.data.pages import keypoints


def strokes(seed):
    """A page with some thick strokes."""
    page = np.full((90, 130, 3), 250, np.uint8)
    random = np.random.default_rng(seed)
    for _ in range(8):
        y, x = random.integers(10, 70), random.integers(10, 100)
        page[y : y + random.integers(3, 16), x : x + random.integers(3, 16)] = 20
    return page


def test_patches_are_cut_around_ink():
    page = strokes(0)
    patches, descriptors = keypoints(page, 32, 24)
    assert patches.shape[1:] == (32, 24, 3)
    assert len(patches) == len(descriptors) > 4
    for patch in patches:
        assert (patch[14:19, 10:15] < 128).any()  # ink in the middle
    np.testing.assert_allclose((descriptors**2).sum(1), 1, rtol=1e-4)
    # Outside the page all is white.
    corner = np.full((60, 60, 3), 250, np.uint8)
    corner[4:11, 4:11] = 10
    cut, _ = keypoints(corner)
    assert (cut[0][:4, :4] == 255).all()


def test_root_sift_is_the_hellinger_kernel():
    random = np.random.default_rng(0)
    a, b = random.random((2, 128))
    found = kssl.data.root_sift(np.stack([a, b]))
    expected = np.sqrt(a / a.sum() * b / b.sum()).sum()
    np.testing.assert_allclose(found[0] @ found[1], expected, rtol=1e-5)
    assert (kssl.data.root_sift(np.zeros((1, 128))) == 0).all()


def test_writers_from_folders_and_from_names(tmp_path):
    for writer in ("ann", "bob"):
        (tmp_path / "folders" / writer).mkdir(parents=True)
        for page in range(2):
            image = Image.fromarray(strokes(page))
            image.save(tmp_path / "folders" / writer / f"{page}.png")
            image.save(tmp_path / f"{writer}-{page}.png")
    folders = kssl.data.from_pages(tmp_path / "folders")
    assert folders.class_names == ["ann", "bob"]
    assert folders.writers.tolist() == [0, 0, 1, 1]
    first = next(iter(folders))
    assert first["image"].shape == (32, 32, 3)
    assert first["descriptor"].shape == (128,)
    arrays = kssl.data.to_arrays(folders)
    np.testing.assert_array_equal(arrays["id"], np.arange(len(arrays["id"])))
    np.testing.assert_array_equal(arrays["label"], folders.writers[arrays["page"]])
    (tmp_path / "folders").rename(tmp_path.parent / "elsewhere")
    assert kssl.data.from_pages(tmp_path).class_names == ["ann", "bob"]


def test_invalid_folders_and_skipped_pages(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        kssl.data.from_pages(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no images in"):
        kssl.data.from_pages(tmp_path)
    with pytest.raises(ValueError, match="size must be at least 1 pixel"):
        kssl.data.from_pages(tmp_path, size=0)
    Image.new("RGB", (50, 50), "white").save(tmp_path / "ann_0.png")
    with pytest.raises(ValueError, match="none of the 1 pages .* has a keypoint on ink"):
        kssl.data.from_pages(tmp_path)
    Image.fromarray(strokes(0)).save(tmp_path / "bob_0.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "bob_0.png").read_bytes()[:200])
    with pytest.warns(UserWarning, match="skipped 2 of 3 pages .*: ann_0.png, cut.png"):
        patches = kssl.data.from_pages(tmp_path)
    assert patches.class_names == ["bob"]
