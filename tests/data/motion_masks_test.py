import cv2
import moving_sprites
import numpy as np
import pytest

import keras_ssl as kssl
from keras_ssl.data.motion_masks import motion_mask, with_motion_masks


def overlap(mask, truth):
    """Returns the intersection over union on certain pixels."""
    certain = np.isfinite(mask)
    return ((mask == 1) & (truth == 1)).sum() / (((mask == 1) | (truth == 1)) & certain).sum()


@pytest.mark.parametrize("camera", [False, True])
def test_masks_are_those_of_the_shapes(camera):
    clips, truth = moving_sprites.clips(6, camera=camera, seed=1)
    masks = np.stack([motion_mask(clip) for clip in clips])
    assert masks.shape == truth.shape
    assert masks.dtype == np.float32
    assert set(np.unique(masks[np.isfinite(masks)])) == {0, 1}
    found = [overlap(*pair) for pair in zip(masks, truth, strict=True)]
    assert np.mean(found) > 0.75
    assert np.isfinite(masks).mean() > 0.9
    assert np.isfinite(masks[truth == 1]).mean() > 0.8
    turned = [overlap(mask, other[:, ::-1]) for mask, other in zip(masks, truth, strict=True)]
    assert np.mean(turned) < 0.3


def test_a_camera_that_moves_before_still_shapes_gives_no_label():
    for camera in (False, True):
        clips, _ = moving_sprites.clips(2, camera=camera, moving=False, seed=2)
        assert all(np.isnan(motion_mask(clip)).all() for clip in clips)
    assert np.isnan(motion_mask(np.full((3, 16, 16, 3), 90, np.uint8))).all()


def street(shift, spot=False, seed=0):
    """Five frames of a uniform square that moves by `shift` pixels per frame before a smooth wall."""
    wall = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    wall = cv2.normalize(cv2.GaussianBlur(wall, (0, 0), 2.5), None, 60, 180, cv2.NORM_MINMAX)
    frames = np.stack([wall] * 5)
    for t in range(5):
        left = 20 + (t - 2) * shift
        frames[t, 16:40, left : left + 24] = (230, 40, 40)
        if spot:  # smaller than a quarter of the square
            frames[t, 54:60, left : left + 6] = (40, 230, 40)
    return frames


def test_the_inside_of_a_uniform_object_is_filled():
    """Where the object was and is, the difference of two frames is 0."""
    truth = np.zeros((64, 64), np.float32)
    truth[16:40, 20:44] = 1
    mask = motion_mask(street(3))[..., 0]
    assert overlap(mask, truth) > 0.7
    inside = mask[20:36, 24:40]
    assert (inside == 1).mean() > 0.97
    assert not (inside == 0).any()


def test_small_blobs_are_uncertain():
    mask = motion_mask(street(3, spot=True))[..., 0]
    assert mask[28, 32] == 1
    assert not (mask[52:62, 18:32] == 1).any()
    assert np.isnan(mask[54:60, 20:26]).mean() > 0.5
    assert (motion_mask(street(3))[54:60, 20:26] == 0).all()


def test_what_is_hidden_in_one_direction_of_time_is_seen_in_the_other():
    """The pixels that the square will cover, and those that it leaves."""
    mask = motion_mask(street(4, seed=3))[..., 0]
    around = np.concatenate([mask[16:40, 48:52], mask[16:40, 12:16]])
    assert (around == 0).mean() > 0.9


def test_the_column_is_the_mask_of_the_middle_frame():
    clips, _ = moving_sprites.clips(3, frames=4, size=32, seed=4)
    images = kssl.data.from_array(clips[:, 1], labels=[0, 1, 1], frames=clips)
    labeled = with_motion_masks(images)
    assert labeled.element_spec["moving"].shape == (32, 32, 1)
    found = kssl.data.to_arrays(labeled)
    np.testing.assert_array_equal(found["image"], clips[:, 1])
    assert set(found) == {"image", "frames", "id", "label", "moving"}
    for mask, clip in zip(found["moving"], clips, strict=True):
        np.testing.assert_array_equal(mask, motion_mask(clip))
    part = kssl.data.to_arrays(kssl.data.subset(labeled, [2]))
    np.testing.assert_array_equal(part["moving"][0], found["moving"][2])
    with pytest.raises(ValueError, match="clips have a column 'moving' already"):
        with_motion_masks(labeled)


def test_what_is_no_clip_is_named():
    images = kssl.data.from_array(np.zeros((3, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="clips must have random access"):
        with_motion_masks(images.take(2))
    with pytest.raises(ValueError, match=r"clips must have `frames` .* got image, id"):
        with_motion_masks(images)
    for wrong in (np.zeros((1, 16, 16, 3), np.uint8), np.zeros((2, 16, 16, 3))):
        with pytest.raises(ValueError, match=r"frames must be \(T, H, W, 3\) uint8"):
            motion_mask(wrong)


def test_flow_that_no_homography_explains_has_no_vote():
    """Successive frames have nothing in common."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), np.uint8)
    assert np.isnan(motion_mask(noise)).all()
