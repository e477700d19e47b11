import cv2
import moving_sprites
import numpy as np
import pytest

import keras_ssl as kssl
from keras_ssl.data.motion_masks import motion_mask, objects_in, with_motion_masks


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


def test_blobs_count_if_they_are_large_and_the_camera_does_not_explain_their_colors():
    moving = np.zeros((30, 40), bool)
    moving[2:12, 2:12] = True
    moving[5:9, 5:9] = False  # a hole of the first blob
    moving[2:12, 20:30] = True  # no better matched by the flow than by the camera
    moving[16:19, 2:12] = True  # 30 pixels of the 84
    moving[16:18, 20:30] = True  # 20
    expected = np.zeros_like(moving)
    expected[2:12, 2:12] = expected[16:19, 2:12] = True
    number = np.full(moving.shape, 3)
    errors = np.stack([np.full(moving.shape, 90.0), np.full(moving.shape, 30.0)])
    errors[0, 2:12, 20:30] = 45
    np.testing.assert_array_equal(objects_in(moving, errors, number), expected)
    errors = np.stack(
        [np.full(moving.shape, 10.0), np.zeros(moving.shape)]
    )  # noise of 3.3 gray levels
    assert not objects_in(moving, errors, number).any()


@pytest.mark.parametrize(("top", "known"), [(0, True), (12, False)])
def test_an_image_of_which_most_is_unknown_has_no_label(top, known):
    frames = street(3)  # the square is in rows 16 to 39
    noise = np.random.default_rng(0).integers(0, 256, frames.shape, np.uint8)
    frames[:, :top], frames[:, 46:] = noise[:, :top], noise[:, 46:]
    assert np.isfinite(motion_mask(frames)).any() == known


def test_the_middle_of_four_frames_is_the_second():
    clips, truth = moving_sprites.clips(3, frames=4, seed=4)
    found = [overlap(motion_mask(clip), mask) for clip, mask in zip(clips, truth, strict=True)]
    assert np.mean(found) > 0.8  # 0.68 with the mask of the third frame
